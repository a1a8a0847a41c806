"""Attention by name in the models: numbers, memory, layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention import attention_of
from rml.models import Llama
from rml.models.attention import attend
from rml.ops import block_sparse_attention
from rml.ops.attention_parts import Visible

EXACT = attention_of("exact", block=64)
LLAMA = Llama(vocabulary=20, width=16, depth=2, heads=4, mlp=24, kv_heads=2)


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def heads_of(length):
    shapes = [jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)] * 3
    return lambda *x: EXACT(*x, Visible(causal=True))[0], shapes


def gradient_of(length):
    run, shapes = heads_of(length)
    return jax.grad(lambda *x: run(*x).sum(), argnums=(0, 1, 2)), shapes


def model_of(length):
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    module = LLAMA.clone(attention=(EXACT, attention_of("window", width=100, block=64)))
    few = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    return module.apply, [jax.eval_shape(LLAMA.init, jax.random.key(0), few), tokens]


@pytest.mark.slow
@pytest.mark.parametrize("made", [heads_of, gradient_of, model_of])
def test_memory_of_a_causal_text_grows_with_its_length(made):
    sizes = []
    for length in (2048, 4096):
        run, shapes = made(length)
        compiled = jax.jit(run).lower(*shapes).compile()
        assert f"{length},{length}]" not in compiled.as_text()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 2.1 * sizes[0]


@pytest.mark.slow
def test_named_attention_gives_what_the_method_gives():
    query, key, value = (draw(i, 2, 12, heads, 6) for i, heads in enumerate((4, 2, 2)))
    visible = Visible(jnp.arange(12) < jnp.array([[12], [7]]), causal=True)
    arrays = query, key, value
    pattern = np.tril(np.ones((1, 3, 3), bool))

    @jax.jit
    def run(*arrays):
        methods = {
            "plain": (attend, visible),
            "exact": (EXACT, visible),
            "window": (attention_of("window", width=4, sinks=1), visible),
            "plain window": (attend, visible._replace(window=4, sinks=1)),
            # It gives a part.
            "pattern": (attention_of(block_sparse_attention, pattern=pattern, block=4), visible),
        }
        found = {name: method(*arrays, own) for name, (method, own) in methods.items()}
        assert found["exact"][1] is None
        return {name: out for name, (out, _) in found.items()}

    found = run(*arrays)
    np.testing.assert_allclose(found["exact"], found["plain"], atol=2e-6)
    np.testing.assert_allclose(found["window"], found["plain window"], atol=2e-6)
    np.testing.assert_allclose(found["pattern"], found["plain"], atol=2e-6)
    halves = (x.astype(jnp.bfloat16) for x in arrays)
    half = jax.eval_shape(lambda *x: attention_of("exact")(*x, visible)[0], *halves)
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="unknown attention 'windw'; did you mean 'window'"):
        attention_of("windw")


@pytest.mark.slow
def test_a_model_in_blocks_equals_the_dense_one():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 12)), jnp.int32)
    mask = np.arange(12) < np.array([[12], [7]])
    shapes = nn.unbox(jax.eval_shape(LLAMA.init, jax.random.key(0), tokens))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    found = [
        np.asarray(jax.jit(LLAMA.clone(attention=attention).apply)(variables, tokens, mask))[mask]
        for attention in (attend, EXACT)
    ]
    np.testing.assert_allclose(*found, atol=2e-5)
