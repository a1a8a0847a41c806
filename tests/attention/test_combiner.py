"""Combiner: the definition in float64, exact limits, causality, padding, cost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention.combiner import Settings, combiner_attention
from rml.attention.combiner_summaries import DeepSet
from rml.attention.partitions import DIRECT, combiner_weights, count_keys, partition
from rml.evaluation import log_log_slopes
from rml.evaluation.costs import program_flops
from rml.ops.attention_parts import Visible, attend_part

KINDS = ("fixed", "logsparse", "vertical", "horizontal")
LENGTH = 22
"""Not a multiple of the segment: the last one is short."""
HERE = np.arange(LENGTH) < np.array([[LENGTH], [13]])


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def arrays():
    shapes = ((2, 4, LENGTH, 6), (2, 2, LENGTH, 6), (2, 2, LENGTH, 5))
    return tuple(draw(i, *shape) for i, shape in enumerate(shapes))


def run(settings, *, causal, here=HERE, deep=None):
    visible = Visible(None if here is None else jnp.asarray(here), causal=causal)
    return jax.jit(
        partial(combiner_attention, visible=visible, settings=settings, deep=deep, scale=0.7)
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
                          deep=deep, scale=0.7)  # fmt: skip
        if settings.kind == "mixture" and settings.regions:
            matrix = (weights(own[0]) + weights(own[1])) / 2
        else:
            matrix = weights(*own)
        out[b, h] = matrix @ value[b, h // 2]
    return out


@pytest.mark.parametrize(
    ("settings", "causal"),
    [
        (Settings("fixed", 4), False),
        (Settings("fixed", 4, "mean"), True),
        (Settings("logsparse", 4), False),
        (Settings("vertical", 4, "mean"), False),
        (Settings("mixture", 4), True),
        (Settings("joint", 4), True),
        (Settings("mixture", 4, regions=False), True),
    ],
)
def test_it_is_the_conditional_expectation_of_the_definition(arrays, settings, causal):
    found = run(settings, causal=causal)(*arrays)
    wanted = reference(arrays, settings, causal)
    seen = HERE[:, None, :, None]  # what padding becomes has no meaning
    np.testing.assert_allclose(found * seen, wanted * seen, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "causal"), [(Settings("fixed", 4, "sum"), True), (Settings("joint", 4), False)]
)
def test_regions_are_summarised_by_deep_sets(arrays, settings, causal):
    deep = DeepSet(*np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32))
    found = run(settings, causal=causal, deep=jax.tree.map(jnp.asarray, deep))(*arrays)
    wanted = reference(arrays, settings, causal, deep)
    seen = HERE[:, None, :, None]
    np.testing.assert_allclose(found * seen, wanted * seen, atol=5e-6)


@pytest.mark.parametrize(
    ("settings", "causal"),
    [
        (Settings("logsparse", 64), True),
        (Settings("vertical", 11), True),  # two rows: one token above
        (Settings("horizontal", 2), False),  # two columns: one token beside
    ],
)
def test_it_is_exact_in_its_limits(arrays, settings, causal):
    query, key, value = arrays
    found = run(settings, causal=causal)(*arrays)
    grouped = query.reshape(2, 2, 2, LENGTH, 6)
    mask = Visible(jnp.asarray(HERE), causal=causal).dense(LENGTH, LENGTH)[:, None, None]
    exact = attend_part(grouped, key[:, :, None], value[:, :, None], mask, scale=0.7).out
    np.testing.assert_allclose(found, exact.reshape(found.shape), atol=2e-6)


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


def test_nothing_of_the_future_is_read(arrays):
    query, key, value = arrays

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2))
    def gradients(*arrays):
        early = run(Settings("joint", 4), causal=True, here=None)(*arrays)[:, :, :10]
        return jnp.sin(early).sum()

    for found in gradients(query, key, value):
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


def test_operations_grow_as_stated():
    lengths = (1024, 4096, 16384)
    rows = {}
    for kind in ("fixed", "logsparse", "joint"):
        counted = []
        for n in lengths:
            segment = 32 if kind == "logsparse" else int(n**0.5)
            one = jax.ShapeDtypeStruct((1, 1, n, 16), jnp.float32)
            settings = Settings(kind, segment)
            attend = partial(combiner_attention, visible=Visible(causal=True), settings=settings)
            counted.append(program_flops(attend, one, one, one))
        rows[kind] = log_log_slopes(lengths, np.array(counted))
    assert 1.45 < rows["fixed"] < 1.55
    assert 1.0 < rows["logsparse"] < 1.1
    assert 1.45 < rows["joint"] < 1.55


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "log"}, "unknown kind of combiner 'log'"),
        ({"pool": "median"}, "unknown pool 'median'"),
        ({"segment": 0}, "segment=0, expected at least 1"),
    ],
)
def test_wrong_settings_are_named(arrays, changes, message):
    with pytest.raises(ValueError, match=message):
        combiner_attention(*arrays, settings=Settings(**changes))
    with pytest.raises(ValueError, match="as many queries as keys, got 3 and 22"):
        combiner_attention(arrays[0][:, :, :3], *arrays[1:])
