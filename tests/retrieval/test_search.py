"""Exact search against a sort of all inner products, on one device and over meshes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.ops.topk import topk
from rml.retrieval import build_index, search, search_index
from rml.training.mesh import make_mesh


def whole_numbers(seed: int, *shape: int, top: int = 3) -> jax.Array:
    """Small integers: their inner products are exact, and many are equal."""
    return jax.random.randint(jax.random.key(seed), shape, -top, top + 1).astype(jnp.float32)


def by_sorting(queries, corpus, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A stable sort of all inner products in float64."""
    scores = np.asarray(queries, np.float64) @ np.asarray(corpus, np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.slow
@settings(max_examples=8)
@given(
    m=st.integers(0, 9),
    n=st.integers(1, 700),
    block=st.integers(1, 900),
    query_block=st.integers(1, 12),
    data=st.data(),
)
def test_equals_a_stable_sort(m, n, block, query_block, data):
    k = data.draw(st.integers(1, min(n, 12)))
    queries, corpus = whole_numbers(0, m, 3), whole_numbers(1, n, 3)
    scores, rows = search(queries, corpus, k=k, block=max(block, n // 8), query_block=query_block)
    expected = by_sorting(queries, corpus, k)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(rows, expected[1])


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "one hot group"])
def test_order_of_the_corpus_does_not_matter(order):
    n, k = 5000, 40
    value = {
        "rising": np.arange(n),
        "falling": -np.arange(n),
        "equal": np.zeros(n),
        "one hot group": np.where(np.arange(n) // 40 == 77, np.arange(n) % 7, 0),
    }[order]
    corpus = jnp.asarray(value[:, None], jnp.float32)
    queries = jnp.asarray([[1.0], [-1.0], [0.0]])
    for block in (1100, 5000):
        result = search(queries, corpus, k=k, block=block, query_block=3)
        for ours, expected in zip(result, by_sorting(queries, corpus, k), strict=True):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.slow
def test_cosine_is_the_inner_product_of_unit_rows():
    queries, corpus = whole_numbers(0, 5, 8), whole_numbers(1, 90, 8)
    corpus = corpus.at[4].set(0)
    unit = [
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in (queries, corpus)
    ]
    scores, rows = search(7 * queries, corpus, k=6, metric="cosine")
    np.testing.assert_allclose(scores, by_sorting(*unit, 6)[0], rtol=1e-5)
    dense = np.asarray(unit[0]) @ np.asarray(unit[1]).T
    np.testing.assert_allclose(np.take_along_axis(dense, np.asarray(rows), 1), scores, rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_accumulated_in_float32():
    queries, corpus = (
        jax.random.normal(jax.random.key(i), (n, 384), jnp.bfloat16) for i, n in ((0, 4), (1, 900))
    )
    scores, _ = search(queries, corpus, k=5, block=300)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, by_sorting(queries, corpus, 5)[0], rtol=1e-5)


@pytest.mark.slow
def test_nan_is_never_found():
    corpus = whole_numbers(0, 300, 3).at[jnp.asarray([2, 40])].set(jnp.nan)
    queries = jnp.ones((2, 3)).at[1, 0].set(jnp.nan)
    scores, rows = search(queries, corpus, k=300, block=128)
    assert sorted(rows[0].tolist()) == [-1, -1, *(i for i in range(300) if i not in (2, 40))]
    np.testing.assert_array_equal(scores[0, -2:], -jnp.inf)
    np.testing.assert_array_equal(rows[1], -1)
    np.testing.assert_array_equal(
        search(queries, corpus, k=1)[1][0],
        by_sorting(queries[:1], jnp.nan_to_num(corpus, nan=-9), 1)[1][0],
    )


@pytest.mark.slow
def test_works_inside_jit():
    queries, corpus = whole_numbers(0, 4, 3), whole_numbers(1, 500, 3)
    inside = jax.jit(partial(search, k=7))(queries, corpus)
    for ours, expected in zip(inside, by_sorting(queries, corpus, 7), strict=True):
        np.testing.assert_array_equal(ours, expected)


CHILD = """
import json, jax, jax.numpy as jnp, numpy as np
from rml.training.processes import split_cpu
split_cpu(8)
from rml.retrieval import build_index, search, search_index
from rml.training.mesh import make_mesh

draw = lambda seed, *shape: jax.random.randint(jax.random.key(seed), shape, -3, 4).astype(float)
result = {}
mixed = {"replica": 2, "fsdp": 2, "model": 2}
for shape, sizes in (({"data": 8}, ((1003, 10), (9, 9), (1001, 300))), (mixed, ((1000, 10),))):
    mesh = make_mesh(shape)
    for n, k in sizes:
        queries, corpus = draw(0, 5, 3), draw(1, n, 3)
        one = search(queries, corpus, k=k, block=200)
        many = search(queries, corpus, k=k, block=50, query_block=2, mesh=mesh)
        equal = all(bool(jnp.all(a == b)) for a, b in zip(one, many))
        result[f"{shape} {n} {k}"] = equal and bool(jnp.all(one[1] >= 0))
corpus = draw(1, 20, 3).at[3].set(jnp.nan)
_, rows = search(draw(0, 2, 3), corpus, k=20, mesh=make_mesh())
result["nan"] = rows[0, -1] == -1 and sorted(rows[0].tolist())[1:] == [0, 1, 2, *range(4, 20)]
result["nan"] = bool(result["nan"])
index = build_index(draw(1, 8192, 16), mesh=make_mesh())
shards = {s.data.shape for s in index.vectors.addressable_shards}
result["split"] = shards == {(1024, 16)}
lowered = jax.jit(search_index, static_argnames=("k", "block")).lower(
    draw(0, 64, 16), index, k=5, block=256)
text = lowered.compile().as_text()
# No device ever holds the corpus, only the k candidates of the others.
result["corpus gathered"] = "f32[8192,16]" in text or "f32[64,8192]" in text
result["candidates gathered"] = "f32[64,40]" in text
print(json.dumps(result))
"""


@pytest.mark.slow
def test_meshes_of_eight_devices_find_what_one_finds(forked):
    result = forked(CHILD, devices=8)
    assert result.pop("corpus gathered") is False
    assert result == dict.fromkeys(result, True)
    assert len(result) == 7


@pytest.mark.slow
def test_memory_is_bounded_by_the_blocks():
    def temporary_bytes(m: int, n: int, block: int, query_block: int) -> int:
        spec = jax.ShapeDtypeStruct
        lowered = topk.lower(
            spec((m, 16), jnp.float32),
            spec((n, 16), jnp.float32),
            k=10,
            metric="dot",
            block=block,
            query_block=query_block,
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, large = (temporary_bytes(1024, n, 4096, 64) for n in (2**15, 2**18))
    assert large - small < 2**18  # the corpus is read, not copied
    assert large < 4 * 1024 * 2**18 / 50
    assert temporary_bytes(1024, 2**15, 4096, 256) > small + 4 * 4096 * (256 - 64) / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 11}, "k must be between 1 and the 10 rows of the corpus, got 11"),
        ({"k": 0}, "k must be between 1 and the 10 rows of the corpus, got 0"),
        ({"k": 2.0}, "^k is 2.0, expected a whole number"),
        ({"block": 4.0}, "^block is 4.0, expected a whole number"),
        ({"query_block": 2.5}, "^query_block is 2.5, expected a whole number"),
        ({"block": 0}, "^block must be at least 1, got 0"),
        ({"query_block": 0}, "query_block must be at least 1, got 0"),
        ({"metric": "l2"}, "metric must be 'dot' or 'cosine', got 'l2'"),
        ({"corpus": jnp.ones((0, 3))}, r"corpus must have at least one row .* shape \(0, 3\)"),
        ({"corpus": jnp.ones((10, 4))}, r"got shapes \(2, 3\) and \(10, 4\)"),
        ({"queries": jnp.ones(3)}, r"got shapes \(3,\) and \(10, 3\)"),
    ],
)
def test_errors_name_value_and_range(unchecked, change, message):
    arguments = {"queries": jnp.ones((2, 3)), "corpus": jnp.ones((10, 3)), "k": 2, **change}
    with pytest.raises(ValueError, match=message):
        search(**arguments)


@pytest.mark.slow
def test_an_index_is_a_pytree_that_is_searched_often():
    corpus, mesh = whole_numbers(1, 30, 3), make_mesh()
    index = build_index(corpus, mesh=mesh)
    assert [leaf.shape for leaf in jax.tree.leaves(index)] == [(30, 3)]
    for seed in (0, 1):
        queries = whole_numbers(seed, 4, 3)
        rows = search_index(queries, index, k=5)[1]
        np.testing.assert_array_equal(rows, by_sorting(queries, corpus, 5)[1])
