"""Published weights by name, where the directory of a run is expected."""

import json
import subprocess
import sys

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import rml
from experiments import embed, export
from experiments.common.encoders import load_encoder
from rml import assets
from rml.data import load
from rml.errors import UserError
from rml.models import pretrained

IMAGES = "weights:mobilenet_v2/stage1@32"
TEXTS = ["a comet is a body of ice", "knead the dough"]
PROGRAM = """
import json, sys
images = json.loads(sys.stdin.read())
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
print(json.dumps(np.asarray(program.call(np.array(images, np.uint8))).tolist()))
assert "rml" not in sys.modules
"""


@pytest.fixture(scope="module", autouse=True)
def archives(tmp_path_factory):
    """Archives of weights, fetched once for all workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RML_ASSETS", str(tmp_path_factory.getbasetemp().parent / "archives"))
        assets.fetch(["mobilenet_v2", "minilm_l3"])
        yield


@pytest.mark.slow
def test_images_have_the_features_that_a_config_would_name(tmp_path, capsys):
    encoder = rml.load(IMAGES)
    assert (encoder.kind, encoder.input_shape, encoder.width) == ("images", (32, 32, 3), 24)
    assert (encoder.run, encoder.step) == (IMAGES, None)
    source = load("digits", "test[:5]", image_size=32)
    expected = load_encoder(IMAGES, (32, 32, 1))(source.arrays()["image"])
    np.testing.assert_allclose(encoder(source), expected, rtol=1e-4, atol=1e-4)

    out = tmp_path / "features.npz"
    command = [IMAGES, "--data=digits", "--split=test[:5]", f"--out={out}"]
    assert embed.main(command) == 0
    assert "5 images x 24 features" in capsys.readouterr().out
    with np.load(out) as found:
        np.testing.assert_allclose(found["x"], expected, rtol=1e-4, atol=1e-4)
        assert found["y"].tolist() == source.arrays()["label"].tolist()

    assert export.main([IMAGES, "--format=stablehlo", f"--out={tmp_path / 'program'}"]) == 0
    card = json.loads((tmp_path / "program.json").read_text())
    assert card["inputs"]["images"] == "uint8 ['n', 32, 32, 3]"
    assert card["inputs"]["normalisation"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert card["config"]["weights"]["licence"] == "MIT"
    assert card["paper"] is None
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "program")], cwd=tmp_path,
        input=json.dumps(pixels.tolist()), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), encoder(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_file_of_weights_is_named_by_its_path(tmp_path):
    file = tmp_path / "own.pt"
    file.write_bytes(assets.read("mobilenet_v2", "*wts.pt"))
    own, named = rml.load(f"weights:{file}@32"), rml.load("weights:mobilenet_v2@32")
    chex.assert_trees_all_equal(own.variables, named.variables)
    assert own.config["weights"] == {"name": str(file)}
    assert own.config["data"] == named.config["data"]
    assert own.config["normalisation"] == named.config["normalisation"]


@pytest.mark.slow
def test_texts_have_the_vectors_of_the_module(tmp_path):
    encoder = rml.load("weights:minilm_l3")
    loaded = pretrained.load("minilm_l3")
    module, variables = loaded.text_encoder()
    tokens = [loaded.tokenizer.encode(text).ids for text in TEXTS]
    found = encoder(TEXTS)
    assert encoder.kind == "texts"
    assert found.shape == (2, encoder.width) == (2, 384)
    for row, one in zip(found, tokens, strict=True):
        mask = jnp.ones((1, len(one)), bool)
        alone = module.apply(variables, jnp.array([one], jnp.int32), mask)
        np.testing.assert_allclose(row, alone[0], rtol=1e-4, atol=1e-5)

    (tmp_path / "own").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "own" / f"{number}.txt").write_text(text * 20)
    out = tmp_path / "vectors.npz"
    data = f"--data=texts:{tmp_path / 'own'}"
    assert embed.main(["weights:minilm_l3", data, f"--out={out}"]) == 0
    with np.load(out) as vectors:
        assert vectors["x"].shape == (len(vectors["ids"]), 384)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("weights:mobilenet", {}, ["unknown weights 'mobilenet'", "'mobilenet_v2'"]),
        ("weights:mobilenet_v2/stage9", {}, ["unknown layer of mobilenet_v2 'stage9'"]),
        ("weights:mobilenet_v2@3", {}, ["weights:mobilenet_v2@3", "at least"]),
        ("weights:", {}, ["unknown weights ''", "minilm"]),
        ("weights:/nowhere/resnet.pth@96", {}, ["unknown weights '/nowhere/resnet.pth'", "PATH"]),
        ("weights:hf:nowhere", {}, ["there is no directory nowhere"]),
        ("weights:hf:gs://b/m", {}, ["the pretrained model is 'gs://b/m', a URL", "mount"]),
        ("weights:gs://b/m.pth@96", {}, ["the path of weights is 'gs://b/m.pth', a URL"]),
        ("gs://b/run", {}, ["the run directory is 'gs://b/run', a URL", "mount"]),
        ("weights:minilm@32", {}, ["'weights:minilm@32', expected 'weights:minilm':", "no @SIDE"]),
        ("weights:smollm2/layer3", {}, ["/layer3', expected 'weights:smollm2':", "no /LAYER"]),
        ("weights:minilm_l3", {"step": 3}, ["takes no options, got a step"]),
        ("weights:minilm_l3", {"pair": (1, 2)}, ["takes no options, got the option 'pair'"]),
    ],
)
def test_a_wrong_name_is_told(name, options, parts):
    with pytest.raises(UserError) as caught:
        rml.load(name, **options)
    for part in parts:
        assert part in str(caught.value)
    assert "make weights" not in str(caught.value)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "minilm_l3"])
def test_weights_that_are_not_here_are_told_with_what_brings_them(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path / "none"))
    command = [f"weights:{name}", "--data=digits", f"--out={tmp_path / 'out'}"]
    assert embed.main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert f"python -m rml.assets {name}" in error
    assert error.endswith("; `make weights` brings all\n")
    assert not (tmp_path / "out").exists()
