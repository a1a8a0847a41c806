"""Caches of a decoder: what is kept, what it costs, and that decoding through it is right."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import Llama, generate
from rml.models.attention import attend
from rml.models.caches import quantise

SMALL = {"vocabulary": 20, "width": 16, "depth": 2, "heads": 4, "mlp": 24, "kv_heads": 2}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 11)), jnp.int32)
LEFT = jnp.arange(11) >= jnp.array([[0], [3]])
PARTS = (4, 1, 1, 1, 4)
"""Tokens that are read at a time."""


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(Llama(**SMALL).init, jax.random.key(0), TOKENS))
    return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)


def read_in_parts(module, variables, cache, mask):
    further = jax.jit(
        lambda tokens, mask, cache: module.apply(variables, tokens, mask, cache=cache)
    )
    found, at = [], 0
    for size in PARTS:
        part = np.s_[:, at : at + size]
        states = further(TOKENS[part], mask[part], cache)
        cache, at = states.cache, at + size
        found.append(states.last)
    return jnp.concatenate(found, axis=1), cache


def windowed(query, key, value, visible):
    """Attention to the last three tokens and the first two, or to fewer where a block says so."""
    window = 3 if visible.window is None else jnp.minimum(visible.window, 3)
    return attend(query, key, value, visible._replace(window=window, sinks=2))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_a_window_reads_as_the_whole_text_does_under_its_mask(variables, dtype):
    """Also where a block has a window of its own, and where the first tokens are padding."""
    own = {} if dtype == jnp.int8 else {"window": 2, "windowed": (True, False)}
    module = Llama(**SMALL, **own)
    whole = jax.jit(module.clone(attention=windowed).apply)(variables, TOKENS, LEFT)
    cache = module.init_cache(2, window=3, sinks=2, dtype=dtype)
    found, cache = read_in_parts(module, variables, cache, LEFT)
    error = jnp.linalg.norm((found - whole)[LEFT]) / jnp.linalg.norm(whole[LEFT])
    if dtype == jnp.int8:
        assert 1e-4 < error < 0.02
        assert cache.key.integers.dtype == jnp.int8
    else:
        assert error < 1e-5
    assert cache.slots == 5
    assert cache.length == 11
    np.testing.assert_array_equal(cache.read, [11, 8])
    np.testing.assert_array_equal(cache.mask, LEFT[:, jnp.array([0, 1, 8, 9, 10])])


def test_eight_bits_are_as_near_as_half_a_level():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 8)), jnp.float32).at[1, 1].set(0.0)
    kept = quantise(x)
    level = jnp.abs(x).max(axis=-1, keepdims=True) / 127
    assert jnp.all(jnp.abs(kept.integers * kept.scale - x) <= 0.501 * level)
    assert jnp.abs(kept.integers).max() == 127


@pytest.mark.parametrize("kind", [{"length": 12}, {"window": 9, "sinks": 3}])
@pytest.mark.parametrize(("dtype", "vector"), [(jnp.bfloat16, 2 * 4), (jnp.int8, 4 + 4)])
def test_bytes_are_those_of_the_arrays(kind, dtype, vector):
    cache = Llama(**SMALL).init_cache(2, dtype=dtype, **kind)
    # Layers, keys and values, texts, slots, heads; then the mask, texts' lengths and the length.
    assert cache.bytes == 2 * 2 * 2 * 12 * 2 * vector + 2 * 12 + 2 * 4 + 4
    assert cache.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert cache.bytes_per_device == cache.bytes


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(("own", "kept"), [(jnp.bfloat16, jnp.float32), (None, jnp.bfloat16)])
def test_a_cache_may_keep_another_type_than_the_model_computes_in(own, kept, scan):
    module = Llama(**SMALL, scan=scan, param_dtype=own or jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
    cache = jax.eval_shape(lambda: module.init_cache(2, 12, kept))
    states = jax.eval_shape(
        lambda variables, cache: module.apply(variables, TOKENS, cache=cache), variables, cache
    )
    assert states.last.dtype == (own or jnp.float32)
    assert jax.tree.map(lambda x: x.dtype, states.cache) == jax.tree.map(lambda x: x.dtype, cache)


@pytest.mark.slow
def test_generation_through_each_cache(variables):
    module = Llama(**SMALL)
    truth = generate(module, variables, TOKENS, LEFT, steps=4)
    assert len(np.unique(truth)) > 2
    bits = module.init_cache(2, 14, jnp.int8)
    assert generate(module, variables, TOKENS, LEFT, steps=4, cache=bits).shape == truth.shape
    # One that has begun to read, and keeps all of so short a text.
    further = jax.jit(
        lambda cache: module.apply(variables, TOKENS[:, :4], LEFT[:, :4], cache=cache)
    )
    begun = further(module.init_cache(2, window=13, sinks=1)).cache
    rest = (TOKENS[:, 4:], LEFT[:, 4:])
    found = generate(module, variables, *rest, steps=4, cache=begun)
    np.testing.assert_array_equal(found, truth)
    full = module.init_cache(2, 14).replace(length=jnp.int32(4))
    with pytest.raises(ValueError, match=r"no room for .* \(2, 11\) after the 4 that it holds"):
        generate(module, variables, *rest, steps=5, cache=full)


def test_misuse(variables):
    module = Llama(**SMALL)
    for options in ({}, {"length": 3, "window": 3}):
        with pytest.raises(ValueError, match="a length or a window, got length="):
            module.init_cache(2, **options)
    for options in ({"window": 0}, {"window": 3, "sinks": -1}, {"length": 3, "sinks": 1}):
        with pytest.raises(ValueError, match="window is at least 1 and its sinks at least 0"):
            module.init_cache(2, **options)
    for dtype in (jnp.uint8, jnp.int16, jnp.int32, jnp.bool_):
        with pytest.raises(ValueError, match=f"dtype={jnp.dtype(dtype)}, expected a floating type"):
            module.init_cache(2, 3, dtype)
    with pytest.raises(ValueError, match=r"shape \(2, 10\) has no room for .* \(2, 11\)"):
        generate(module, variables, TOKENS, steps=1, cache=module.init_cache(2, 10))
    dynamic = Llama(**SMALL, positions=8, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ValueError, match="a cache of any number of tokens is longer than the 8"):
        dynamic.apply(variables, TOKENS, cache=dynamic.init_cache(2, window=4))


CHILD = """
import json
import jax, jax.numpy as jnp, numpy as np
from rml.models import Llama
from rml.training import make_mesh
from rml.training.mesh import use_mesh

module = Llama(vocabulary=20, width=16, depth=1, heads=4, mlp=24, kv_heads=2)
tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 5)), jnp.int32)
variables = jax.jit(module.init)(jax.random.key(0), tokens)
found = []
for model in (1, 2):
    with use_mesh(make_mesh({"model": model}, jax.devices()[:model])):
        cache = jax.jit(lambda: module.init_cache(2, 8))()
        states = jax.jit(lambda v, c: module.apply(v, tokens, cache=c))(variables, cache)
        bytes = [cache.bytes_per_device, states.cache.bytes_per_device]
        found.append([np.asarray(states.last).tolist(), *bytes])
print(json.dumps([*found, cache.mask.nbytes + cache.read.nbytes + cache.length.nbytes]))
"""


@pytest.mark.slow
def test_heads_are_split_over_the_model_axis(forked):
    (last, one, read_one), (other, two, read_two), small = forked(CHILD, devices=2)
    np.testing.assert_allclose(last, other, atol=1e-5)
    assert one == read_one
    assert two == read_two == (one - small) // 2 + small
