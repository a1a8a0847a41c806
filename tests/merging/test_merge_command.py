"""Encoders merged from the command line."""

import jax.numpy as jnp
import numpy as np
import pytest

import rml
from experiments import merge
from rml import data
from rml.encoder import Encoder, ImageEmbedder


def encoder(seed, scale=0.1, *, width=3):
    rng, common = np.random.default_rng(seed), np.random.default_rng(0)
    w = common.normal(size=(64, width)) + scale * rng.normal(size=(64, width))
    embedder = ImageEmbedder(
        lambda v, x: x.reshape(len(x), -1).astype(jnp.float32) @ v["params"]["w"],
        {"params": {"w": jnp.asarray(w, jnp.float32)}}, 64,
    )  # fmt: skip
    config = {"data": {"image_shape": (8, 8, 1), "image_dtype": "uint8", "data_dir": None}}
    return Encoder("images", config, f"run{seed}", 1, embedder)


@pytest.fixture
def runs(monkeypatch):
    made = {"base": encoder(0, 0.0), "a": encoder(1), "b": encoder(2), "far": encoder(3, 5.0),
            "wide": encoder(4, width=4)}  # fmt: skip
    monkeypatch.setattr(rml, "load", lambda name, **options: made[options.get("expert", name)],
                        raising=False)  # fmt: skip
    rng = np.random.default_rng(5)
    source = data.ArraySource(
        rng.integers(0, 255, (20, 8, 8, 1)).astype(np.uint8), np.arange(20) % 2,
        class_names=("even", "odd"),
    )  # fmt: skip
    monkeypatch.setattr(data, "load", lambda *_, **__: source)
    return made


def test_two_encoders_are_merged_judged_and_written(runs, tmp_path, capsys):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    out = tmp_path / "merged.safetensors"
    given = ["bed,expert=a", "b", "--base=base", "--method=task_arithmetic", "--option",
             "scale=0.7", "--data=digits", f"--out={out}"]  # fmt: skip
    assert merge.main(given) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:3]] == ["bed,expert=a", "b", "merged"]
    base, a, b = (np.asarray(runs[name].variables["params"]["w"]) for name in ("base", "a", "b"))
    (found,) = load_file(out).values()
    np.testing.assert_allclose(found, base + 0.7 * (a + b - 2 * base), atol=1e-5)
    assert merge.main(given) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--out=x"], "--method=task_arithmetic needs --base"),
        (["a", "b", "--method=fisher", "--out=x"], "unknown method 'fisher'"),
        (["a", "b"], "no --out"),
        (["a", "wide", "--base=base", "--out=x"], "leaf 'params.w' of wide is [64, 4], expected"),
        (["a", "far", "--base=base", "--out=x"], "was it fine-tuned from another base"),
        (["a", "--base=base", "--option", "keep=1", "--out=x"], "has no option 'keep'"),
        (["a", "--base=base", "--option", "scale", "--out=x"], "expected NAME=NUMBER"),
    ],
)
def test_mistakes_are_told_in_one_line(runs, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert merge.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
