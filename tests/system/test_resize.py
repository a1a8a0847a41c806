"""The command that makes a transformer's weights smaller or larger."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from experiments import resize
from rml.models import ViT
from tests.disk import full_after


def vit(ratio=1, depth=4):
    return ViT(width=16 * ratio, depth=depth, heads=2 * ratio, mlp_ratio=2, patch_size=4,
               positions="learned")  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """Weights of a small encoder in the form of `experiments.export`."""
    shapes = nn.unbox(jax.eval_shape(vit().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    rng = np.random.default_rng(0)
    drawn = {
        name: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
        for name, leaf in flatten_dict(shapes, sep=".").items()
    }
    save_file(drawn, tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def features(file, module):
    x = jnp.asarray(np.random.default_rng(1).random((3, 8, 8, 3), np.float32))
    return np.asarray(module.apply(unflatten_dict(load_file(file), sep="."), x))


@pytest.mark.slow
def test_a_wider_encoder_gives_the_same_features_and_comes_back(file, capsys):
    wide, back = (file.with_name(f"{name}.safetensors") for name in ("wide", "back"))
    assert resize.main([str(file), "--width=2", "--larger", f"--out={wide}"]) == 0
    assert "width 16 to 32, heads 2 to 4, kv_heads 2 to 4, mlp 32 to 64" in capsys.readouterr().out
    plain, copied = features(file, vit()), features(wide, vit(2))
    np.testing.assert_allclose(copied, np.tile(plain, 2), atol=2e-5)
    assert resize.main([str(wide), "--width=2", f"--out={back}"]) == 0
    for name, leaf in load_file(file).items():
        np.testing.assert_allclose(load_file(back)[name], leaf, atol=1e-6, err_msg=name)


def test_layers_are_averaged_by_the_scheme_that_is_named(file):
    kernel = "params.blocks.mlp_in.kernel"
    layers = load_file(file)[kernel]
    for scheme, pairs in {"halves": ((0, 2), (1, 3)), "neighbours": ((0, 1), (2, 3))}.items():
        out = file.with_name(f"{scheme}.safetensors")
        assert not resize.main([str(file), "--depth=2", f"--layer-scheme={scheme}", f"--out={out}"])
        wanted = [(layers[i] + layers[j]) / 2 for i, j in pairs]
        np.testing.assert_allclose(load_file(out)[kernel], wanted, atol=1e-6)


def test_units_are_averaged_by_their_own_scheme(file):
    out = file.with_name("narrow.safetensors")
    flags = ["--width=2", "--scheme=neighbours", "--layer-scheme=halves"]
    assert resize.main([str(file), *flags, f"--out={out}"]) == 0
    positions = load_file(file)["params.positions"]
    wanted = positions.reshape(1, 4 + 1, 8, 2).mean(-1)
    np.testing.assert_allclose(load_file(out)["params.positions"], wanted, atol=1e-6)


def test_more_layers_are_copies(file):
    out = file.with_name("deep.safetensors")
    flags = ["--depth=2", "--larger", "--layer-scheme=neighbours"]
    assert resize.main([str(file), *flags, f"--out={out}"]) == 0
    for name in ("params.blocks.mlp_in.kernel", "params.blocks.qkv.bias"):
        layers = load_file(file)[name]
        np.testing.assert_array_equal(load_file(out)[name], layers.repeat(2, axis=0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width=3"], "heads of keys and values: 2 units cannot be grouped by 3"),
        (["--width=0"], "--width is 0 and --depth 1, expected ratios of at least 1"),
        ([], "--width is 1 and --depth 1"),
        (["--width=2", "--scheme=thirds"], "scheme 'thirds'"),
    ],
)
def test_what_cannot_be_resized_is_named(file, flags, message, capsys):
    out = file.with_name("out.safetensors")
    assert resize.main([str(file), *flags, f"--out={out}"]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_is_made_and_a_full_disk_leaves_nothing(file, capsys):
    first, out = (file.parent / "new" / f"{name}.safetensors" for name in ("first", "out"))
    assert resize.main([str(file), "--width=2", f"--out={first}"]) == 0
    with full_after(1000):
        assert resize.main([str(file), "--width=2", f"--out={out}"]) == 1
    assert capsys.readouterr().err == f"error: {out} cannot be written: File too large\n"
    assert list(out.parent.iterdir()) == [first]


def test_a_url_is_named(capsys):
    given = "gs://b/large.safetensors"
    assert resize.main([given, "--width=2", "--out=x"]) == 1
    assert f"WEIGHTS is '{given}', a URL" in capsys.readouterr().err


def test_a_file_that_exists_stays(file, capsys):
    content = file.read_bytes()
    assert resize.main([str(file), "--width=2", f"--out={file}"]) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert file.read_bytes() == content
