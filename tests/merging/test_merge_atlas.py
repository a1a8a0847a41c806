"""Coefficients that the command learns: of which data, on what they are chosen, what is kept."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rml
from experiments import merge, merge_atlas
from rml.encoder import Encoder, ImageEmbedder
from rml.ops import normalize

CONFIG = {"data": {"image_shape": (8, 8, 1), "image_dtype": "uint8", "data_dir": None}}


def features(variables, images):
    own = variables["params"]
    hidden = jnp.tanh(images.reshape(images.shape[0], -1) / 255 @ own["w"] + own["b"])
    return hidden @ own["v"] - variables["batch_stats"]["mean"]


@pytest.fixture
def given(monkeypatch, tmp_path):
    """A base, two encoders near it, and the files of their tasks, classes of which are patterns."""
    rng = np.random.default_rng(0)
    start = {"w": 0.2 * rng.normal(size=(64, 16)), "b": np.zeros(16),
             "v": 0.3 * rng.normal(size=(16, 6))}  # fmt: skip

    def encoder(scale, mean):
        params = {
            name: jnp.asarray(x + scale * rng.normal(size=x.shape), jnp.float32)
            for name, x in start.items()
        }
        variables = {"params": params, "batch_stats": {"mean": jnp.full(6, mean)}}
        return Encoder("images", CONFIG, "run", 1, ImageEmbedder(features, variables, 8))

    made = {"base": encoder(0.0, 0.0), "a": encoder(0.1, 0.2), "b": encoder(0.1, 0.4)}
    monkeypatch.setattr(rml, "load", lambda name, **_: made[name], raising=False)
    files = []
    for task in range(2):
        patterns = rng.integers(0, 120, (3, 8, 8))
        label = np.arange(80) % (2 + task)  # two classes, and three
        images = (patterns[label] + rng.integers(0, 120, (80, 8, 8))).astype(np.uint8)
        files.append(tmp_path / f"{task}.npz")
        np.savez(files[-1], image_train=images[:60], label_train=label[:60], image_test=images[60:],
                 label_test=label[60:])  # fmt: skip
    return made, files


def options(files, **other):
    given = {"task": [f"npz:{file}" for file in files], "read": "train", "split": "test",
             "examples": 60, "text": "", "label": "", "data": ""}  # fmt: skip
    return argparse.Namespace(**given | other)


def cross_entropy(encoder, base, files, rows):
    """The mean loss of some training images of both tasks by heads of the base, in NumPy."""
    losses = []
    for file in files:
        with np.load(file) as read:
            images, label = read["image_train"], read["label_train"]
        train = np.arange(60) % 5 != 4
        unit = np.asarray(normalize(jnp.asarray(base(images))), np.float64)
        means = np.stack([unit[train & (label == y)].mean(0) for y in np.unique(label)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        own = np.asarray(normalize(jnp.asarray(encoder(images))), np.float64)
        logits = 20 * own @ means.T
        each = np.log(np.exp(logits).sum(1)) - logits[np.arange(60), label]
        losses.append(each[rows])
    return np.concatenate(losses).mean()


@pytest.mark.slow
def test_coefficients_are_of_blocks_and_are_chosen_on_examples_they_did_not_see(given):
    made, files = given
    named = {name: made[name] for name in "ab"}
    learned = {
        rate: merge_atlas.atlas(
            made["base"], named, options(files), {"learning_rate": rate, "steps": 40.0}
        )
        for rate in merge_atlas.RATES
    }
    held = np.arange(60) % 5 == 4
    for own in learned.values():
        before, after = (cross_entropy(x, made["base"], files, held)
                         for x in (made["base"], own.encoder))  # fmt: skip
        # Statistics are those of the merged encoder before a step as well.
        start = made["base"].variables | {"batch_stats": {"mean": jnp.full(6, 0.3)}}
        moved = Encoder("images", CONFIG, "run", 1, ImageEmbedder(features, start, 8))
        assert own.losses[0] == pytest.approx(
            cross_entropy(moved, made["base"], files, held), abs=1e-4
        )
        assert own.losses[1] == pytest.approx(after, abs=1e-4)
        assert after < own.losses[0] - 0.02
        assert abs(before - own.losses[0]) > 1e-4
    chosen = merge_atlas.atlas(made["base"], named, options(files), {"steps": 40.0})
    best = min(learned, key=lambda rate: learned[rate].losses[1])
    assert chosen.rate == best
    assert len({round(own.losses[1], 4) for own in learned.values()}) == 3
    variables = chosen.encoder.variables
    np.testing.assert_allclose(variables["batch_stats"]["mean"], 0.3, rtol=1e-6)
    found = []
    for name, start in made["base"].variables["params"].items():
        vectors = np.stack([
            np.ravel(made[own].variables["params"][name] - start) for own in "ab"
        ])  # fmt: skip
        change = np.ravel(variables["params"][name] - start)
        coefficients, *_ = np.linalg.lstsq(vectors.T, change, rcond=None)
        np.testing.assert_allclose(coefficients @ vectors, change, atol=1e-5)
        found.append(coefficients)
    assert np.abs(np.diff(found, axis=0)).min() > 1e-3


def test_every_task_counts_as_much_and_examples_come_as_often_as_others():
    rng = np.random.default_rng(0)
    found = merge_atlas._drawn(rng, np.array([3, 5, 8]), 7, 4)
    assert found.shape == (7, 4)
    counts = np.unique(found, return_counts=True)
    assert counts[0].tolist() == [3, 5, 8]
    assert np.ptp(counts[1]) <= 1
    assert (np.diff(found.ravel()[:3]) != 0).all()


@pytest.mark.slow
def test_the_command_says_what_was_learned_and_writes_one_encoder(given, tmp_path, capsys):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    _, files = given
    out = tmp_path / "merged.safetensors"
    arguments = ["a", "b", "--base=base", "--method=atlas", "--examples=60",
                 *(f"--task=npz:{file}" for file in files), "--option", "steps=5", "--option",
                 "learning_rate=0.02", f"--out={out}"]  # fmt: skip
    assert merge.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert "0.npz: a " in said[0]
    assert "1.npz: b " in said[1]
    assert said[2].startswith("cross-entropy of examples that were not learned from: ")
    assert said[2].endswith("rate 0.02")
    assert set(load_file(out)) == {"params.w", "params.b", "params.v", "batch_stats.mean"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--option", "steps=0"], "steps is 0.0, expected a whole number from 1 on"),
        (["--option", "steps=2.5"], "steps is 2.5, expected a whole number"),
        (["--option", "top=1"], "atlas has no option 'top', expected one of: learning_rate"),
        (["--option", "parts=2"], "atlas has no option 'parts'"),
        (["--examples=61"], "--examples=61, expected 1 to the 60 images of train"),
        (["--examples=4"], "--examples=4, expected at least 5"),
        (["--task=digits"], "--task is given 3 times, expected 2"),
        (["--option", "learning_rate=1e30"], "the loss is nan at every learning_rate of (1e+30,)"),
        (["--data=digits"], "--data is digits, expected --task alone"),
    ],
)
def test_mistakes_are_told_in_one_line(given, more, message, tmp_path, capsys):
    _, files = given
    out = tmp_path / "merged.safetensors"
    tasks = [f"--task=npz:{file}" for file in files]
    arguments = ["a", "b", "--base=base", "--method=atlas", "--examples=60", *tasks, *more]
    assert merge.main([*arguments, f"--out={out}"]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_a_rate_that_diverges_is_not_chosen(given, monkeypatch):
    made, files = given
    monkeypatch.setattr(merge_atlas, "RATES", (1e30, 0.03))
    named = {name: made[name] for name in "ab"}
    learned = merge_atlas.atlas(made["base"], named, options(files), {"steps": 10.0})
    assert learned.rate == 0.03
    assert jnp.isfinite(jax.flatten_util.ravel_pytree(learned.encoder.variables)[0]).all()
