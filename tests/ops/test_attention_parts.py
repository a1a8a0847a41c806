"""Attention in parts against softmax attention in float64, values and gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models.attention import attend
from rml.ops.attention_parts import Visible, attend_part, merge_parts
from rml.ops.block_sparse import block_sparse_attention
from rml.ops.blocked_attention import attend_in_blocks
from rml.ops.ring_attention import ring_attention


def draw(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def exact(query, key, value, seen, d_out, d_lse, scale):
    """Output, log-sum-exp and the three gradients; a row that sees nothing gives zeros."""
    query, key, value, d_out, d_lse = (
        np.asarray(x, np.float64) for x in (query, key, value, d_out, d_lse)
    )
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat(groups, axis=1) for x in (key, value))
    logits = np.where(seen, query @ key.swapaxes(2, 3) * scale, -np.inf)
    some = seen.any(axis=-1)
    top = np.where(some, logits.max(axis=-1), 0.0)[..., None]
    total = np.exp(logits - top).sum(axis=-1, keepdims=True)
    p = np.exp(logits - top) / np.where(total == 0, 1.0, total)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    dp = d_out @ value.swapaxes(2, 3)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True) + np.where(some, d_lse, 0.0)[..., None])

    def to_groups(x):
        return x.reshape(x.shape[0], -1, groups, *x.shape[2:]).sum(axis=2)

    gradients = (
        scale * ds @ key,
        to_groups(scale * ds.swapaxes(2, 3) @ query),
        to_groups(p.swapaxes(2, 3) @ d_out),
    )
    return p @ value, lse, gradients


VISIBLE = {
    "all": Visible(),
    "causal": Visible(causal=True, start=5),
    "padding": Visible(np.array([[True] * 9 + [False] * 10, [False] * 19])),
    "window": Visible(causal=True, window=4, start=6),
    "window on both sides": Visible(window=jnp.int32(3)),
    "window and sinks": Visible(causal=True, window=3, sinks=2, start=6),
    "window on both sides and many sinks": Visible(window=2, sinks=12),
    "window before all keys and sinks": Visible(window=3, sinks=5, start=-9),
}


def mask_of(name, b=2, t=13, s=19):
    """Who sees whom, written down without the code under test."""
    seen = np.zeros((b, t, s), bool)
    visible = VISIBLE[name]
    for i in range(t):
        for j in range(s):
            place = i + visible.start
            seen[:, i, j] = (not visible.causal or j <= place) and (
                visible.window is None or abs(place - j) < visible.window or j < visible.sinks
            )
    return seen if visible.keys is None else seen & visible.keys[:, None]


@pytest.mark.parametrize("name", VISIBLE)
def test_dense_visibility_is_what_it_says(name):
    assert (np.broadcast_to(VISIBLE[name].dense(13, 19), (2, 13, 19)) == mask_of(name)).all()


@pytest.mark.slow
@pytest.mark.parametrize("block", [4, 64])
@pytest.mark.parametrize("name", VISIBLE)
def test_blocks_equal_softmax_in_float64(name, block):
    query, key, value = draw(0, 2, 4, 13, 8), draw(1, 2, 2, 19, 8), draw(2, 2, 2, 19, 6)
    d_out, d_lse = draw(3, 2, 4, 13, 6), draw(4, 2, 4, 13)
    seen = mask_of(name)[:, None]
    out, lse, gradients = exact(query, key, value, seen, d_out, d_lse, 0.7)

    @jax.jit
    def ours(query, key, value):
        def part(*arrays):
            return attend_in_blocks(*arrays, VISIBLE[name], scale=0.7, block=block)

        found, backward = jax.vjp(part, query, key, value)
        some = jnp.asarray(seen.any(axis=-1))
        return found, backward(type(found)(jnp.asarray(d_out), jnp.where(some, d_lse, 0.0)))

    found, found_gradients = ours(query, key, value)
    np.testing.assert_allclose(found.out, out, atol=2e-6)
    np.testing.assert_allclose(found.lse, lse, atol=2e-6)
    for ours_, expected in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(ours_, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 3, 16])
@pytest.mark.parametrize("causal", [True, False])
def test_long_blocks_of_queries_equal_softmax_in_float64(causal, start):
    """Of a text of eight blocks twice as many queries as keys are taken at once."""
    query, key, value = draw(0, 1, 4, 70, 8), draw(1, 1, 2, 85, 8), draw(2, 1, 2, 85, 6)
    d_out, d_lse = draw(3, 1, 4, 70, 6), draw(4, 1, 4, 70)
    seen = np.arange(85) <= start + np.arange(70)[:, None] if causal else np.ones((70, 85), bool)
    out, lse, gradients = exact(query, key, value, seen[None, None], d_out, d_lse, 0.7)
    visible = Visible(causal=causal, start=start)

    @jax.jit
    def ours(query, key, value):
        def part(*arrays):
            return attend_in_blocks(*arrays, visible, scale=0.7, block=8)

        found, backward = jax.vjp(part, query, key, value)
        return found, backward(type(found)(jnp.asarray(d_out), jnp.asarray(d_lse)))

    found, found_gradients = ours(query, key, value)
    np.testing.assert_allclose(found.out, out, atol=2e-6)
    np.testing.assert_allclose(found.lse, lse, atol=2e-6)
    for ours_, expected in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(ours_, expected, atol=1e-5)


@pytest.mark.slow
def test_keys_after_half_a_block_of_queries_are_not_computed_for_it():
    query, key, value = (draw(i, 1, 1, 64, 4) for i in range(3))
    run = jax.jit(lambda *arrays: attend_in_blocks(*arrays, Visible(causal=True), block=8).out)
    clean = np.asarray(run(query, key, value))
    value[:, :, 56:] = np.nan
    found = np.asarray(run(query, key, value))
    assert (found[:, :, :56] == clean[:, :, :56]).all()
    assert np.isnan(found[:, :, 56:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "constant"])
@pytest.mark.parametrize("each", [True, False], ids=["a pattern a head", "one pattern"])
def test_block_sparse_equals_softmax_under_the_pattern(each, drawn):
    query, key, value = draw(0, 2, 4, 13, 8), draw(1, 2, 2, 19, 8), draw(2, 2, 2, 19, 6)
    d_out, d_lse = draw(3, 2, 4, 13, 6), draw(4, 2, 4, 13)
    pattern = draw(5, 4 if each else 1, 4, 5) > 0
    pattern[:, np.arange(4), np.arange(4)] = True
    # A block of queries that sees nothing; of a constant one whose blocks are all in the future.
    pattern[0, 1] = (np.arange(5) == 4) & (not drawn)
    seen = pattern.repeat(4, axis=1).repeat(4, axis=2)[:, :13, :19] & mask_of("causal")[:, None]
    out, lse, gradients = exact(query, key, value, seen, d_out, d_lse, 0.7)

    own = jnp.asarray(pattern) if drawn else pattern

    @jax.jit
    def ours(query, key, value):
        def part(*arrays):
            return block_sparse_attention(*arrays, own, VISIBLE["causal"], scale=0.7, block=4)

        found, backward = jax.vjp(part, query, key, value)
        some = jnp.asarray(np.broadcast_to(seen.any(axis=-1), d_lse.shape))
        return found, backward(type(found)(jnp.asarray(d_out), jnp.where(some, d_lse, 0.0)))

    found, found_gradients = ours(query, key, value)
    np.testing.assert_allclose(found.out, out, atol=2e-6)
    np.testing.assert_allclose(found.lse, np.broadcast_to(lse, found.lse.shape), atol=2e-6)
    for ours_, expected in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(ours_, expected, atol=1e-5)


STEEP = {
    "bias": lambda queries, keys: 2.0 * (keys + 0 * queries[:, None])[None],
    "bias of keys alone": lambda _, keys: 2.0 * keys[None, None],
}
"""ALiBi as Bloom writes it: a row of logits only moves by a slope times the query's place."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STEEP)
@pytest.mark.parametrize("sparse", [False, True], ids=["all blocks", "a pattern"])
def test_queries_that_fill_up_a_block_have_no_gradient(name, sparse):
    """Of 100 queries in blocks of 32; exp of twice a key's place alone is infinite."""
    arrays = draw(0, 1, 2, 100, 8), draw(1, 1, 1, 100, 8), draw(2, 1, 1, 100, 8)
    d_out, bias = jnp.asarray(draw(3, 1, 2, 100, 8)), STEEP[name]

    def blocks(*arrays):
        if sparse:
            pattern = np.ones((1, 4, 4), bool)
            return block_sparse_attention(*arrays, pattern, block=32, bias=bias).out
        return attend_in_blocks(*arrays, block=32, bias=bias).out

    def dense(*arrays):
        found = attend(*(x.swapaxes(1, 2) for x in arrays), bias=bias)[0]
        return found.swapaxes(1, 2)

    @jax.jit
    def gradients(*arrays):
        return [
            jax.grad(lambda *own, of=of: (of(*own) * d_out).sum(), (0, 1, 2))(*arrays)
            for of in (blocks, dense)
        ]

    for ours, wanted in zip(*gradients(*arrays), strict=True):
        assert jnp.abs(wanted).max() > 0.1
        # Logits of 200 have a rounding of 1e-5, which is that of the weights.
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("each", [None, False, True], ids=["all", "one pattern", "each a pattern"])
@pytest.mark.parametrize("shape", [(4, 8, 8), (16, 8, 8), (1, 4, 8), (1, 1, 4), (8, 8)], ids=str)
def test_a_law_of_another_shape_is_refused(each, shape):
    """Of 8 heads, 2 of them of keys, and 8 queries and keys in one block."""
    query, key, value = (jnp.asarray(draw(i, 1, heads, 8, 4)) for i, heads in enumerate((8, 2, 2)))
    message = re.escape(f"shape {shape}, expected that of heads, queries and keys, (8, 8, 8)")
    attention = attend_in_blocks
    if each is not None:
        pattern = jnp.ones((8 if each else 1, 1, 1), bool)
        attention = functools.partial(block_sparse_attention, pattern=pattern)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda *given: attention(*given, block=8, factor=lambda *_: jnp.ones(shape)),
            query, key, value,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("each", [None, False, True], ids=["all", "one pattern", "each a pattern"])
@pytest.mark.parametrize("axes", [(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0), (1, 1, 1)], ids=str)
def test_a_law_is_broadcast_to_heads_queries_and_keys(each, axes):
    """As many heads as queries and keys of a block, so that one could be read as another."""
    arrays = [draw(i, 1, heads, 8, 4) for i, heads in enumerate((4, 2, 2))]
    own = draw(3, *(size if axis else 1 for size, axis in zip((4, 8, 8), axes, strict=True)))

    def bias(queries, keys):
        heads, rows, columns = (
            at if axis else np.zeros(1, int)
            for at, axis in zip((np.arange(4), queries, keys), axes, strict=True)
        )
        return jnp.asarray(own)[heads[:, None, None], rows[:, None], columns]

    @jax.jit
    def both(query, key, value):
        if each is None:
            found = attend_in_blocks(query, key, value, block=4, bias=bias).out
        else:
            pattern = jnp.ones((4 if each else 1, 2, 2), bool)
            found = block_sparse_attention(query, key, value, pattern, block=4, bias=bias).out
        arrays = (x.swapaxes(1, 2) for x in (query, key, value))
        return found, attend(*arrays, bias=lambda *_: jnp.asarray(own))[0].swapaxes(1, 2)

    np.testing.assert_allclose(*both(*arrays), atol=2e-6)


@pytest.mark.slow
def test_block_sparse_does_not_touch_blocks_outside_the_pattern():
    query, key, value = (jnp.asarray(draw(i, 1, 2, 16, 4)) for i in range(3))
    pattern = np.zeros((2, 4, 4), bool)
    pattern[0, :, 1], pattern[1, :, 3] = True, True
    broken = np.array(value)
    broken[0, 0, :4], broken[0, 1, :12] = np.nan, np.nan
    constant = jax.jit(lambda x: block_sparse_attention(query, key, x, pattern, block=4).out)
    assert np.isfinite(constant(broken)).all()
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) for 2 heads and blocks of 8"):
        block_sparse_attention(query, key, value, pattern, block=8)
    pattern[1, 2] = False
    with pytest.raises(ValueError, match="row 2 of head 1 of the pattern names 0 blocks of keys"):
        block_sparse_attention(query, key, value, pattern, block=4)
    run = jax.jit(lambda own: block_sparse_attention(
        query, key, jnp.asarray(broken), own, block=4
    ).out)  # fmt: skip
    drawn = np.asarray(run(pattern))  # of the program, not a constant
    assert np.isfinite(drawn).all()
    assert not drawn[0, 1, 8:12].any()


@pytest.mark.slow
def test_parts_merge_to_the_whole_however_they_are_cut():
    query, key, value = draw(0, 2, 5, 8), draw(1, 2, 12, 8), draw(2, 2, 12, 3)
    d_out, d_lse = draw(3, 2, 5, 3), draw(4, 2, 5)
    mask = draw(5, 2, 5, 12) > -0.3
    mask[0, 1, :7] = False  # a query that one part hides from wholly
    mask[1, 2] = False  # and one that sees nothing at all
    some = mask.any(axis=-1)

    @functools.partial(jax.jit, static_argnums=3)
    def ours(query, key, value, cuts):
        def cut(*arrays):
            query, key, value = arrays
            ends = (*cuts, 12)
            parts = [
                attend_part(query, key[:, a:b], value[:, a:b], jnp.asarray(mask[..., a:b]))
                for a, b in zip((0, *cuts), ends, strict=True)
            ]
            first, *rest = parts
            return merge_parts(merge_parts(*rest), first) if rest else first

        found, backward = jax.vjp(cut, query, key, value)
        return found, backward(type(found)(d_out, jnp.where(some, d_lse, 0.0)))

    arrays = (query[:, None], key[:, None], value[:, None])
    out, lse, gradients = exact(*arrays, mask[:, None], d_out[:, None], d_lse[:, None], 8**-0.5)
    for cuts in ((), (7,), (1, 7, 8)):
        found, found_gradients = ours(query, key, value, cuts)
        np.testing.assert_allclose(found.out, out[:, 0], atol=1e-6)
        np.testing.assert_allclose(found.lse, lse[:, 0], atol=1e-6)
        for ours_, expected in zip(found_gradients, gradients, strict=True):
            np.testing.assert_allclose(ours_, expected[:, 0], atol=3e-6)


@pytest.mark.slow
def test_weights_of_keys_are_those_of_copies():
    query, key, value = draw(0, 5, 8), draw(1, 4, 8), draw(2, 4, 3)
    copies = np.array([1, 3, 2, 1])
    weights = np.log(copies)[None].astype(np.float32)
    attention = jax.jit(attend_part)
    found = attention(query, key, value, log_weights=weights)
    repeated = attention(query, key.repeat(copies, axis=0), value.repeat(copies, axis=0))
    np.testing.assert_allclose(found.out, repeated.out, atol=1e-6)
    np.testing.assert_allclose(found.lse, repeated.lse, atol=1e-6)


@jax.jit
def sum_and_gradients(*arrays):
    def loss(*arrays):
        part = attend_in_blocks(*arrays, Visible(causal=True), block=4)
        return part.out.sum() + 1e-4 * part.lse.sum()

    return jax.value_and_grad(loss, (0, 1, 2))(*arrays)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_logits_of_any_size_and_half_precision_stay_finite(scale):
    query, key, value = (jnp.asarray(draw(i, 1, 2, 9, 8), jnp.bfloat16) for i in range(3))
    query = query * jnp.bfloat16(scale)
    value_, gradients = sum_and_gradients(query, key, value)
    assert jnp.isfinite(value_)
    for gradient in gradients:
        assert gradient.dtype == jnp.bfloat16
        assert jnp.isfinite(gradient).all()


def test_blocks_that_no_query_sees_are_not_computed():
    """NaN in keys behind the window or after the queries would show in every product with them."""
    query, key, value = (draw(i, 1, 1, n, 4) for i, n in enumerate((8, 64, 64)))
    visible = Visible(causal=True, window=4, sinks=2, start=32)
    run = jax.jit(lambda *arrays: attend_in_blocks(*arrays, visible, block=8).out)
    clean = np.asarray(run(query, key, value))
    for x in (key, value):
        x[:, :, 8:24] = x[:, :, 40:] = np.nan
    np.testing.assert_array_equal(run(query, key, value), clean)
    assert np.isfinite(clean).all()


@pytest.mark.slow
def test_memory_of_32768_causal_tokens_is_linear():
    def temporary(tokens):
        x = jax.ShapeDtypeStruct((1, 1, tokens, 16), jnp.float32)

        def loss(*arrays):
            return attend_in_blocks(*arrays, Visible(causal=True)).out.sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(16384), temporary(32768)
    assert large < 2.2 * small
    assert large < 32768**2  # a quarter of one matrix of logits


RING = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from rml.ops.attention_parts import Visible
from rml.ops.blocked_attention import attend_in_blocks
from rml.ops.ring_attention import ring_attention

mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
query, key, value, d_out, d_lse = (
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate(
        [(2, 4, 12, 8), (2, 2, 12, 8), (2, 2, 12, 6), (2, 4, 12, 6), (2, 4, 12)])
)
here = jnp.arange(12) < jnp.array([[12], [7]])
spec, worst, text = P(None, None, "model"), {}, ""
for name, visible in {
    "causal": Visible(causal=True), "window": Visible(window=5),
}.items():
    def whole(q, k, v, here):
        return attend_in_blocks(q, k, v, visible._replace(keys=here), scale=0.7)

    def local(q, k, v, here):
        return ring_attention(
            q, k, v, visible._replace(keys=here), axis_name="model", scale=0.7, block=2)

    def loss(f):
        def of(q, k, v):
            part = f(q, k, v, here)
            some = jnp.isfinite(part.lse)
            return (part.out * d_out).sum() + (jnp.where(some, part.lse, 0) * d_lse).sum(), part
        return jax.jit(jax.value_and_grad(of, (0, 1, 2), has_aux=True))

    specs = (spec,) * 3 + (P(None, "model"),)
    ring = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec)
    (_, part), gradients = loss(whole)(query, key, value)
    compiled = loss(ring).lower(query, key, value).compile()
    (_, parts), ring_gradients = compiled(query, key, value)
    assert (jnp.isfinite(part.lse) == jnp.isfinite(parts.lse)).all()
    pairs = [(part.out, parts.out), (jnp.exp(part.lse), jnp.exp(parts.lse))]
    pairs += zip(gradients, ring_gradients)
    worst[name] = max(float(jnp.abs(x - y).max() / jnp.abs(x).max()) for x, y in pairs)
    text += compiled.as_text()
print(json.dumps({"worst": worst, "permutes": text.count("collective-permute"),
                  "gathers": text.count("all-gather")}))
"""


@pytest.mark.slow
def test_ring_of_devices_equals_one_device(forked):
    found = forked(RING, devices=4)
    assert len(found["worst"]) == 2
    assert max(found["worst"].values()) < 3e-6, found["worst"]
    assert found["permutes"] > 0
    assert found["gathers"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"block": 0}, "block=0"), ({"heads": 3}, "3 heads of keys must divide 4")],
)
def test_wrong_shapes_are_named(change, message):
    options = dict(change)
    key = jnp.asarray(draw(1, 1, options.pop("heads", 2), 8, 4))
    with pytest.raises(ValueError, match=message):
        attend_in_blocks(jnp.asarray(draw(0, 1, 4, 8, 4)), key, key, **options)
    with pytest.raises(ValueError, match="at least one part"):
        merge_parts()


@pytest.mark.parametrize("window", [0, -3, np.int64(0)])
def test_a_window_that_shows_nothing_is_refused(unchecked, window):
    arrays = [jnp.asarray(draw(i, 1, 2, 8, 4)) for i in range(3)]
    visible = Visible(causal=True, window=window)
    for attention in (
        attend_in_blocks,
        functools.partial(block_sparse_attention, pattern=np.ones((1, 2, 2), bool)),
        functools.partial(ring_attention, axis_name="tokens"),
    ):
        with pytest.raises(ValueError, match=f"window={window}, expected at least 1"):
            attention(*arrays, visible=visible, block=4)
    own = attend_in_blocks(*arrays, Visible(causal=True, window=1), block=4)
    np.testing.assert_allclose(own.out, arrays[2], rtol=1e-6)
