"""Patterns, coverage and attention of S2-attention, and the cache that keeps a head's shard."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention import (
    check_coverage,
    coverage,
    keeps_left,
    pattern_bias,
    s2_attention,
    shard_pattern,
    work,
)
from rml.errors import UserError
from rml.evaluation.costs import program_flops
from rml.models import Llama, generate, hybrid_cache, sharded_cache
from rml.models.attention import attend
from rml.models.sharded_cache import shards_of
from rml.ops.attention_blocks import Blocks
from rml.ops.attention_parts import Visible, merge_parts
from rml.ops.block_sparse import block_sparse_attention, block_visits

AUTHORS = {
    True: "10000000 11000000 11100000 10110000 10011000 10011100 10010110 10010011",
    False: "11001001 11100100 01110010 00111001 10011100 01001110 00100111 10010011",
}
"""The patterns of dkernel's tests (github.com/linxihui/dkernel, tests/test_utils.py)."""
BLOCK, TOKENS = 4, jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 30)), jnp.int32)
LEFT = jnp.arange(30) >= jnp.array([[0], [3]])


@pytest.mark.parametrize("causal", [True, False])
def test_patterns_of_the_authors_tests(causal):
    found = shard_pattern(8, heads=2, shards=1, local=2, stride=3, causal=causal)
    wanted = [[int(bit) for bit in row] for row in AUTHORS[causal].split()]
    np.testing.assert_array_equal(found, [wanted, wanted])


@pytest.mark.slow
def test_windows_of_both_directions_have_widths_of_their_own():
    options = {"heads": 2, "shards": 1, "local": 3, "stride": 4, "causal": False}
    found = shard_pattern(12, right=2, **options)
    seen = np.zeros((12, 12), bool)
    for q in range(12):
        for n in range(12):
            x = max(0, q - n - 3 + 1) + max(0, n - q - 2 + 1)
            seen[q, n] = x % 4 == 0
    np.testing.assert_array_equal(found, [seen, seen])
    assert found[0, 4].nonzero()[0].tolist() == [2, 3, 4, 5, 9]
    # Without it both are as wide.
    both = shard_pattern(12, **options)
    np.testing.assert_array_equal(both, shard_pattern(12, right=3, **options))
    np.testing.assert_array_equal(both, both.swapaxes(1, 2))
    arrays = [jnp.asarray(draw(i, 2, np.float32)) for i in range(3)]
    run = functools.partial(s2_attention, block=BLOCK, local=1, stride=9, right=2, shards=1)
    out = jax.jit(run)(*arrays)
    places = np.arange(30) // BLOCK
    ahead = places[:, None] - places
    mask = np.isin(ahead, (0, -1))  # the stride is beyond all blocks
    logits = np.where(mask, np.asarray(arrays[0] @ arrays[1].swapaxes(2, 3)) / 6**0.5, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = weights / weights.sum(-1, keepdims=True) @ np.asarray(arrays[2])
    np.testing.assert_allclose(out, wanted, atol=3e-6)


def test_each_head_has_its_residue_and_all_cover_only_with_enough_shards():
    options = {"heads": 8, "local": 2, "stride": 4}
    pattern = shard_pattern(16, shards=4, offset=1, **options)
    far = [set(np.flatnonzero(pattern[head, 15, :14])) for head in range(8)]
    assert far == [{k for k in range(14) if (k + head // 2 + 1) % 4 == 0} for head in range(8)]
    check_coverage(pattern)
    assert coverage(pattern) == 1
    # Eight heads and a stride of 16: steps of two blocks, so that every second one is seen.
    wide = shard_pattern(40, heads=8, shards=8, local=1, stride=16)
    assert set(np.flatnonzero(wide[:, 39, :39].any(axis=0)) % 2) == {0}
    with pytest.raises(UserError, match=r"block 2 of queries see block 1 of keys, nor \d+ further"):
        check_coverage(wide)
    dense = shard_pattern(16, shards=4, dense_heads=1, **options)
    assert dense[6:].sum() == 2 * 16 * 17 / 2
    assert not dense[5, 15, :14].all()
    assert coverage(shard_pattern(16, shards=1, **options)) < 0.6
    # Four shards of eight heads move by the stride over the heads, not over the shards.
    few = shard_pattern(24, heads=8, shards=4, local=1, stride=8)
    for head in range(8):
        wanted = {k for k in range(23) if (k + head // 2) % 8 == 0}
        assert set(np.flatnonzero(few[head, 23, :23])) == wanted


@pytest.mark.parametrize(("blocks", "share", "kept"), [(128, 0.329, 0.234), (512, 0.179, 0.152)])
def test_shares_of_work_and_cache_are_those_of_phi_3(blocks, share, kept):
    pattern = shard_pattern(blocks, heads=8, shards=8, local=16, stride=8)
    assert work(pattern) == pytest.approx(share, abs=5e-4)
    # The window and every eighth block before it.
    most = 16 + -(-(blocks - 16) // 8)
    assert pattern.sum(axis=2).max() == most
    assert most / blocks == pytest.approx(kept, abs=5e-4)
    assert keeps_left(pattern)


@pytest.mark.parametrize("options", [{"local": 2, "stride": 1}, {"local": 9, "stride": 4}])
def test_a_stride_of_1_or_a_long_window_sees_everything(options):
    pattern = shard_pattern(9, heads=4, shards=2, **options)
    np.testing.assert_array_equal(pattern, np.tril(np.ones((4, 9, 9), bool)))
    assert work(pattern) == 1


@pytest.mark.slow
def test_parts_of_keys_merge_to_the_whole():
    """The last queries of a text, of whose blocks of keys each part has some in every row."""
    query, key, value = (jnp.asarray(draw(i, 4, np.float32)) for i in range(3))
    query, pattern = query[:, :, 16:], shard_pattern(8, heads=4, shards=2, local=2, stride=2)[:, 4:]

    @jax.jit
    def run(query, key, value):
        visible = Visible(LEFT, True, start=16)
        whole = block_sparse_attention(query, key, value, pattern, visible, block=BLOCK)
        parts = [
            block_sparse_attention(
                query, key[:, :, near], value[:, :, near], pattern[..., blocks],
                Visible(LEFT[:, near], True, start=start), block=BLOCK,
            )
            for near, blocks, start in (
                (slice(16), slice(4), 16), (slice(16, None), slice(4, None), 0)
            )
        ]  # fmt: skip
        return whole, merge_parts(*parts), parts[0]

    whole, merged, first = run(query, key, value)
    for own, wanted in zip(merged, whole, strict=True):
        np.testing.assert_allclose(own, wanted, atol=2e-6)
    assert np.abs(first.out - whole.out).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads is 0, expected at least 1"),
        ({"shards": 3}, "shards is 3, expected a divisor of 4 heads"),
        ({"local": 0}, "local is 0, expected at least 1"),
        ({"dense_heads": 5}, "dense_heads is 5, expected 0 to shards=4"),
        ({"right": 2}, "right is 2, expected none of causal attention"),
        ({"right": 0, "causal": False}, "right is 0, expected at least 1"),
    ],
)
def test_wrong_numbers_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        shard_pattern(8, **{"heads": 4, "shards": 4, "local": 2, "stride": 4} | changes)


def draw(seed, heads, dtype):
    return np.random.default_rng(seed).normal(size=(2, heads, 30, 6)).astype(dtype)


@pytest.mark.slow
def test_it_equals_dense_attention_under_the_pattern_in_float64():
    query, key, value = (draw(i, 4 if i == 0 else 2, np.float64) for i in range(3))
    options = {"block": BLOCK, "local": 2, "stride": 2, "offset": 1}
    run = jax.jit(lambda *x: s2_attention(*x, Visible(LEFT, True), **options))
    found = run(*(x.astype(np.float32) for x in (query, key, value)))
    places = np.arange(30)
    block, shard = places // BLOCK, np.arange(4)[:, None] // 2
    far = ((block + shard + 1) % 2 == 0)[:, None]
    seen = far | (block[:, None] - block < 2)
    seen = seen & (places[:, None] >= places) & np.asarray(LEFT)[:, None, None]
    logits = np.einsum("bhtk,bhsk->bhts", query, key.repeat(2, axis=1)) / 6**0.5
    weights = np.where(seen, np.exp(logits), 0)
    total = weights.sum(-1, keepdims=True)
    wanted = weights / np.where(total > 0, total, 1) @ value.repeat(2, axis=1)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    # The same by a masked matrix, as small models train with it.
    pattern = shard_pattern(8, heads=4, shards=2, local=2, stride=2, offset=1)
    swapped = (x.astype(np.float32).swapaxes(1, 2) for x in (query, key, value))
    bias = pattern_bias(pattern, BLOCK)
    masked, _ = jax.jit(lambda *x: attend(*x, Visible(LEFT, True), bias=bias))(*swapped)
    rows = np.asarray(LEFT)
    np.testing.assert_allclose(np.asarray(masked)[rows], wanted.swapaxes(1, 2)[rows], atol=2e-6)


def test_heads_that_do_not_cover_are_refused_unless_asked_for():
    arrays = [jnp.asarray(draw(i, 2, np.float32)) for i in range(3)]
    options = {"block": BLOCK, "local": 1, "stride": 4}
    with pytest.raises(UserError, match="block 2 of queries see block 1 of keys"):
        s2_attention(*arrays, Visible(causal=True), **options)
    assert s2_attention(*arrays, Visible(causal=True), covering=False, **options).shape
    with pytest.raises(UserError, match="block is 0, expected at least 1"):
        s2_attention(*arrays, block=0)


def test_a_text_longer_than_the_pattern_is_refused():
    bias = pattern_bias(np.ones((1, 2, 3), bool), BLOCK)
    assert bias(jnp.arange(8), jnp.arange(12)).shape == (1, 8, 12)
    for t, s in ((9, 12), (8, 13)):
        with pytest.raises(ValueError, match=f"{t} queries and {s} keys .* at most 8 and 12"):
            bias(jnp.arange(t), jnp.arange(s))


def made(depth, attention):
    module = Llama(20, 16, depth, heads=4, kv_heads=2, mlp=24, attention=attention)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), TOKENS))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype)  # noqa: E731
    return module, jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def model():
    pattern = shard_pattern(8, heads=4, shards=2, local=2, stride=2)
    masked = functools.partial(attend, bias=pattern_bias(pattern, BLOCK))
    return pattern, *made(2, masked)


@pytest.fixture(scope="module")
def hybrid(model):
    """A model of which the first and third of four layers see all, and its cache."""
    pattern, masked = model[0], model[1].attention
    module, variables = made(4, (attend, masked, attend, masked))
    kinds = (False, True, False, True)
    empty = functools.partial(hybrid_cache, module, 2, pattern, sharded=kinds, block=BLOCK)
    return empty, module, variables


@pytest.fixture(scope="module")
def whole(model):
    """Hidden states of the model that reads the texts at once."""
    return np.asarray(jax.jit(model[1].apply)(model[2], TOKENS, LEFT))


@pytest.fixture(scope="module")
def whole_hybrid(hybrid):
    return np.asarray(jax.jit(hybrid[1].apply)(hybrid[2], TOKENS, LEFT))


def decoded(module, variables, cache, whole):
    """Greatest error of hidden states that are read some tokens at a time, over their greatest."""
    further = jax.jit(
        lambda tokens, mask, cache: module.apply(variables, tokens, mask, cache=cache)
    )
    found, at = [], 0
    for size in (11, 1, 1, 1, 1, 1, 11, 1, 1, 1):
        part = np.s_[:, at : at + size]
        states = further(TOKENS[part], LEFT[part], cache)
        cache, at = states.cache, at + size
        found.append(states.last)
    assert int(cache.length) == 30
    error = np.abs(np.concatenate(found, axis=1) - whole)
    return error[np.asarray(LEFT)].max() / np.abs(whole).max()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_decoding_with_the_sharded_cache_equals_reading_at_once(model, whole, dtype):
    pattern, module, variables = model
    cache = sharded_cache(module, 2, pattern, block=BLOCK, dtype=dtype)
    assert decoded(module, variables, cache, whole) < (1e-5 if dtype == jnp.float32 else 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_decoding_with_some_layers_dense_equals_reading_at_once(hybrid, whole_hybrid, dtype):
    empty, module, variables = hybrid
    error = decoded(module, variables, empty(dtype=dtype), whole_hybrid)
    assert error < (1e-5 if dtype == jnp.float32 else 0.03)


@pytest.mark.slow
def test_a_cache_of_two_kinds_has_the_bytes_of_each(hybrid, model):
    empty, module, variables = hybrid
    cache, pattern = empty(), model[0]
    sharded, full = sharded_cache(module, 2, pattern, block=BLOCK), module.init_cache(2, 32)
    assert full.bytes - cache.bytes == (full.bytes - sharded.bytes) // 2 > 0
    found = generate(module, variables, TOKENS[:, :9], steps=12, cache=cache)
    np.testing.assert_array_equal(found, generate(module, variables, TOKENS[:, :9], steps=12))
    for kinds in ((True, False, True), (True,) * 4):
        with pytest.raises(UserError, match="for 4 layers, expected an entry for each, of both"):
            hybrid_cache(module, 2, pattern, sharded=kinds, block=BLOCK)


@pytest.mark.slow
def test_it_keeps_what_heads_may_still_read(model):
    pattern, module, _ = model
    most = pattern.reshape(2, 2, 8, 8).any(axis=1).sum(axis=2).max(axis=1)
    cache, full = sharded_cache(module, 2, pattern, block=BLOCK), module.init_cache(2, 32)
    assert cache.places == most.sum() == 10
    tokens = 2 * 4 * 2 * 4  # layers, width of a head, bytes, keys and values: of two texts
    assert full.bytes - cache.bytes == (2 * 8 - cache.places) * BLOCK * tokens * 2
    assert cache.bytes_per_device == cache.bytes
    with pytest.raises(UserError, match="window=5 in a model for a sharded cache, expected none"):
        sharded_cache(module.clone(window=5), 2, pattern, block=BLOCK)
    # Dense heads keep everything, and only they do.
    dense = shard_pattern(8, heads=4, shards=2, local=2, stride=2, dense_heads=1)
    assert sharded_cache(module, 2, dense, block=BLOCK).places == 8 + most[0]


@pytest.mark.parametrize("kind", ["window", "sinks", "model"])
def test_blocks_are_not_told_by_places_of_a_window_that_moves(model, kind):
    _, module, variables = model

    def read(module, cache):
        return jax.eval_shape(
            lambda cache: module.apply(variables, TOKENS[:, :3], cache=cache), cache
        )

    assert read(module, module.init_cache(2, 32)).last.shape == (2, 3, 16)
    cache = module.init_cache(2, window=5, sinks=2 * (kind == "sinks"))
    if kind == "model":
        module, cache = module.clone(window=5), module.init_cache(2, 32)
    with pytest.raises(ValueError, match="bias of blocks takes no window whose start is an array"):
        read(module, cache)


@pytest.mark.slow
def test_it_generates_as_the_full_cache_does(model):
    pattern, module, variables = model
    cache = sharded_cache(module, 2, pattern, block=BLOCK)
    found = generate(module, variables, TOKENS[:, :9], steps=20, cache=cache)
    np.testing.assert_array_equal(found, generate(module, variables, TOKENS[:, :9], steps=20))
    with pytest.raises(ValueError, match="no room"):
        generate(module, variables, TOKENS[:, :9], steps=25, cache=cache)


def test_patterns_that_a_cache_cannot_follow_are_refused():
    back = np.tril(np.ones((2, 4, 4), bool))
    back[:, 2, 0] = False
    with pytest.raises(UserError, match="head 0 of keys comes back to block 0 at block 3"):
        shards_of(back, 2)
    assert not keeps_left(back[:1])
    relative = np.tril(shard_pattern(8, heads=1, shards=1, local=2, stride=3, causal=False))
    absolute = shard_pattern(8, heads=4, shards=2, local=2, stride=3)
    for pattern, keeps in ((relative, False), (absolute, True), (absolute[::2], True)):
        assert keeps_left(pattern) == keeps
    with pytest.raises(UserError, match="hides a block's own"):
        shards_of(np.tril(np.ones((2, 4, 4), bool), -1), 2)


@pytest.mark.slow
@pytest.mark.parametrize("block", [64, 256])
def test_counted_operations_follow_the_pattern(block):
    """A program counts one step a block of queries; there are as many as are visited."""
    tokens, width, options = 8192, 8, {"block": block, "local": 1024 // block, "stride": 3}
    pattern = shard_pattern(
        tokens // block, heads=9, shards=3, local=options["local"], stride=options["stride"]
    )
    arrays = [jnp.zeros((1, heads, tokens, width)) for heads in (9, 3, 3)]
    counted = program_flops(lambda *a: s2_attention(*a, Visible(causal=True), **options), *arrays)
    by_group = pattern[::3]
    static = Blocks(rows=1, columns=1, keys=tokens, heads=9, scale=1.0, causal=True, sinks=0)
    shape, visits = block_visits(by_group, static, block)
    steps = np.asarray(visits.number)
    assert counted == 4 * width * 3 * shape.rows * shape.columns * steps.size
    pairs = 3 * steps.sum() * shape.rows * shape.columns
    named = pattern.sum() * block**2
    assert named <= pairs <= 1.3 * named
    assert named < 0.6 * 9 * tokens**2 / 2
