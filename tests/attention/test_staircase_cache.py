"""A cache that loses bits with age: the steps by hand, exact limits, bytes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention.staircase_cache import (
    CHANNELS,
    TOKENS,
    Staircase,
    append,
    bits_by_age,
    bytes_held,
    init_stairs,
    lowered,
    read,
    staircase_cache,
)
from rml.errors import UserError
from rml.models import Llama, read_in_chunks
from rml.ops.quantize import group_dequantize, group_quantize

CHUNK, GROUP, HEADS, WIDTH = 8, 4, 2, 8
STAIRS = Staircase((32, 8, 4, 2), CHUNK, GROUP)
X = np.random.default_rng(0).standard_normal((1, 48, HEADS, WIDTH)).astype(np.float32)


def rounded(x, bits, axis):
    if bits > 8:
        return x
    codes = group_quantize(jnp.asarray(x), bits=bits, group=GROUP, axis=axis)
    return np.asarray(group_dequantize(codes, axis=axis))


def by_hand(tokens, bits, axis):
    """Every chunk is quantised at each of the steps that it has gone down, one after another."""
    length = tokens.shape[1]
    held = length % CHUNK
    out = np.array(tokens)
    for chunk in range(length // CHUNK):
        age = length // CHUNK - chunk  # 1: the newest
        own = out[:, chunk * CHUNK : (chunk + 1) * CHUNK]
        for step in range(1, age + 1):
            own = rounded(own, bits[min(step, len(bits) - 1)], axis)
        out[:, chunk * CHUNK : (chunk + 1) * CHUNK] = own
    assert held == length - length // CHUNK * CHUNK
    return out


@functools.partial(jax.jit, static_argnames=("staircase", "axis", "sizes"))
def filled(tokens, staircase, axis, sizes):
    """Reads after each of some calls."""
    stairs = init_stairs((1, 0, HEADS, WIDTH), staircase, chunks=6, axis=axis)
    found, length = [], 0
    for size in sizes:
        new = tokens[:, length : length + size]
        stairs = append(stairs, new, jnp.int32(length), staircase, axis=axis)
        length += size
        found.append(read(stairs, jnp.int32(length), staircase, slots=48)[:, :length])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("axis", [TOKENS, CHANNELS])
def test_chunks_go_down_a_step_at_a_time(axis):
    """At once, token by token, and several chunks in one call."""
    sizes = (3, 5, 1, 20, 12, 7)
    found = filled(X, STAIRS, axis, sizes)
    for length, own in zip(np.cumsum(sizes), found, strict=True):
        np.testing.assert_allclose(own, by_hand(X[:, :length], STAIRS.bits, axis), atol=1e-6)


@pytest.mark.slow
def test_two_steps_are_a_residual_before_a_uniform_cache():
    uniform = Staircase((32, 2), CHUNK, GROUP)
    (found,) = filled(X, uniform, TOKENS, (21,))
    np.testing.assert_array_equal(found[:, 16:], X[:, 16:21])
    # Chunks go on being quantised at the last step only once.
    np.testing.assert_allclose(found[:, :16], rounded(X[:, :16], 2, TOKENS), atol=1e-6)


@pytest.mark.slow
def test_quantising_again_costs_next_to_nothing_because_levels_are_nested():
    """3 divides 15 and 15 divides 255, and a group keeps its ends: what is left is rounding."""
    (found,) = filled(X, STAIRS, TOKENS, (48,))
    once = rounded(X[:, :24], 2, TOKENS)
    again, single = (np.square(y - X[:, :24]).mean() for y in (found[:, :24], once))
    assert again == pytest.approx(single, rel=0.02)
    assert (np.abs(found[:, :24] - once) > 0.01).mean() < 0.1


def test_what_is_beyond_half_precision_is_its_greatest_number():
    """65,504; of bfloat16 too, which has none between 65,280 and 65,536."""
    x = jnp.asarray([1e5, -2e5, 65_400.0, 3.0])[:, None, None]
    for own in (x, x.astype(jnp.bfloat16)):
        kept = np.asarray(lowered(own, 16, 1, TOKENS), np.float32)
        np.testing.assert_array_equal(kept[[0, 1, 3], 0, 0], [65_504, -65_504, 3])
        assert np.isfinite(kept).all()
    (found,) = filled(1e6 * X, Staircase((16, 4), CHUNK, GROUP), TOKENS, (3,))
    np.testing.assert_array_equal(
        found, np.clip(1e6 * X[:, :3], -65_504, 65_504).astype(np.float16)
    )


def test_bits_fall_with_age_and_bytes_are_counted():
    ages = bits_by_age(STAIRS, 8 * 5 + 3)
    np.testing.assert_array_equal(ages, [32] * 3 + [8] * 8 + [4] * 8 + [2] * 24)
    # Of 43 tokens 40 are in groups of 4: keys 10 groups a channel, values 2 a token.
    bits = 3 * 32 + 8 * 8 + 8 * 4 + 24 * 2
    wanted = 2 * bits * WIDTH // 8 + 4 * (10 * WIDTH + 40 * 2)
    assert bytes_held(STAIRS, 43, width=WIDTH) == wanted


@pytest.fixture(scope="module")
def model():
    module = Llama(vocabulary=13, positions=64, width=16, depth=2, heads=2, mlp=16, tied=True)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 13, (2, 35)))
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype)  # noqa: E731
    return module, jax.tree.map(draw, shapes), tokens


@pytest.mark.slow
def test_a_decoder_reads_exactly_with_all_bits_and_nearly_with_few(model):
    module, variables, tokens = model
    whole = jax.jit(module.apply)(variables, tokens)
    errors = []
    for bits in ((32, 32, 32), (32, 8, 2)):
        cache = staircase_cache(module, 2, 35, Staircase(bits, CHUNK, GROUP))
        hidden, cache = read_in_chunks(module, variables, tokens, cache=cache, chunk=7)
        errors.append(np.abs(np.asarray(hidden - whole)).max())
        assert cache.slots == 40
        assert int(cache.length) == 35
        first = hidden[:, :7]  # what a call brings is not quantised for itself
        np.testing.assert_allclose(first, whole[:, :7], atol=2e-5)
    assert errors[0] < 2e-5
    assert 0.01 < errors[1] < np.abs(whole).max()


@pytest.mark.slow
def test_the_room_of_a_cache_is_its_steps_and_chunks(model):
    module = model[0]
    staircase = Staircase((16, 8, 4, 2), CHUNK, GROUP)
    cache = staircase_cache(module, 1, 48, staircase)
    kept = cache.replace(mask=None, read=None, length=None).bytes
    # The residual, two rings and four old chunks, of 2 layers and 2 heads of width 8.
    a_chunk = CHUNK * WIDTH * 2 * 2
    groups = 4 * a_chunk // GROUP * 6  # two numbers of 16 bits, 6 chunks
    assert kept == 2 * (a_chunk * 2 + a_chunk + a_chunk // 2 + 4 * a_chunk // 4 + groups)
    with pytest.raises(ValueError, match="no room"):
        read_in_chunks(*model[:2], jnp.zeros((1, 49), int), cache=cache, chunk=6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("staircase", "message"),
    [
        (Staircase((8, 4), 8, 4), "expected 16 or 32 and then"),
        (Staircase((16, 2, 4), 8, 4), "expected not to rise"),
        (Staircase((16, 4), 8, 3), "chunk=8 and group=3, expected a multiple"),
        (Staircase((16, 4), 15, 5), "heads of width 8, expected a multiple of group=5"),
    ],
)
def test_wrong_staircases_are_named(model, staircase, message):
    with pytest.raises(UserError, match=message):
        staircase_cache(model[0], 1, 16, staircase)
