"""Nearest neighbours against a sort of all pairs in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from rml.ops.topk import topk


def rows(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def all_pairs(queries, keys, metric):
    """Similarity, or minus the distance, of all pairs in float64."""
    q, k = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    if metric == "dot":
        return q @ k.T
    return 1 - cdist(q, k, "cosine") if metric == "cosine" else -cdist(q, k)


@pytest.mark.slow
@settings(max_examples=12)
@given(
    m=st.integers(1, 12),
    n=st.integers(2, 25),
    d=st.integers(1, 4),
    block=st.integers(1, 30),
    metric=st.sampled_from(["cosine", "euclidean", "dot"]),
    exclude_self=st.booleans(),
    data=st.data(),
)
def test_equals_a_sort_of_all_pairs(m, n, d, block, metric, exclude_self, data):
    m = n if exclude_self else m
    k = data.draw(st.integers(1, n - exclude_self))
    queries, keys = rows(0, m, d), rows(1, n, d)
    if exclude_self:
        queries = keys
    scores = all_pairs(queries, keys, metric)
    if exclude_self:
        np.fill_diagonal(scores, -np.inf)
    values, index = topk(queries, keys, k=k, metric=metric, block=block, exclude_self=exclude_self)
    expected = -np.sort(-scores, axis=1)[:, :k]
    sign = -1 if metric == "euclidean" else 1
    np.testing.assert_allclose(sign * np.asarray(values), expected, rtol=1e-5, atol=1e-5)
    # The indices are those of the values, and name k different keys.
    np.testing.assert_allclose(
        np.take_along_axis(scores, np.asarray(index), axis=1), expected, rtol=1e-5, atol=1e-5
    )
    assert all(len(set(row)) == k for row in np.asarray(index).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("block", [2, 3, 100])
def test_ties_go_to_the_lower_index(metric, block):
    keys = jnp.asarray([[0.0, 1], [1, 0], [0, 1], [1, 0], [1, 0], [0, 1], [1, 0]])
    _, index = topk(jnp.asarray([[1.0, 0]]), keys, k=6, metric=metric, block=block)
    np.testing.assert_array_equal(index, [[1, 3, 4, 6, 0, 2]])


def test_duplicates_are_at_distance_exactly_zero_even_far_from_the_origin():
    x = np.tile(rows(0, 10, 33) + 1000, (2, 1))
    values, index = topk(x, x, k=1, metric="euclidean", exclude_self=True, block=7)
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(index[:, 0], (np.arange(20) + 10) % 20)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_groups_of_keys_are_left_out_exactly(metric):
    """Blocks far wider than k, of which only the best groups are sorted, in every order of keys."""
    keys = np.round(4 * rows(0, 900, 2)) + np.float32(0.25)
    keys = keys[np.argsort(keys[:, 0])]
    queries = np.concatenate([np.eye(2), -np.eye(2), rows(1, 3, 2)]).astype(np.float32)
    scores = all_pairs(queries, keys, metric)
    for block, query_block in ((900, 7), (407, 3)):
        values, index = topk(
            queries, keys, k=5, metric=metric, block=block, query_block=query_block
        )
        expected = -np.sort(-scores, axis=1)[:, :5]
        sign = -1 if metric == "euclidean" else 1
        np.testing.assert_allclose(sign * np.asarray(values), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            np.take_along_axis(scores, np.asarray(index), axis=1), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.slow
def test_ties_go_to_the_lower_index_whatever_stands_beside_them():
    """Groups of keys that hold a tie and something better are no better places for the tie."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 7, 4096)
    keys[rng.choice(np.arange(2048, 4096), 5, replace=False)] = 9
    _, index = topk(jnp.ones((1, 1)), jnp.asarray(keys[:, None], jnp.float32), k=20, metric="dot")
    np.testing.assert_array_equal(index[0], np.argsort(-keys, kind="stable")[:20])


@pytest.mark.slow
@pytest.mark.parametrize("better", [8, 16, 20, 60])
def test_groups_may_bring_as_many_neighbours_as_they_have_columns(better):
    """The second of two blocks has neighbours side by side alone, in as few groups as they fill."""
    rng = np.random.default_rng(0)
    keys = rng.permutation(4096).astype(np.float32) / 4096
    keys[2048:] /= 2
    keys[3000 : 3000 + better] += 1
    _, index = topk(
        jnp.ones((1, 1)), jnp.asarray(keys[:, None]), k=20, metric="dot", block=2048, query_block=1
    )
    np.testing.assert_array_equal(index[0], np.argsort(-keys, kind="stable")[:20])


@pytest.mark.slow
def test_gradient_where_groups_are_left_out():
    keys = rows(0, 600, 3)
    _, index = topk(keys[:4], keys, k=2, metric="dot", block=300)
    result = jax.jit(jax.grad(lambda q: jnp.sum(topk(q, keys, k=2, metric="dot", block=300)[0])))(
        keys[:4]
    )
    np.testing.assert_allclose(result, np.sum(keys[np.asarray(index)], axis=1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_only_the_first_keys_are_searched(metric):
    queries, keys = rows(0, 4, 3), rows(1, 50, 3)
    search = partial(topk, metric=metric, block=20)
    values, index = search(queries, keys, k=6, count=jnp.int32(4))
    expected = search(queries, keys[:4], k=4)
    np.testing.assert_allclose(values[:, :4], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(index[:, :4], expected[1])
    np.testing.assert_array_equal(index[:, 4:], -1)
    np.testing.assert_array_equal(values[:, 4:], np.inf if metric == "euclidean" else -np.inf)


@pytest.mark.slow
@pytest.mark.parametrize("behind", [0.0, 1e4, 1e20, np.nan])
@pytest.mark.parametrize("far", [0.0, 1e4])
def test_keys_behind_the_count_move_no_distance(behind, far):
    x = far + rows(0, 20, 8)
    keys = np.full((64, 8), behind, np.float32)
    keys[:20] = x
    expected = topk(x, x, k=3, metric="euclidean")
    found = topk(x, keys, k=3, metric="euclidean", count=20)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("metric", "bad"),
    [("cosine", np.nan), ("euclidean", np.nan), ("dot", np.nan), ("cosine", np.inf),
     ("euclidean", np.inf)],
)  # fmt: skip
def test_a_key_that_is_not_finite_moves_no_other_neighbour(metric, bad):
    queries, keys = rows(0, 4, 3), rows(1, 30, 3)
    search = partial(topk, k=5, metric=metric, block=8)
    wanted, at = map(np.asarray, search(queries, np.delete(keys, 7, axis=0)))
    keys[7, 1] = bad
    values, index = search(queries, keys)
    np.testing.assert_array_equal(index, at + (at >= 7))
    np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)


def test_zero_query_is_equally_far_from_all():
    values, index = topk(np.zeros((1, 3), np.float32), rows(0, 5, 3), k=3, block=2)
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(index, [[0, 1, 2]])


def test_no_queries_have_no_neighbours():
    values, index = topk(np.zeros((0, 3), np.float32), rows(0, 5, 3), k=2)
    assert values.shape == index.shape == (0, 2)


@pytest.mark.slow
def test_gradient_equals_that_of_all_pairs():
    queries, keys = rows(0, 5, 3), rows(1, 11, 3)

    def blocked(queries, keys):
        return jnp.sum(topk(queries, keys, k=4, metric="euclidean", block=3)[0] ** 2)

    def dense(queries, keys):
        squares = jnp.sum((queries[:, None] - keys) ** 2, axis=-1)
        return jnp.sum(jnp.sort(squares, axis=1)[:, :4])

    result = jax.jit(jax.grad(blocked, argnums=(0, 1)))(queries, keys)
    expected = jax.jit(jax.grad(dense, argnums=(0, 1)))(queries, keys)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_maps_over_batches():
    queries, keys = rows(0, 6, 4).reshape(2, 3, 4), rows(1, 10, 4).reshape(2, 5, 4)
    search = partial(topk, k=2, block=2)
    values, index = jax.vmap(search)(queries, keys)
    for i in range(2):
        expected = search(queries[i], keys[i])
        np.testing.assert_allclose(values[i], expected[0], rtol=1e-6)
        np.testing.assert_array_equal(index[i], expected[1])


@pytest.mark.slow
def test_half_precision_is_accumulated_in_float32():
    queries, keys = rows(0, 4, 256).astype(jnp.bfloat16), rows(1, 9, 256).astype(jnp.bfloat16)
    for metric in ("cosine", "euclidean", "dot"):
        values, _ = topk(queries, keys, k=3, metric=metric, block=4)
        assert values.dtype == jnp.float32
        expected = -np.sort(-all_pairs(queries, keys, metric), axis=1)[:, :3]
        np.testing.assert_allclose(np.abs(values), np.abs(expected), rtol=1e-4)


def temporary_bytes(m: int, n: int, block: int, metric: str = "cosine") -> int:
    spec = jax.ShapeDtypeStruct
    lowered = topk.lower(
        spec((m, 16), jnp.float32), spec((n, 16), jnp.float32), k=5, metric=metric, block=block
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_memory_is_bounded_by_the_block(metric):
    small, large = (temporary_bytes(s, s, 256, metric) for s in (2048, 16384))
    # Only what is linear in m + n grows: normalised copies of both sides and the results.
    linear = 4 * 2 * (16384 - 2048) * (16 + 2 * 5 + 2)
    assert large - small <= linear
    assert large < 4 * 16384 * 16384 / 100
    assert temporary_bytes(2048, 2048, 1024, metric) > small  # and it is the block that sets it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "between 1 and the 5 keys available, got 0"),
        ({"k": 6}, "between 1 and the 5 keys available, got 6"),
        ({"k": 1, "block": 0}, "^block must be at least 1, got 0"),
        ({"k": 1, "query_block": 0}, "query_block must be at least 1, got 0"),
        ({"k": 1, "exclude_self": True}, "got 3 queries and 5 keys"),
    ],
)
def test_errors_name_value_and_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        topk(jnp.ones((3, 2)), jnp.ones((5, 2)), **arguments)


def test_self_leaves_one_key_fewer():
    with pytest.raises(ValueError, match="the 4 keys available, got 5"):
        topk(jnp.ones((5, 2)), jnp.ones((5, 2)), k=5, exclude_self=True)


def test_unknown_metric_and_widths(unchecked):
    with pytest.raises(ValueError, match="got 'manhattan'"):
        topk(jnp.ones((3, 2)), jnp.ones((5, 2)), k=1, metric="manhattan")
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(5, 3\)"):
        topk(jnp.ones((3, 2)), jnp.ones((5, 3)), k=1)


@pytest.mark.slow
def test_keys_are_hidden_from_blocks_of_many():
    """No key is its own neighbour, and NaN behind the last whole group is none."""
    x = jnp.asarray(np.random.default_rng(5).normal(size=(600, 4)), jnp.float32)
    _, found = topk(x, x, k=2, metric="cosine", block=200, exclude_self=True)
    similar = all_pairs(x, x, "cosine")
    np.fill_diagonal(similar, -np.inf)
    np.testing.assert_array_equal(found[:, 0], similar.argmax(1))
    keys = x[:203].at[201].set(jnp.nan)
    scores, found = topk(x, keys, k=2, metric="dot", block=512)
    assert jnp.isfinite(scores).all()
    np.testing.assert_array_equal(found[:, 0], np.nanargmax(np.asarray(x @ keys.T), axis=1))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_float64_is_searched_in_float64(metric):
    """In blocks of many and of few; rows are numbered by int32 there too."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(6).normal(size=(300, 3)))
        for block in (8, 150):
            found, index = topk(x[:7], x, k=2, metric=metric, block=block)
            assert (found.dtype, index.dtype) == (jnp.float64, jnp.int32)
            wanted = np.sort(all_pairs(x[:7], x, metric), axis=1)[:, :-3:-1]
            wanted = -wanted if metric == "euclidean" else wanted
            np.testing.assert_allclose(found, wanted, atol=1e-7)
