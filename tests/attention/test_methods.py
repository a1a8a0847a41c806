"""What every attention of the table must do."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import rml.attention
from rml.attention import block_law, combiner
from rml.attention.hyper_samples import HyperSettings
from rml.attention.methods import METHODS
from rml.ops.attention_parts import Visible

KINDS = {"combiner_rowmajor": "combiner"}
"""Further forms of a row of the table, which must do the same."""
NAMES = [*METHODS, *KINDS]
OPTIONS = {
    "window": {"width": 5, "sinks": 2},
    "hyperattention": {"settings": HyperSettings(planes=3, block=4, samples=5, least=6)},
    "combiner": {"settings": combiner.CombinerSettings("logsparse", 3)},
    "combiner_rowmajor": {"settings": combiner.CombinerSettings("rowmajor", 5, row_summary="wsum")},
    "performer": {"features": 64},
    "s2_attention": {"block": 3, "local": 2, "stride": 2},
    "harmonic": {"form": "factor", "slopes": "geometric", "block": 5},
    "alibi": {"block": 5},
    "block_law": {"block": 3, "law": block_law.Law("geometric", 4.0, 0.8, reweight=True)},
}
"""Options with which a text of 24 tokens is approximated."""
EXACT = {
    "exact": {},
    "window": {"width": 24},
    "hyperattention": {"settings": HyperSettings(least=24)},
    "combiner": {"settings": combiner.CombinerSettings("fixed", 1)},
    "combiner_rowmajor": {"settings": combiner.CombinerSettings("rowmajor", 1)},
    "performer": {"features": 1 << 15},
    "s2_attention": {"block": 5, "local": 2, "stride": 1},
    "harmonic": {"strength": 0.0, "block": 7},
    "alibi": {"strength": 0.0},
    "block_law": {"block": 5, "law": block_law.Law(budget=5.0, reweight=True)},
}
"""Options with which a method is exact, or as near as its random features come."""
HERE = np.arange(24) < np.array([[24], [15]])


def draw(seed, *shape, dtype=jnp.float32):
    return (0.6 * jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


def inputs(dtype=jnp.float32):
    return tuple(draw(i, 2, 4 if i == 0 else 2, 24, 6, dtype=dtype) for i in range(3))


def attend(name, visible, *arrays, options=OPTIONS):
    rng = jax.random.key(7)
    return METHODS[KINDS.get(name, name)](
        *arrays, visible, rng=rng, scale=0.5, **options.get(name, {})
    )


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_exact_attention_in_its_limit(name, causal):
    visible = Visible(HERE, causal=causal)
    query, key, value = map(np.asarray, inputs())
    query, key = query / 2, key / 2  # random features estimate small logits well
    seen = HERE[:, None] & (np.tri(24, dtype=bool) if causal else True)
    key_, value_ = (x.repeat(2, axis=1) for x in (key, value))
    logits = np.where(seen[:, None], 0.5 * query @ key_.swapaxes(2, 3), -np.inf)
    wanted = softmax(logits, axis=-1) @ value_
    found = jax.jit(partial(attend, name, visible, options=EXACT))(query, key, value)
    np.testing.assert_allclose(found, wanted, atol=0.02 if name == "performer" else 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_hidden_is_read(name, causal):
    """The gradient of early or whole outputs is zero at padding and, if causal, at later tokens."""
    visible = Visible(HERE, causal=causal)

    @jax.jit
    def run(query, key, value):
        def total(key, value):
            out = attend(name, visible, query, key, value)
            return jnp.sin(out[:, :, :11] if causal else out).sum(), out

        return jax.grad(total, (0, 1), has_aux=True)(key, value)

    query, key, value = map(np.asarray, inputs())
    gradients, out = run(query, key, value)
    for found in map(np.asarray, gradients):
        read = (found != 0).any(axis=(1, 3))
        allowed = HERE & (np.arange(24) < 11) if causal else HERE
        assert not read[~allowed].any()
        assert read[allowed].mean() > 0.5
        assert np.isfinite(found).all()
    there = HERE[:, None, :, None]
    for large in (50.0, -50.0):
        _, other = run(query, np.where(there, key, np.float32(large)), value)
        np.testing.assert_allclose(other[1, :, :15], out[1, :, :15], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact", "performer"])
def test_order_of_keys_does_not_matter_without_causality(name):
    query, key, value = map(np.asarray, inputs())
    order = np.random.default_rng(3).permutation(24)
    run = jax.jit(lambda here, *arrays: attend(name, Visible(here), *arrays))
    found = run(HERE[:, order], query, key[:, :, order], value[:, :, order])
    np.testing.assert_allclose(found, run(HERE, query, key, value), atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_vmap(name):
    visible = Visible(causal=True)
    run = jax.jit(partial(attend, name, visible))
    half = run(*inputs(jnp.bfloat16))
    assert half.dtype == jnp.float32
    full = run(*(np.asarray(x, np.float32) for x in inputs(jnp.bfloat16)))
    assert np.abs(half - full).mean() < 0.03
    one = run(*inputs())
    two = jax.jit(jax.vmap(run))(*(np.stack([x, x]) for x in inputs()))
    np.testing.assert_allclose(two[1], one, atol=3e-6)


@pytest.mark.parametrize(
    "name", ["window", "hyperattention", "combiner", "performer", "s2_attention", "block_law"]
)
def test_a_window_that_it_cannot_see_is_refused(name):
    with pytest.raises(ValueError, match="window=3"):
        attend(name, Visible(window=3), *inputs())


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_broadcasting_or_padding_would_hide_are_named(unchecked, name):
    query, key, value = inputs()
    wrong = {
        "fewer values than keys": (query, key, value[:, :, :20]),
        "more values than keys": (query, key, jnp.pad(value, [(0, 0)] * 2 + [(0, 4), (0, 0)])),
        "one text of keys": (query, key[:1], value[:1]),
        "one text of values": (query, key, value[:1]),
        "other heads of values": (query, key, value[:, :1]),
        "other width of keys": (query, key[..., :5], value),
        "no heads": (query[:, 0], key[:, 0], value[:, 0]),
    }
    for arrays in wrong.values():
        shapes = f"got shapes {arrays[0].shape}, {arrays[1].shape} and {arrays[2].shape}"
        with pytest.raises(ValueError, match=re.escape(shapes)):
            attend(name, Visible(causal=True), *arrays)
    for here in (HERE[:, :20], HERE[:1], np.pad(HERE, [(0, 0), (0, 3)])):
        with pytest.raises(ValueError, match=re.escape(f"a mask {here.shape} of keys")):
            attend(name, Visible(here, causal=True), query, key, value)
    with pytest.raises(ValueError, match="2 heads of keys must divide 3 heads of queries"):
        attend(name, Visible(), query[:, :3], key, value)


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_nothing_and_a_scale_below_0_are_named(unchecked, name):
    query, key, value = inputs()
    for arrays in (
        (query[:, :, :0], key[:, :, :0], value[:, :, :0]),
        (query, key[:, :, :0], value[:, :, :0]),
        (query[..., :0], key[..., :0], value),
        (query, key, value[..., :0]),
        (query, key[:, :0], value[:, :0]),
        (query[:0], key[:0], value[:0]),
    ):
        message = f"length 1 or more, got queries {arrays[0].shape}, keys {arrays[1].shape}"
        with pytest.raises(ValueError, match=re.escape(message)):
            attend(name, Visible(), *arrays)
    for scale in (-0.5, np.nan):
        with pytest.raises(ValueError, match=f"scale is {scale}, expected a number at least 0"):
            METHODS[KINDS.get(name, name)](
                query, key, value, rng=jax.random.key(7), scale=scale, **OPTIONS.get(name, {})
            )


def test_the_rooms_docstring_lists_every_method():
    assert [name for name in METHODS if f"`{name}`" not in rml.attention.__doc__] == []
