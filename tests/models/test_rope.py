"""Scalings of rotary positions against the numbers of golden/make_rope.py."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import Llama, rope
from tests.models.golden.families import CASES

GOLDEN = json.loads((CASES.parent / "rope.json").read_text())


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: row["scaling"]["rope_type"])
def test_frequencies_and_magnitudes_are_those_of_transformers(row):
    scaling, trained = row["scaling"], GOLDEN["trained"]
    found = rope.frequencies(
        GOLDEN["width"], GOLDEN["theta"], scaling=scaling, trained=trained, length=row["length"]
    )
    np.testing.assert_allclose(found, row["frequencies"], rtol=1e-5)
    assert rope.magnitude(scaling, trained) == pytest.approx(row["magnitude"], rel=1e-6)


def test_two_channels_have_one_frequency_whatever_the_base():
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    found = rope.frequencies(2, 1e4, scaling=scaling, trained=8, length=jnp.array([9, 30]))
    np.testing.assert_array_equal(np.broadcast_to(found, (2, 1)), np.ones((2, 1)))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' has trained=0, expected at least 1"),
        (
            {"short_factor": [1.0]},
            r"short_factor .*\(1,\), expected \(4,\): one for each pair of 8",
        ),
        ({"long_factor": [1.0] * 5}, r"long_factor .*\(5,\), expected \(4,\)"),
        ({"rope_type": "llama3", "low_freq_factor": 4.0}, "low_freq_factor=4, expected less than"),
    ],
)
def test_scalings_that_have_no_frequencies_are_refused(scaling, message):
    whole = {
        "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "factor": 8.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        rope.frequencies(8, 100.0, scaling=whole | scaling)


def test_a_scale_multiplies_what_is_rotated():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    frequency = rope.frequencies(8, 100.0)
    plain, scaled = (
        rope.rotate(jnp.asarray(x), jnp.arange(3)[None], frequency, s) for s in (1.0, 1.3)
    )
    np.testing.assert_allclose(scaled, 1.3 * plain, rtol=1e-6)


def test_far_tokens_of_a_model_in_bfloat16_are_told_apart():
    """At position 80,000 neighbours have one number in bfloat16, whose next is 512 farther."""
    positions = 80_000 + np.arange(6)
    frequency = rope.frequencies(8, 100.0)
    angle = positions[:, None] * np.asarray(frequency, np.float64)
    x = jnp.ones((1, 6, 1, 8), jnp.bfloat16)
    for given in (jnp.asarray(positions), jnp.asarray(positions, jnp.float32)):
        found = rope.rotate(x, given[None], frequency)
        assert found.dtype == jnp.bfloat16
        truth = np.concatenate([np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)], 1)
        np.testing.assert_allclose(found[0, :, 0].astype(float), truth, atol=0.02)


@pytest.mark.slow
def test_a_decoder_scales_queries_and_keys():
    small = {"vocabulary": 20, "width": 16, "depth": 2, "heads": 4, "mlp": 24, "scan": False}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 6)), jnp.int32)
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(Llama(**small).init, jax.random.key(0), tokens))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    ones = (1.0, 1.0)
    scaling = {
        "rope_type": "longrope",
        "short_factor": ones,
        "long_factor": ones,
        "attention_factor": 1.3,
        "original_max_position_embeddings": 8,
    }
    scaled = jax.jit(Llama(**small, rope_scaling=scaling).apply)(variables, tokens)

    def larger(path, leaf):
        return 1.3 * leaf if {key.key for key in path} & {"query", "key"} else leaf

    plain = jax.jit(Llama(**small).apply)
    expected = plain(jax.tree_util.tree_map_with_path(larger, variables), tokens)
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-4)
    assert jnp.abs(scaled - plain(variables, tokens)).max() > 0.01


def test_lengths_beyond_which_a_cache_would_turn():
    assert rope.longest({"rope_type": "dynamic", "factor": 2.0}, 16) == 16
    assert rope.longest(None, 16) is None
    long = {"rope_type": "longrope", "short_factor": [1.0], "original_max_position_embeddings": 8}
    assert rope.longest({**long, "long_factor": [2.0]}, 16) == 8
    assert rope.longest({**long, "long_factor": (1.0,)}, 16) is None
