"""Combiner: the definition in float64, exact limits, causality, padding, cost, the module."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention.combiner import CombinerSettings, combiner_attention
from rml.attention.combiner_cache import combiner_cache
from rml.attention.combiner_module import CombinerAttention
from rml.attention.combiner_summaries import EPSILON, DeepSet, RowProjection
from rml.attention.in_models import attention_of
from rml.attention.partitions import DIRECT, combiner_weights, count_keys, partition
from rml.errors import UserError
from rml.evaluation import log_log_slopes
from rml.evaluation.costs import program_flops
from rml.models import Llama
from rml.ops.attention_parts import Visible, attend_part

KINDS = ("fixed", "logsparse", "vertical", "horizontal")
LENGTH = 22
"""Not a multiple of the segment: the last one is short."""
HERE = np.arange(LENGTH) < np.array([[LENGTH], [13]])
GOLDEN = np.load(Path(__file__).parent / "golden" / "combiner.npz")
"""Outputs in float64 of google-research/google-research at 4c42994, combiner/combiner/jax/model,
`_SelfAttSqrtn`, `_SelfAttLogn`, `_AxialMixtureAtt` and `_SelfAttAxialRowmajor`, with the inputs and
weights of `test_the_module_gives_the_numbers_of_the_authors_code`."""


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def arrays():
    shapes = ((2, 4, LENGTH, 6), (2, 2, LENGTH, 6), (2, 2, LENGTH, 5))
    return tuple(draw(i, *shape) for i, shape in enumerate(shapes))


def run(settings, *, causal, here=HERE, **weights):
    visible = Visible(None if here is None else jnp.asarray(here), causal=causal)
    return jax.jit(
        partial(combiner_attention, visible=visible, settings=settings, scale=0.7, **weights)
    )


def reference(arrays, settings, causal, deep=None):
    """Outputs of every head by the definition; padding is nowhere."""
    query, key, value = (np.asarray(x, np.float64) for x in arrays)
    kinds = {"mixture": KINDS[2:], "joint": KINDS[2:]}.get(settings.kind, (settings.kind,))
    tables = [partition(k, LENGTH, segment=settings.segment, causal=causal) for k in kinds]
    if not settings.regions:
        tables = [np.where(table == DIRECT, DIRECT, 0) for table in tables[:1]]
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b, h in np.ndindex(query.shape[:2]):
        own = [np.where(HERE[b], table, 0) for table in tables]
        weights = partial(combiner_weights, query[b, h], key[b, h // 2], pool=settings.pool,
                          deep=deep, relu=settings.relu, scale=0.7)  # fmt: skip
        if settings.kind == "mixture" and settings.regions:
            matrix = (weights(own[0]) + weights(own[1])) / 2
        else:
            matrix = weights(*own)
        out[b, h] = matrix @ value[b, h // 2]
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "causal"),
    [
        (CombinerSettings("fixed", 4), False),
        (CombinerSettings("fixed", 4, "mean"), True),
        (CombinerSettings("logsparse", 4), False),
        (CombinerSettings("vertical", 4, "mean"), False),
        (CombinerSettings("mixture", 4), True),
        (CombinerSettings("joint", 4), True),
        (CombinerSettings("mixture", 4, regions=False), True),
        (CombinerSettings("logsparse", 4, "mean", relu=True), True),
    ],
)
def test_it_is_the_conditional_expectation_of_the_definition(arrays, settings, causal):
    found = run(settings, causal=causal)(*arrays)
    wanted = reference(arrays, settings, causal)
    seen = HERE[:, None, :, None]  # what padding becomes has no meaning
    np.testing.assert_allclose(found * seen, wanted * seen, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "causal"),
    [(CombinerSettings("fixed", 4, "sum"), True), (CombinerSettings("joint", 4), False)],
)
def test_regions_are_summarised_by_deep_sets(arrays, settings, causal):
    deep = DeepSet(*np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32))
    found = run(settings, causal=causal, deep=jax.tree.map(jnp.asarray, deep))(*arrays)
    wanted = reference(arrays, settings, causal, deep)
    seen = HERE[:, None, :, None]
    np.testing.assert_allclose(found * seen, wanted * seen, atol=5e-6)


def softmax(logits):
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def rows_reference(arrays, settings, causal, projection):
    """Outputs of every head with a summary of each row at each place, from the definition."""
    query, key, value = (np.asarray(x, np.float64) for x in arrays)
    size, out = settings.segment, np.zeros((*query.shape[:3], value.shape[3]))
    for b in range(len(query)):
        there = np.flatnonzero(HERE[b])
        row = {p: there[there // size == p // size] for p in there}
        found = {}
        for h, p in ((h, p) for h in range(4) for p in there):
            k, v = key[b, h // 2][row[p]], value[b, h // 2][row[p]]
            weights = softmax(0.7 * k @ query[b, h, p])
            found[h, p] = (weights @ v, weights @ k)
        keys = {(h, p): key[b, h // 2, p] for h, p in found}
        if settings.row_summary == "wsum":
            keys = {at: own[1] for at, own in found.items()}
        if projection is not None:
            inputs, w, scale, offset, to_key = (np.asarray(x, np.float64) for x in projection)
            which = 0 if settings.row_summary == "proj" else 1
            for p in there:
                y = sum(found[h, p][which] @ w[h] for h in range(4)) + inputs[b, p]
                y = (y - y.mean()) / np.sqrt(y.var() + EPSILON) * scale + offset
                keys |= {(h, p): y @ to_key[:, h] for h in range(4)}
        for h, i in ((h, i) for h in range(4) for i in there):
            near = [j for j in row[i] if j <= i or not causal]
            far = [p for p in there if p % size == i % size and p // size != i // size]
            far = [p for p in far if p < i or not causal]
            own = [key[b, h // 2, j] for j in near] + [keys[h, p] for p in far]
            values = [value[b, h // 2, j] for j in near] + [found[h, p][0] for p in far]
            out[b, h, i] = softmax(0.7 * np.stack(own) @ query[b, h, i]) @ np.stack(values)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row_summary", "causal"),
    [("none", True), ("wsum", False), ("proj", True), ("wsum_proj", False)],
)
def test_rows_are_summarised_at_each_of_their_places(arrays, row_summary, causal):
    settings, rng = (
        CombinerSettings("rowmajor", 4, row_summary=row_summary),
        np.random.default_rng(1),
    )
    projection = None
    if row_summary.endswith("proj"):
        width = 5 if row_summary == "proj" else 6
        shapes = ((2, LENGTH, 7), (4, width, 7), (7,), (7,), (7, 4, 6))
        drawn = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
        projection = RowProjection(*map(jnp.asarray, drawn))
    found = run(settings, causal=causal, projection=projection)(*arrays)
    wanted = rows_reference(arrays, settings, causal, projection)
    seen = HERE[:, None, :, None]
    np.testing.assert_allclose(found * seen, wanted * seen, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "deep"),
    [
        (CombinerSettings("rowmajor", 4, row_summary="proj"), False),
        (CombinerSettings("fixed", 4, "sum"), True),
    ],
)
def test_the_module_has_the_weights_of_its_summaries(settings, deep):
    module = CombinerAttention(heads=2, settings=settings, deep=deep)
    x, mask = draw(0, 2, 12, 8), jnp.arange(12) < jnp.array([[12], [9]])
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), shapes)

    def both(params):
        heads = [jnp.einsum("btd,dhk->bhtk", x, params[name]["kernel"])
                 for name in ("query", "key", "value")]  # fmt: skip
        if deep:
            own = {"deep": DeepSet(params["deep_query"], params["deep_key"])}
        else:
            names = ("row_out", "row_scale", "row_offset", "row_key")
            own = {"projection": RowProjection(x, *(params[name] for name in names))}
        out = combiner_attention(*heads, Visible(mask, causal=True), settings=settings, **own)
        wanted = jnp.einsum("bhtk,hkd->btd", out, params["out"]["kernel"])
        found = module.apply({"params": params}, x, mask)
        return jnp.sin(found).sum(), (found, wanted)

    gradients, (found, wanted) = jax.jit(jax.grad(both, has_aux=True))(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    gradients = jax.tree.map(np.asarray, gradients)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients))
    plain = nn.unbox(jax.eval_shape(CombinerAttention(heads=2).init, jax.random.key(0), x))
    assert set(plain["params"]) == {"query", "key", "value", "out"}
    with pytest.raises(ValueError, match="heads=3 must divide the width of 8"):
        CombinerAttention(heads=3).init(jax.random.key(0), x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GOLDEN.files)
def test_the_module_gives_the_numbers_of_the_authors_code(kind):
    rng = np.random.default_rng(0)
    x, query, key, value, out, *row = (
        rng.normal(size=shape) * scale
        for scale, shape in (
            (1.0, (1, 12, 8)), *((0.5, (8, 2, 4)),) * 3, *((0.5, (2, 4, 8)),) * 2,
            *((0.5, (8,)),) * 2, (0.5, (8, 2, 4)),
        )
    )  # fmt: skip
    heads = {"query": query, "key": key, "value": value, "out": out}
    params = {name: {"kernel": kernel} for name, kernel in heads.items()}
    if kind == "rowmajor":
        names = ("row_out", "row_scale", "row_offset", "row_key")
        params |= dict(zip(names, row, strict=True))
    size, summary = (1 if kind == "logsparse" else 3), ("proj" if kind == "rowmajor" else "none")
    module = CombinerAttention(heads=2, settings=CombinerSettings(kind, size, row_summary=summary))
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), {"params": params})
    found = jax.jit(module.apply)(wide, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found[0], GOLDEN[kind], atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "causal"),
    [
        (CombinerSettings("rowmajor", 1, row_summary="wsum"), True),  # rows of one token
        (CombinerSettings("logsparse", 64), True),
        (CombinerSettings("vertical", 11), True),  # two rows: one token above
        (CombinerSettings("horizontal", 2), False),  # two columns: one token beside
    ],
)
def test_it_is_exact_in_its_limits(arrays, settings, causal):
    @jax.jit
    def exact(query, key, value):
        grouped = query.reshape(2, 2, 2, LENGTH, 6)
        mask = Visible(jnp.asarray(HERE), causal=causal).dense(LENGTH, LENGTH)[:, None, None]
        return attend_part(grouped, key[:, :, None], value[:, :, None], mask, scale=0.7).out

    found = run(settings, causal=causal)(*arrays)
    np.testing.assert_allclose(found, exact(*arrays).reshape(found.shape), atol=2e-6)


def test_every_visible_token_is_in_one_region_and_has_weight():
    query, key = (np.asarray(draw(seed, LENGTH, 6)) for seed in (0, 1))
    for kind in KINDS:
        for causal in (False, True):
            labels = partition(kind, LENGTH, segment=4, causal=causal)
            seen = np.tril(np.ones_like(labels)) if causal else np.ones_like(labels)
            np.testing.assert_array_equal(labels > 0, seen)
            weights = combiner_weights(query, key, labels)
            np.testing.assert_allclose(weights.sum(axis=1), 1.0)
            assert (weights[seen == 1] > 0).all()
    # Logsparse: token 13 = 8 + 4 + 1 sees regions of 1, 4 and 8 tokens.
    labels = partition("logsparse", 16, segment=1, causal=True)[13]
    assert np.unique(labels[:13], return_counts=True)[1].tolist() == [1, 4, 8]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "rowmajor"])
def test_weights_of_a_region_have_rank_one_over_the_queries_that_share_it(kind):
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        query, key = (jnp.asarray(rng.normal(size=(1, 1, LENGTH, 6))) for _ in range(2))
        value = jnp.eye(LENGTH, dtype=jnp.float64)[None, None]
        weights = run(CombinerSettings(kind, 4), causal=True, here=None)(query, key, value)
        weights = np.asarray(weights[0, 0])
    assert weights.dtype == np.float64
    i, j = np.indices((LENGTH, LENGTH))
    if kind == "rowmajor":  # an earlier row, of which each column has a summary of its own
        labels = np.where(i // 4 == j // 4, DIRECT, 2 + j // 4 + 100 * (i % 4))
        labels = np.where(j > i, 0, labels)
    else:
        labels = partition(kind, LENGTH, segment=4, causal=True)
    blocks = 0
    for label in np.unique(labels[labels > DIRECT]):
        sets, shared = np.unique(labels == label, axis=0, return_inverse=True)
        for number, members in enumerate(sets):
            block = weights[shared == number][:, members]
            if min(block.shape) > 1:
                assert np.linalg.matrix_rank(block, tol=1e-12 * np.linalg.norm(block)) == 1
                blocks += 1
    assert blocks >= 3
    own = weights[4:8, 4:8]  # a segment or a row is attended to directly
    assert np.linalg.matrix_rank(own, tol=1e-12) == 4


@pytest.mark.slow
def test_nothing_of_the_future_is_read(arrays):
    query, key, value = arrays

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2))
    def gradients(*arrays):
        early = run(CombinerSettings("joint", 4), causal=True, here=None)(*arrays)[:, :, :10]
        return jnp.sin(early).sum()

    for found in map(np.asarray, gradients(query, key, value)):
        assert np.isfinite(found).all()
        assert not found[:, :, 10:].any()
        assert found[:, :, :9].any(axis=(1, 3)).all()


def test_keys_are_counted_pair_by_pair():
    # Segments of 2 of 6 tokens: 3 tokens each direct; 0, 1 and 2 regions; every token in one.
    labels = partition("fixed", 6, segment=2, causal=True)
    assert count_keys(labels) == (3 * 3, 2 * (0 + 1 + 2), 4)
    # Two rows of 3: in the second, two columns above and the token above; no region has two.
    labels = partition("vertical", 6, segment=3, causal=True)
    assert count_keys(labels) == (6 + 6 + 3, 3 * 2, 3)


@pytest.mark.slow
def test_operations_grow_as_stated():
    lengths = (1024, 16384)
    rows = {}
    for kind in ("fixed", "logsparse", "rowmajor", "joint"):
        counted = []
        for n in lengths:
            segment = 32 if kind == "logsparse" else int(n**0.5)
            one = jax.ShapeDtypeStruct((1, 1, n, 16), jnp.float32)
            settings = CombinerSettings(kind, segment)
            attend = partial(combiner_attention, visible=Visible(causal=True), settings=settings)
            counted.append(program_flops(attend, one, one, one))
        rows[kind] = log_log_slopes(lengths, np.array(counted))
    assert 1.45 < rows["fixed"] < 1.55
    assert 1.0 < rows["logsparse"] < 1.1
    assert 1.45 < rows["joint"] < 1.55
    assert 1.45 < rows["rowmajor"] < 1.55


@pytest.mark.slow
def test_decoding_with_summaries_equals_reading_at_once():
    settings = CombinerSettings("fixed", 4, "mean", relu=True)
    attention = attention_of("combiner", settings=settings)
    module = Llama(20, 16, 2, heads=4, kv_heads=2, mlp=24, attention=attention)
    rng = np.random.default_rng(3)
    tokens = jnp.asarray(rng.integers(0, 20, (2, LENGTH)), jnp.int32)
    here = jnp.arange(LENGTH) >= jnp.array([[0], [5]])
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))
    draw = lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    whole = jax.jit(module.apply)(variables, tokens, here)
    further = jax.jit(lambda own, mask, cache: module.apply(variables, own, mask, cache=cache))
    cache, found, at = combiner_cache(module, 2, LENGTH, settings), [], 0
    for size in (6, 1, 6, *(1,) * 9):  # the second six end in the segment after the next
        states = further(tokens[:, at : at + size], here[:, at : at + size], cache)
        cache, at = states.cache, at + size
        found.append(states.last)
    assert int(cache.length) == at == LENGTH
    error = jnp.abs(jnp.concatenate(found, axis=1) - whole)[here].max()
    assert error < 1e-5 * jnp.abs(whole).max()
    # Two layers, two texts, heads of 4 numbers of 4 bytes: of 22 tokens, or of 4 and 6 summaries.
    full = module.init_cache(2, LENGTH)
    assert full.bytes - cache.bytes == 2 * 2 * 4 * 4 * (
        22 * (2 + 2) - 4 * (2 + 2 + 4) - 6 * (2 + 4)
    )


def test_a_cache_of_summaries_refuses_what_is_not_final():
    module = Llama(20, 16, 2, heads=4, kv_heads=2, mlp=24)
    for settings in (CombinerSettings("logsparse", 4), CombinerSettings("fixed", 4, regions=False)):
        with pytest.raises(UserError, match="expected kind 'fixed' with regions"):
            combiner_cache(module, 2, 8, settings)
    with pytest.raises(UserError, match="int8, expected a floating one"):
        combiner_cache(module, 2, 8, CombinerSettings("fixed", 4), dtype=jnp.int8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "log"}, "unknown kind of combiner 'log'"),
        ({"pool": "median"}, "unknown pool 'median'"),
        ({"segment": 0}, "segment=0, expected at least 1"),
        ({"row_summary": "sum"}, "unknown summary of rows 'sum'"),
        ({"row_summary": "wsum"}, "row_summary='wsum' with kind='fixed', expected 'none'"),
        ({"kind": "rowmajor", "pool": "mean"}, "pool='mean' and relu=False with kind='rowmajor'"),
        ({"kind": "rowmajor", "relu": True}, "pool='max' and relu=True with kind='rowmajor'"),
        (
            {"kind": "rowmajor", "row_summary": "proj"},
            "kind='rowmajor' with row_summary='proj' expects a projection",
        ),
    ],
)
def test_wrong_settings_are_named(arrays, changes, message):
    with pytest.raises(ValueError, match=message):
        combiner_attention(*arrays, settings=CombinerSettings(**changes))
    with pytest.raises(ValueError, match="as many queries as keys, got 3 and 22"):
        combiner_attention(arrays[0][:, :, :3], *arrays[1:])


def test_deep_sets_that_would_not_count_are_refused(arrays):
    deep = DeepSet(jnp.eye(6), jnp.eye(6))
    with pytest.raises(ValueError, match="DeepSet with kind='rowmajor', expected none"):
        combiner_attention(*arrays, settings=CombinerSettings("rowmajor", 4), deep=deep)
    with pytest.raises(ValueError, match="DeepSet with relu=True, expected False"):
        combiner_attention(*arrays, settings=CombinerSettings(relu=True), deep=deep)
    module = CombinerAttention(heads=2, settings=CombinerSettings("rowmajor", 4), deep=True)
    with pytest.raises(ValueError, match="DeepSet with kind='rowmajor', expected none"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 4)))


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_of_the_definition_are_named():
    for sizes, message in (
        ({"segment": 0}, "segment is 0, expected a number at least 1"),
        ({"segment": 1.5}, "segment is 1.5, expected a whole number"),
        ({"length": -1}, "length is -1, expected a number at least 0"),
        ({"length": 2.5}, "length is 2.5, expected a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            partition("fixed", **{"length": 6, "segment": 2} | sizes, causal=True)
    nothing = partition("fixed", 0, segment=2, causal=True)
    assert count_keys(nothing) == (0, 0, 0)
    labels = partition("fixed", 6, segment=2, causal=True)
    with pytest.raises(ValueError, match="unknown pool 'median'"):
        combiner_weights(np.ones((6, 2)), np.ones((6, 2)), labels, pool="median")


def test_a_projection_that_does_not_fit_is_refused(arrays):
    sizes = ((2, 21, 7), (4, 5, 7), (7,), (7,), (7, 4, 6))
    projection = RowProjection(*map(jnp.ones, sizes))
    with pytest.raises(ValueError, match="expects no projection"):
        combiner_attention(*arrays, projection=projection)
    settings = CombinerSettings("rowmajor", 4, row_summary="proj")
    with pytest.raises(ValueError, match=r"\(2, 21, 7\) for queries of shape \(2, 4, 22, 6\)"):
        combiner_attention(*arrays, settings=settings, projection=projection)
