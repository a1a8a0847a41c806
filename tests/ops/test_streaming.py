from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rml.ops.streaming import (
    Pairs,
    masked_sum,
    row_and_column_values,
    row_values,
    symmetric_logsumexp,
    weighted_sum,
)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def f32(*xs):
    return tuple(jnp.asarray(np.float32(x)) for x in xs)


def off_diagonal_other_label(row, col, row_label, col_label):
    return (row != col) & (row_label != col_label)


def admitted(n, m, labels):
    return (np.arange(n)[:, None] != np.arange(m)) & (labels[0][:, None] != labels[1])


def lse(s, axis):
    with np.errstate(divide="ignore"):
        top = np.maximum(np.max(s, axis=axis, keepdims=True), -1e300)
        return np.squeeze(top, axis) + np.log(np.sum(np.exp(s - top), axis=axis))


def softmax(s, axis):
    return np.exp(s - np.expand_dims(np.nan_to_num(lse(s, axis), neginf=0.0), axis))


def close(actual, expected, tolerance=2e-6):
    scale = np.max(np.abs(expected), initial=1e-3)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


# Scale 1 lies in the range where nothing is shifted, 6 is beyond it.
@pytest.mark.slow
@settings(max_examples=5)
@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    block=st.none() | st.integers(1, 5),
    scale=st.sampled_from([1.0, 6.0]),
    data=st.integers(0, 99),
)
@example(n=5, m=6, block=3, scale=1.0, data=2)  # the last strip is padded
@example(n=5, m=6, block=None, scale=6.0, data=2)  # the whole matrix is held
def test_rows_and_columns_with_mask_match_float64(n, m, block, scale, data):
    q, k = scale * draw(data, n, 4), scale * draw(data + 1, m, 4)
    rng = np.random.default_rng(data)
    labels = rng.integers(0, 3, n), rng.integers(0, 3, m)
    q, k = (np.asarray(x, np.float64) for x in f32(q, k))
    s = np.where(admitted(n, m, labels), q @ k.T, -np.inf)
    row, col = lse(s, 1), lse(s, 0)
    gr, gc = np.where(np.isfinite(row), draw(3, n), 0), np.where(np.isfinite(col), draw(4, m), 0)
    p = gr[:, None] * softmax(s, 1) + gc * softmax(s, 0)

    def values(q, k):
        return row_and_column_values(
            q,
            k,
            mask=off_diagonal_other_label,
            pairs=Pairs(*map(jnp.asarray, labels)),
            block_size=block,
        )

    @jax.jit
    def both(q, k, gr, gc):
        out, pull = jax.vjp(values, q, k)
        return out, pull((gr, gc))

    (got_row, got_col), (dq, dk) = both(*f32(q, k, gr, gc))
    close(np.nan_to_num(got_row, neginf=-1e3), np.nan_to_num(row, neginf=-1e3))
    close(np.nan_to_num(got_col, neginf=-1e3), np.nan_to_num(col, neginf=-1e3))
    close(dq, p @ k, 2e-5)
    close(dk, p.T @ q, 2e-5)


@cache
def symmetric(n, block):
    """Values of symmetric halves and their gradient, in a program for rows of any size."""
    label = jnp.asarray(np.arange(n) % 3)

    def values(z):
        return symmetric_logsumexp(
            z, mask=off_diagonal_other_label, pairs=Pairs(label), block_size=block
        )

    @jax.jit
    def both(z, g):
        out, pull = jax.vjp(values, z)
        return out, pull(g)[0]

    return both


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize(
    ("n", "block"), [(1, 1), (2, 1), (7, 7), (7, 2), (8, 3), (9, 3), (12, 5), (1, None), (9, None)]
)
def test_symmetric_halves_match_float64(n, block, scale):
    z = np.asarray(f32(scale * draw(0, n, 4))[0], np.float64)
    label = np.arange(n) % 3
    s = np.where(admitted(n, n, (label, label)), z @ z.T, -np.inf)
    row = lse(s, 1)
    g = np.where(np.isfinite(row), draw(1, n), 0)
    p = g[:, None] * softmax(s, 1)

    got, dz = symmetric(n, block)(*f32(z, g))
    close(np.nan_to_num(got, neginf=-1e3), np.nan_to_num(row, neginf=-1e3))
    close(dz, (p + p.T) @ z, 2e-5)


@cache
def fused_and_apart(kind, block):
    """Both sums with their gradients, and the sums alone, in a program for rows of any size."""

    def fused(q, k, w, b):
        return weighted_sum(q, k, w, bias=b, kind=kind, block_size=block)

    def apart(q, k, w, b):
        return w @ row_values(q, k, bias=b, kind=kind, block_size=block)

    return jax.jit(
        lambda *args: [
            (*jax.value_and_grad(f, (0, 1, 2, 3))(*args), f(*args)) for f in (fused, apart)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["logsumexp", "softplus"])
@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize(("n", "m", "block"), [(7, 5, 3), (4, 6, 4), (6, 1, 2), (7, 5, None)])
def test_one_pass_and_recomputed_gradients_match_float64(kind, scale, n, m, block):
    q, k, w = scale * draw(0, n, 4), scale * draw(1, m, 4), draw(2, n)
    q, k, w = (np.asarray(x, np.float64) for x in f32(q, k, w))
    s = q @ k.T - 0.5
    row = lse(s, 1) if kind == "logsumexp" else np.sum(np.logaddexp(0, s), 1)
    p = softmax(s, 1) if kind == "logsumexp" else np.exp(-np.logaddexp(0, -s))
    p = w[:, None] * p
    expected = p @ k, p.T @ q, row, np.sum(p)

    for value, grads, alone in fused_and_apart(kind, block)(*f32(q, k, w, -0.5)):
        close(value, w @ row, 1e-5)
        for grad, want in zip(grads, expected, strict=True):
            close(grad, want, 2e-5)
        close(alone, w @ row, 1e-5)


@pytest.mark.slow
def test_a_matrix_that_is_held_has_second_derivatives():
    z, one, two = f32(draw(0, 6, 4), draw(1, 6, 4), draw(2, 6, 4))

    def ours(z):
        return jnp.sin(symmetric_logsumexp(z, mask=off_diagonal)).sum()

    def plain(z):
        s = jnp.where(jnp.eye(6, dtype=bool), -jnp.inf, z @ z.T)
        return jnp.sin(jax.nn.logsumexp(s, axis=1)).sum()

    def slopes(f):
        along = jax.jvp(f, (z,), (one,))[1]
        return along, jax.jvp(jax.grad(f), (z,), (two,))[1]

    found = (jax.jit(partial(slopes, f))() for f in (ours, plain))
    for actual, expected in zip(*found, strict=True):
        close(actual, expected, 2e-5)


def test_a_row_without_a_pair_has_no_slope_in_forward_mode_either():
    z, tangent = f32(draw(0, 1, 4), draw(1, 1, 4))
    value, slope = jax.jvp(partial(symmetric_logsumexp, mask=off_diagonal), (z,), (tangent,))
    assert (float(value[0]), float(slope[0])) == (-np.inf, 0.0)


def test_logits_that_are_no_numbers_are_seen():
    q, k = f32(draw(0, 3, 4), draw(1, 5, 4))
    row = row_values(q.at[1, 2].set(jnp.nan), k)
    np.testing.assert_array_equal(jnp.isnan(row), [False, True, False])


def test_masked_sums_and_numbers():
    k = draw(0, 7, 3)
    labels = np.arange(5) % 2, np.arange(7) % 3
    keep = admitted(5, 7, labels)
    weight = draw(1, 5, 3)

    def total(k):
        sums, number = masked_sum(
            k,
            5,
            mask=off_diagonal_other_label,
            pairs=Pairs(*map(jnp.asarray, labels)),
            block_size=2,
        )
        return jnp.sum(weight * sums), (sums, number)

    grad, (sums, number) = jax.jit(jax.grad(total, has_aux=True))(*f32(k))
    close(sums, keep @ k)
    np.testing.assert_array_equal(number, keep.sum(1))
    close(grad, keep.T @ weight)


@pytest.mark.slow
def test_row_offsets_move_the_mask():
    q, k = f32(draw(0, 4, 3), draw(1, 6, 3))

    @jax.jit
    def both(q, k):
        whole = row_values(q, k, mask=off_diagonal, block_size=3)
        pairs = Pairs(row_start=2)
        return whole, row_values(q[2:], k, mask=off_diagonal, pairs=pairs, block_size=1)

    whole, part = both(q, k)
    np.testing.assert_allclose(part, whole[2:], rtol=1e-6)


def off_diagonal(row, col, row_label, col_label):
    return row != col


def test_weight_zero_hides_rows_without_columns():
    q, k = f32(draw(0, 4, 3), draw(1, 4, 3))
    weights = jnp.array([0.0, 1.0, 0.0, 1.0])
    labels = jnp.array([[0] * 4, [1] * 4, [0] * 4, [1] * 4], bool)
    for block in (None, 2):
        f = jax.value_and_grad(
            lambda q, k, b=block: weighted_sum(
                q, k, weights, mask=listed, pairs=Pairs(labels), block_size=b
            ),
            (0, 1),
        )
        value, grads = jax.jit(f)(q, k)
        assert jnp.isfinite(value)
        assert all(jnp.all(jnp.isfinite(g)) for g in grads)
        assert not jnp.any(grads[0][0])


@pytest.mark.parametrize("shape", [(4, 1), (1,), (5,), (6,), ()])
def test_a_sum_has_one_weight_a_row(unchecked, shape):
    q, k = f32(draw(0, 4, 3), draw(1, 6, 3))
    for block in (None, 2):
        with pytest.raises(ValueError, match=r"weights has shape \(.*\), expected \(4,\)"):
            weighted_sum(q, k, jnp.ones(shape), block_size=block)


@pytest.mark.slow
def test_weights_have_the_rows_values_as_their_gradient():
    q, k = f32(draw(0, 4, 3), draw(1, 4, 3))
    weights = jnp.array([0.0, 0.5, 0.0, 2.0])
    labels = jnp.array([[0] * 4, [1] * 4, [1] * 4, [1, 0, 1, 0]], bool)
    given = {"mask": listed, "pairs": Pairs(labels)}
    values = np.array(jax.jit(partial(row_values, **given))(q, k))
    assert values[0] == -np.inf
    values[0] = 0
    for block in (None, 2):
        total = jax.jit(
            jax.value_and_grad(lambda w, b=block: weighted_sum(q, k, w, block_size=b, **given))
        )
        np.testing.assert_allclose(total(weights)[1], values, rtol=1e-5)
        assert total(weights.at[0].set(1))[0] == -np.inf


@partial(jax.jit, static_argnames="block")
def sums_of_biased(q, k, bias, block):
    def sums(q, b):
        whole = weighted_sum(q, k, jnp.arange(1.0, 7), bias=b, block_size=block)
        return whole + 2 * jnp.sum(row_values(q, k, bias=b, block_size=block))

    return jax.value_and_grad(sums, (0, 1))(q, bias)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [100.0, -100.0, -200.0])
def test_a_large_bias_is_shifted_away(bias):
    q, k = f32(draw(0, 6, 4), draw(1, 7, 4))
    for block in (None, 2):
        value, slopes = sums_of_biased(q, k, bias, block)
        if block is None:
            expected = value, slopes
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        for found, wanted in zip(slopes, expected[1], strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_row_without_a_pair_has_no_part_in_the_gradient_of_the_bias():
    q, k = f32(draw(0, 3, 3), draw(1, 4, 3))
    labels = jnp.array([[0] * 4, [1] * 4, [1, 0, 0, 0]], bool)

    for block in (None, 2):
        values = partial(row_values, q, k, mask=listed, pairs=Pairs(labels), block_size=block)
        slope = jax.jit(jax.grad(lambda bias, values=values: jnp.sum(values(bias=bias))))(0.5)
        assert slope == pytest.approx(2.0)


def listed(row, col, row_label, col_label):
    return row_label


@pytest.mark.slow
def test_works_under_vmap():
    q, k = f32(draw(0, 3, 5, 4), draw(1, 3, 6, 4))
    w = jnp.ones(5)
    f = jax.grad(lambda q, k, b: weighted_sum(q, k, w, block_size=b), (0, 1))
    together = jax.jit(jax.vmap(lambda q, k: f(q, k, 2)))(q, k)
    alone = jax.jit(lambda q, k: f(q, k, None))
    apart = [alone(*one) for one in zip(q, k, strict=True)]
    for i in range(3):
        for got, want in zip(together, apart[i], strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-6)


def _temporary(f, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_temporary_memory_is_linear_in_the_batch():
    def rows(q, k):
        return weighted_sum(q, k, jnp.ones(q.shape[0]), block_size=32)

    def both(q, k):
        return sum(map(jnp.sum, row_and_column_values(q, k, block_size=32)))

    def symmetric(q, k):
        return jnp.sum(symmetric_logsumexp(q + k, mask=off_diagonal, block_size=32))

    for loss in (rows, both, symmetric):
        f = jax.value_and_grad(loss, (0, 1))
        small, large = (_temporary(f, (n, 16), (n, 16)) for n in (2048, 8192))
        assert large < 5 * small  # 16 times for the dense form
        assert large < 4 * 8192 * 8192 / 20

    def chosen(q, k):
        return weighted_sum(q, k, jnp.ones(q.shape[0]))

    automatic = _temporary(jax.value_and_grad(chosen, (0, 1)), (65536, 256), (65536, 256))
    assert automatic < 0.5e9


RING = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from rml.losses.clip import clip_loss
from rml.losses.infonce import info_nce
from rml.losses.ntxent import nt_xent
from rml.losses.siglip import siglip_loss
from rml.losses.supcon import sup_con
from rml.ops.ring import ring_values
from rml.ops.streaming import row_values

assert len(jax.devices()) == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
a, b = (jax.random.normal(jax.random.key(i), (32, 6)) for i in (0, 1))
labels = jnp.arange(32) * 7 % 5

def losses(t, **how):
    return {
        "info_nce": lambda a, b, y, t: info_nce(a, b, temperature=t, **how),
        "info_nce_labels": lambda a, b, y, t: info_nce(
            a, b, temperature=t, labels=(y, y), **how),
        "nt_xent": lambda a, b, y, t: nt_xent(a, b, temperature=t, **how),
        "clip": lambda a, b, y, t: clip_loss(a, b, log_scale=-jnp.log(t), **how),
        "siglip": lambda a, b, y, t: siglip_loss(a, b, log_scale=-jnp.log(t), bias=-3 * t, **how),
        "sup_con_out": lambda a, b, y, t: sup_con(a + b, y, temperature=t, **how),
        "sup_con_in": lambda a, b, y, t: sup_con(a + b, y, temperature=t, form="in", **how),
    }

worst = {}
cases = [(0.5, name) for name in losses(0.5)] + [(0.015, "clip"), (0.015, "nt_xent")]
for t, name in cases:
    local = losses(t, axis_name="data", block_size=3)[name]
    spec = (P("data"), P("data"), P("data"), P())
    ring = jax.jit(jax.value_and_grad(
        jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=P()), (0, 1, 3)))
    whole = jax.jit(jax.value_and_grad(losses(t)[name], (0, 1, 3)))
    pairs = zip(jax.tree.leaves(ring(a, b, labels, t)),
                jax.tree.leaves(whole(a, b, labels, t)))
    worst[f"{name} {t}"] = max(
        float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))) for x, y in pairs)

def rows_of(kind, ring):
    if ring:
        local = lambda a, b, t: ring_values(a, b, axis_name="data", bias=t, kind=kind)[0]
        values = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P("data"), P()),
                               out_specs=P("data"))
    else:
        values = lambda a, b, t: row_values(a, b, bias=t, kind=kind, block_size=4)
    return jax.jit(jax.grad(lambda t: jnp.sum(values(a, b, t) * jnp.arange(32.0))))(0.3)

for kind in ("logsumexp", "softplus"):
    worst[kind] = float(abs(rows_of(kind, True) / rows_of(kind, False) - 1))

refused = 0
for spec in (P(), P("data")):
    try:
        jax.shard_map(lambda a, b: info_nce(a, a, temperature=0.5, negatives=b, axis_name="data"),
                      mesh=mesh, in_specs=(P("data"), spec), out_specs=P())(a, b)
    except ValueError as error:
        refused += "negatives are whole on every device of 'data'" in str(error)

text = jax.jit(jax.grad(jax.shard_map(
    lambda a, b: clip_loss(a, b, log_scale=1.0, axis_name="data"),
    mesh=mesh, in_specs=P("data"), out_specs=P()))).lower(a, b).compile().as_text()
print(json.dumps({"worst": worst, "refused": refused, "permutes": text.count("collective-permute"),
                  "gathers": text.count("all-gather")}))
"""


@pytest.mark.slow
def test_ring_over_eight_devices_equals_one_device(forked):
    found = forked(RING, devices=8)
    assert len(found["worst"]) == 11
    assert found["refused"] == 1
    assert max(found["worst"].values()) < 2e-5, found["worst"]
    assert found["permutes"] > 0
    assert found["gathers"] == 0


@pytest.mark.parametrize(("rows", "cols"), [((3,), (4,)), ((1, 2), (4,)), ((5,), (1,)), ((), ())])
def test_labels_are_one_a_row_and_one_a_column(unchecked, rows, cols):
    q, k = f32(draw(0, 5, 3), draw(1, 4, 3))
    pairs = Pairs(jnp.zeros(rows), jnp.zeros(cols))
    for size in (None, 2):
        given = {"mask": off_diagonal, "pairs": pairs, "block_size": size}
        for run in (
            lambda given=given: row_values(q, k, **given),
            lambda given=given: row_and_column_values(q, k, **given),
            lambda given=given: weighted_sum(q, k, jnp.ones(5), **given),
            lambda given=given: masked_sum(k, 5, **given),
            *((lambda given=given: symmetric_logsumexp(q, **given),) if rows != (5,) else ()),
        ):
            with pytest.raises(ValueError, match=r"_labels \(.*\) as \[[45]"):
                run()


def test_bad_block_size_is_named():
    q = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="-1"):
        row_values(q, q, block_size=-1)
