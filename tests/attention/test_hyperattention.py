"""HyperAttention: limits, the authors' numbers, gradients, unbiased sums, causality, padding."""

import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from rml.attention.hardness import hardness, heavy_mask
from rml.attention.hyper_samples import HyperSettings, RowSums, Samples, draw_samples, log_floor
from rml.attention.hyperattention import causal_part, hyper_attention, sorted_part
from rml.attention.sort_lsh import buckets, gray_rank, hyperplanes, sorted_order
from rml.ops.attention_parts import Part, Visible, attend_part
from rml.ops.blocked_attention import attend_in_blocks

GOLDEN = np.load(Path(__file__).parent / "golden" / "hyperattention.npz")
"""Numbers of insuhan/hyper-attn at 68b91e9 on the CPU in float64: scale 0.9, 4 planes, blocks of 8,
5 samples. `samples<n>` are places among the sorted keys, in the order of its calls. That path of it
drops the mask of a sample in the query's own block, which was put back: no key counts twice."""


def draw(seed, *shape):
    """NumPy's numbers, which compile nothing."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def golden(name):
    keys = ("query", "key", "value", "planes", "out", "lse")
    return tuple(jnp.asarray(GOLDEN[f"{name}_{key}"]) for key in keys)


def test_neighbours_in_the_gray_code_differ_in_one_bit():
    order = np.argsort(gray_rank(jnp.arange(128)))
    assert [bin(a ^ b).count("1") for a, b in itertools.pairwise(order)] == [1] * 127


def authors_samples(key, planes, sampled):
    """Their places among sorted keys as indices of keys, each standing for n / m of them."""
    order = sorted_order(key, planes, order="authors")
    index = jnp.take_along_axis(order, jnp.asarray(sampled), axis=-1)
    weight = jnp.log(key.shape[-2] / index.shape[-1])
    return Samples(index, jnp.full(index.shape, weight, jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "cross"])
def test_one_level_gives_the_authors_numbers(name):
    query, key, value, planes, out, lse = golden(name)
    settings = HyperSettings(block=8, order="authors")

    @jax.jit
    def run(query, key, value, planes):
        samples = authors_samples(key, planes, GOLDEN[f"{name}_samples0"])
        here = jnp.ones(key.shape[:-1], bool)
        return sorted_part(query[:, :, None], key, value, here, planes, samples, settings, 0.9)

    found = run(query, key, value, planes)
    np.testing.assert_allclose(found.out[:, :, 0], out, atol=2e-6)
    np.testing.assert_allclose(found.lse[:, :, 0], lse, atol=2e-6)


@pytest.mark.slow
def test_causal_recursion_gives_the_authors_numbers():
    query, key, value, planes, out, lse = golden("causal")
    b, h, n, d = key.shape

    def drawn(level, values, here):
        # Theirs recurses before it samples, and folds halves into heads.
        sampled = GOLDEN[f"causal_samples{1 - level}"].reshape(b, h, 2**level, -1)
        halves = key.reshape(b, h, 2**level, 2, -1, d)[:, :, :, 0]
        return jax.tree.map(
            lambda x: jnp.moveaxis(x, 2, 0), authors_samples(halves, planes, sampled)
        )

    here = jnp.ones((b, n), bool)
    settings = HyperSettings(block=8, order="authors", least=24)
    run = jax.jit(partial(causal_part, draw=drawn, settings=settings, scale=0.9))
    found = run(query[:, :, None], key, value, here, planes)
    np.testing.assert_allclose(found.out[:, :, 0], out, atol=2e-6)
    np.testing.assert_allclose(found.lse[:, :, 0], lse, atol=2e-6)


def with_gradients(run, arrays):
    """Output and log-sum-exp of `run`, and gradients of products with random arrays."""

    @jax.jit
    def both(*arrays):
        part, backward = jax.vjp(run, *arrays)
        turned = Part(draw(7, *part.out.shape), draw(8, *part.lse.shape))
        return part, backward(turned)

    return both(*arrays)


def assert_same(found, wanted, atol):
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(own, other, atol=atol)


def inputs(t=40, s=40):
    return draw(0, 2, 4, t, 8), draw(1, 2, 2, s, 8), draw(2, 2, 2, s, 5)


HERE = jnp.asarray(np.arange(40) < np.array([[40], [23]]))


def by_matrix(query, key, value, here=None, *, causal=False):
    """Exact output and log-sum-exp, from the matrix of logits in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    key, value = (x.repeat(query.shape[1] // x.shape[1], axis=1) for x in (key, value))
    logits = query @ key.swapaxes(2, 3) * query.shape[3] ** -0.5
    if here is not None:
        logits = np.where(np.asarray(here)[:, None, None], logits, -np.inf)
    if causal:
        logits = np.where(np.tri(*logits.shape[2:], dtype=bool), logits, -np.inf)
    lse = logsumexp(logits, axis=-1)
    return Part(np.exp(logits - lse[..., None]) @ value, lse)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        HyperSettings(block=40, samples=0, least=10),
        HyperSettings(block=64, samples=3, least=10),  # no sample lies outside the only block
        HyperSettings(block=6, samples=3, least=40),
        HyperSettings(block=40, samples=0, least=10, sinks=3),
        HyperSettings(block=6, samples=2, least=0, sinks=39),
    ],
    ids=["one block", "larger block", "short", "sinks", "sinks alone"],
)
def test_it_is_exact_in_its_limits(settings, causal):
    """Also where the last of four causal pieces is short."""
    arrays, here = inputs(39, 39), HERE[:, :39]
    visible = Visible(here, causal=causal)
    run = partial(hyper_attention, visible=visible, rng=jax.random.key(3), settings=settings)
    found = jax.jit(run)(*arrays)
    exact = by_matrix(*arrays, here, causal=causal)
    np.testing.assert_allclose(found.out, exact.out, atol=2e-6)
    np.testing.assert_allclose(found.lse, exact.lse, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["uniform", "value_norm"])
def test_sinks_are_seen_exactly_and_the_rest_is_approximated_without_them(sampling):
    """Other queries than keys; those in the heavy mask are the sinks and the blocks of the rest."""
    query, key, value = inputs(30, 47)
    settings = HyperSettings(planes=4, block=6, samples=7, least=0, sampling=sampling, sinks=3)
    run = partial(hyper_attention, rng=jax.random.key(5))
    found = run(query, key, value, settings=settings)
    # So many blocks have the 44 keys that are left, too.
    rest = run(query, key[:, :, 3:], value[:, :, 3:], settings=settings._replace(sinks=0))
    sinks = by_matrix(query, key[:, :, :3], value[:, :, :3], np.ones((2, 3), bool), causal=False)
    share = 1 / (1 + np.exp(rest.lse - sinks.lse))[..., None]
    np.testing.assert_allclose(found.out, share * sinks.out + (1 - share) * rest.out, atol=5e-6)
    np.testing.assert_allclose(found.lse, np.logaddexp(rest.lse, sinks.lse), atol=5e-6)
    planes = hyperplanes(jax.random.key(0), 4, 8)
    one, other = query[:, :2], key
    mask = heavy_mask(one, other, planes, settings)
    assert mask[..., :3].all()
    blocks = heavy_mask(one, other[:, :, 3:], planes, settings._replace(sinks=0))
    np.testing.assert_array_equal(mask[..., 3:], blocks)


@pytest.mark.slow
def test_causal_sinks_take_away_the_error_of_a_column_that_all_look_at():
    query, key, value = inputs(40, 40)
    key = key.at[:, :, 1:].multiply(0.3)
    query = query + 3 * jnp.repeat(key[:, :, :1], query.shape[1] // key.shape[1], axis=1)
    visible, rng = Visible(causal=True), jax.random.key(2)
    exact = by_matrix(query, key, value, np.ones((2, 40), bool), causal=True).out
    settings = HyperSettings(planes=3, block=4, samples=4, least=10)
    errors = [
        np.linalg.norm(
            hyper_attention(query, key, value, visible, rng=rng, settings=own).out - exact
        )
        for own in (settings, settings._replace(sinks=1))
    ]
    assert errors[1] < errors[0] / 3


@pytest.fixture(scope="module")
def exact_gradients():
    return with_gradients(partial(attend_in_blocks, visible=Visible(HERE)), inputs())


@pytest.mark.slow
def test_gradients_are_exact_where_one_block_has_all(exact_gradients):
    visible, settings = Visible(HERE), HyperSettings(block=40, samples=0, least=2)
    run = partial(hyper_attention, visible=visible, rng=jax.random.key(3), settings=settings)
    assert_same(with_gradients(run, inputs()), exact_gradients, 5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_every_key_as_a_sample_once_is_exact(overlap, exact_gradients):
    query, key, value = inputs()
    settings = HyperSettings(block=6, overlap=overlap)
    here = HERE[:, None]

    def run(query, key, value):
        index, weight = jnp.arange(40), jnp.where(here, 0.0, -jnp.inf)
        every = Samples(*(jnp.broadcast_to(x, (2, 2, 40)) for x in (index, weight)))
        planes = hyperplanes(jax.random.key(0), 5, 8)
        grouped = query.reshape(2, 2, 2, 40, 8)
        part = sorted_part(grouped, key, value, here, planes, every, settings, 8**-0.5)
        return Part(part.out.reshape(2, 4, 40, 5), part.lse.reshape(2, 4, 40))

    assert_same(with_gradients(run, (query, key, value)), exact_gradients, 5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_without_samples_it_attends_to_the_heavy_mask(overlap):
    query, key, value = draw(0, 1, 1, 40, 8), draw(1, 1, 1, 40, 8), draw(2, 1, 1, 40, 5)
    settings = HyperSettings(planes=5, block=6, samples=0, overlap=overlap)

    @jax.jit
    def run(query, key, value):
        planes, here = hyperplanes(jax.random.key(0), 5, 8), jnp.ones((1, 1, 40), bool)
        grouped = query[:, :, None]
        found = sorted_part(grouped, key, value, here, planes, None, settings, 8**-0.5)
        mask = heavy_mask(query, key, planes, settings)
        return found.out[:, :, 0], mask, attend_part(query, key, value, mask).out

    found, mask, exact = run(query, key, value)
    assert (np.sum(mask, axis=-1) >= (7 if overlap else 4)).all()
    np.testing.assert_allclose(found, exact, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["uniform", "value_norm"])
def test_sums_over_samples_are_unbiased(sampling):
    """5% is four standard errors of these draws; a wrong weight misses by more."""
    value = draw(0, 30, 4) * np.linspace(0.2, 2, 30, dtype=np.float32)[:, None]
    here = jnp.asarray(np.arange(30) < 25)
    terms = np.where(here, np.exp(np.asarray(draw(1, 30)) * 0.3), 0.0)
    settings = HyperSettings(samples=8, sampling=sampling)

    @jax.jit
    @jax.vmap
    def drawn(key):
        return draw_samples(key, value, here, settings)[:2]

    chosen, log_weight = map(np.asarray, drawn(jax.random.split(jax.random.key(2), 3000)))
    sums = np.sum(terms[chosen] * np.exp(log_weight), axis=1)
    np.testing.assert_allclose(sums.mean(), terms.sum(), rtol=0.05)
    if sampling == "value_norm":  # heavy values are drawn more often
        share = np.bincount(chosen.ravel(), minlength=30) / chosen.size
        norms = np.where(here, np.square(value).sum(-1), 0)
        np.testing.assert_allclose(share, norms / norms.sum(), atol=0.03)


@pytest.mark.slow
def test_sums_outside_the_block_are_unbiased_and_their_ratio_nearly():
    """The bias of an output falls like 1 / samples, here with four times as many.

    E[õ - o] = E[(õ - o)(1 - D̃ / D)], as products õ D̃ and sums D̃ are unbiased; the right side has
    far less variance.
    """
    query, key, value = (np.asarray(draw(i, *n)) for i, n in enumerate([(24, 4), (24, 4), (24, 3)]))
    query = np.float32(0.4) * query[None]

    @partial(jax.jit, static_argnames="m")
    def drawn(rng, query, key, value, m):
        rngs, here = jax.random.split(rng, 4000), jnp.ones(24, bool)
        planes = hyperplanes(jax.random.key(4), 3, 4)
        exact = attend_part(query[0], key, value, scale=1.0)
        settings = HyperSettings(block=6, samples=m)

        def one(rng):
            samples = draw_samples(rng, value, here, settings)
            return sorted_part(query, key, value, here, planes, samples, settings, 1.0)

        alone = sorted_part(query, key, value, here, planes, None, settings, 1.0)
        return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(rngs)), alone.lse[0], exact

    biases = []
    for m in (12, 48):
        given = jax.random.key(5), query, key, value
        part, alone, exact = jax.device_get(drawn(*given, m))
        rest = np.exp(part.lse) - np.exp(alone)
        wanted = np.exp(exact.lse) - np.exp(alone)
        error = rest.std(axis=0) / 4000**0.5
        assert (error < 0.03 * wanted).all()
        assert (np.abs(rest.mean(axis=0) - wanted) < 4.5 * error).all()
        less = 1 - np.exp(part.lse - exact.lse)[..., None]
        biases.append(np.linalg.norm(((part.out - exact.out) * less).mean(axis=0)))
    assert 3.3 < biases[0] / biases[1] < 4.8


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["uniform", "value_norm"])
def test_nothing_of_the_future_and_nothing_of_padding_is_read(sampling):
    query, key, value = inputs()
    settings = HyperSettings(block=4, samples=3, least=10, planes=4, sampling=sampling)

    @jax.jit
    def run(query, key, value):
        def attend(key, value):
            visible = Visible(HERE, causal=True)
            return hyper_attention(
                query, key, value, visible, rng=jax.random.key(3), settings=settings
            ).out

        out, backward = jax.vjp(attend, key, value)
        return out, backward(jnp.zeros_like(out).at[0, :, :17].set(1.0))

    out, gradients = run(query, key, value)
    for gradient in map(np.asarray, gradients):
        assert not gradient[0, :, 17:].any()
        assert gradient[0, :, :17].any(axis=-1).all()
    other, _ = run(*with_other_padding())
    np.testing.assert_array_equal(other[1, :, :23], out[1, :, :23])


def with_other_padding():
    """The inputs with other values at places of `HERE` that are not there, in all directions."""
    there = np.asarray(HERE)[:, None, :, None]
    return tuple(jnp.asarray(np.where(there, x, 3 * draw(9, *x.shape))) for x in inputs())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planes", "sampling"), [(4, "uniform"), (4, "value_norm"), (0, "value_norm")]
)
def test_padding_may_be_anything(planes, sampling):
    settings = HyperSettings(planes, block=6, samples=8, least=0, sampling=sampling, kappa=1.5)
    run = partial(hyper_attention, visible=Visible(HERE), rng=jax.random.key(3), settings=settings)
    run = jax.jit(run)
    for own, other in zip(run(*inputs()), run(*with_other_padding()), strict=True):
        np.testing.assert_array_equal(own[1, :, :23], other[1, :, :23])


@pytest.mark.slow
def test_more_samples_and_larger_blocks_err_less_and_sorting_helps():
    query, key, value = (np.asarray(draw(i, 1, 4, 512, 8)) for i in range(3))
    query = 1.5 * query
    key = 0.8 * query[:, :, ::-1] + 0.6 * key  # every query has a key that is near it
    exact = by_matrix(query, key, value).out
    query, key, value = map(jnp.asarray, (query, key, value))

    def error(**settings):
        settings = HyperSettings(least=0, **settings)

        def one(rng):
            return hyper_attention(query, key, value, rng=rng, settings=settings).out

        outs = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 6))
        return np.linalg.norm(outs - exact) / np.linalg.norm(exact) / 6**0.5

    few = error(planes=6, block=16, samples=16)
    assert error(planes=6, block=16, samples=64) < 0.85 * few
    assert error(planes=6, block=64, samples=16) < 0.9 * few
    unsorted = error(planes=1, block=16, samples=16)
    assert few < 0.95 * unsorted


def bounded_oracle(query, key, value, heavy, samples, settings, rows):
    """One head's output and sums of rows in float64, by loops over its queries."""
    scale, s = query.shape[-1] ** -0.5, len(key)
    exponentials = np.exp(np.asarray(query, float) @ np.asarray(key, float).T * scale)
    sums = samples.row_sums
    tau = max((exponentials[i] * ~heavy[i]).sum() for i in rows)
    floor, out, total, bound = tau / settings.kappa, [], [], set()
    for i, row in enumerate(exponentials):
        own = (row * heavy[i]).sum()
        cap = settings.cap * len(sums.chosen) * (own + floor) / (s * np.log(s))
        cap = cap if heavy.any() else np.inf  # without blocks there is none
        rest = 0.0
        for j, weight in zip(sums.chosen, np.exp(sums.log_weight), strict=True):
            rest += 0 if heavy[i, j] else weight * min(row[j], cap)
            bound |= {"cap"} if row[j] > cap and not heavy[i, j] else set()
        bound |= {"floor" if rest < floor else "sum"}
        total.append(own + max(rest, floor))
        shares = np.exp(samples.log_weight) * row[samples.chosen] * ~heavy[i, samples.chosen]
        granted = min(1.0, max(rest, floor) / shares.sum())
        bound |= {"granted"} if granted < 1 else {"own"}
        top = (row * heavy[i]) @ np.asarray(value, float)
        top = top + granted * shares @ np.asarray(value[samples.chosen], float)
        out.append(top / total[-1])
    return np.array(out), np.log(total), bound


@pytest.mark.slow
@pytest.mark.parametrize(("planes", "cap"), [(4, 0.7), (0, 3.0)])
def test_sums_of_rows_are_sampled_uniformly_and_bounded(planes, cap):
    query, key, value = (np.asarray(draw(i, *n)) for i, n in enumerate(((40, 8), (36, 8), (36, 5))))
    query, key = 1.5 * query, 1.5 * key
    settings = HyperSettings(
        planes, block=6, samples=7, least=0, sampling="value_norm", cap=cap, kappa=3.0
    )

    @jax.jit
    def run(*arrays):
        rng = jax.random.key(5)
        query, key, value = (x[None, None] for x in arrays)
        found = hyper_attention(query, key, value, rng=rng, settings=settings)
        of_planes, of_samples = jax.random.split(rng)
        drawn = draw_samples(of_samples, value, jnp.ones((1, 1, 36), bool), settings)
        heavy, order = jnp.zeros((40, 36), bool), jnp.arange(40)
        if planes:
            normals = hyperplanes(of_planes, planes, 8)
            heavy = heavy_mask(*arrays[:2], normals, settings)
            order = sorted_order(arrays[0], normals)
        return found, jax.tree.map(lambda x: x[0, 0], drawn), heavy, order

    found, samples, heavy, order = jax.tree.map(np.asarray, run(query, key, value))
    rows = order[(samples.row_sums.rows * 40).astype(int)]
    out, lse, bound = bounded_oracle(query, key, value, heavy, samples, settings, rows)
    assert bound == {"floor", "sum", "granted", "own"} | ({"cap"} if planes else set())
    np.testing.assert_allclose(found.out[0, 0], out, atol=2e-5)
    np.testing.assert_allclose(found.lse[0, 0], lse, atol=2e-5)
    share = np.exp(samples.row_sums.log_weight)
    np.testing.assert_allclose(share, 36 / 7, rtol=1e-5)


@pytest.mark.parametrize("planes", [0, 3])
@pytest.mark.slow
def test_bounded_sums_make_no_output_longer_than_its_values(planes):
    query, key, value = draw(0, 1, 1, 64, 8), draw(1, 1, 1, 64, 8), jnp.ones((1, 1, 64, 2))
    settings = HyperSettings(planes, block=8, samples=48, least=0, sampling="value_norm")

    @jax.jit
    def run(factor):
        def attend(query):
            return hyper_attention(query, key, value, rng=jax.random.key(2), settings=settings).out

        out, back = jax.vjp(attend, factor * query)
        return out, back(jnp.ones_like(out))

    for factor in (0.0, 1.0, 100.0, 10_000.0):
        out, gradient = run(factor)
        assert np.isfinite(gradient).all()
        assert (np.asarray(out) <= 1 + 1e-5).all()
        if factor == 0:  # all keys are alike
            np.testing.assert_allclose(out, 1.0, atol=0.15 if planes else 1e-5)


@pytest.mark.slow
def test_without_bounds_every_key_as_a_sample_once_is_exact():
    query, key, value = inputs()
    settings = HyperSettings(
        block=6, overlap=True, sampling="value_norm", cap=float("inf"), kappa=float("inf")
    )

    @jax.jit
    def both(query, key, value):
        every = jnp.broadcast_to(jnp.arange(40), (2, 2, 40)), jnp.zeros((2, 2, 40))
        every = Samples(*every, RowSums(*every, jnp.zeros((2, 2, 1))))
        grouped, here = query.reshape(2, 2, 2, 40, 8), jnp.ones((2, 2, 40), bool)
        return [
            sorted_part(grouped, key, value, here, planes, every, settings, 8**-0.5)
            for planes in (hyperplanes(jax.random.key(0), 5, 8), None)
        ]

    exact = by_matrix(query, key, value)
    for out, lse in both(query, key, value):
        np.testing.assert_allclose(out.reshape(exact.out.shape), exact.out, atol=2e-6)
        np.testing.assert_allclose(lse.reshape(exact.lse.shape), exact.lse, atol=2e-6)


@pytest.mark.slow
def test_without_planes_samples_alone_stand_for_all_keys():
    query, key, value = inputs()
    settings = HyperSettings(planes=0, samples=7, least=0)

    @jax.jit
    def run(query, key, value):
        rng, here = jax.random.key(3), jnp.ones(value.shape[:3], bool)
        chosen = draw_samples(jax.random.split(rng)[1], value, here, settings).chosen
        return hyper_attention(query, key, value, rng=rng, settings=settings), chosen

    found, chosen = run(query, key, value)
    key, value = (np.take_along_axis(np.asarray(x), chosen[..., None], 2) for x in (key, value))
    wanted = by_matrix(query, key, value)
    np.testing.assert_allclose(found.out, wanted.out, atol=1e-5)
    np.testing.assert_allclose(found.lse, wanted.lse + np.log(40 / 7), rtol=1e-5)


@pytest.mark.slow
def test_hardness_of_uniform_and_of_one_hot_attention():
    measure = jax.jit(hardness, static_argnames="scale")

    def full(number, *shape):
        return np.full(shape, number, np.float32)

    uniform = measure(full(0, 6, 4), draw(0, 6, 4))
    np.testing.assert_allclose(uniform, (1.0, 1.0), rtol=1e-6)
    one_hot = full(0, 6, 4)
    one_hot[2] = 100.0
    one = measure(full(1, 6, 4), one_hot)
    np.testing.assert_allclose(one.alpha, 36.0, rtol=1e-6)
    heavy = np.eye(3, dtype=bool)
    key = np.log(np.array([[1.0], [2.0], [5.0]], np.float32))
    rest = measure(full(1, 3, 1), key, heavy, scale=1.0)  # sums 7, 6 and 3
    np.testing.assert_allclose(rest.kappa, 7 / 3, rtol=1e-6)
    rows = np.array([[True, True, True], [True, False, False]])  # all of them, the first
    nothing = measure(
        full(1, 2, 3, 1), np.stack([key, key]), np.stack([rows] * 3, axis=-1), scale=1.0
    )
    np.testing.assert_array_equal(nothing.kappa, [1.0, np.inf])
    long = np.full((6, 32), 60, np.float16)  # products are beyond its largest number
    np.testing.assert_allclose(measure(long, long), (1.0, 1.0), rtol=1e-6)
    of_rows = np.array([0.1, 0.6], np.float32)
    floor = jax.jit(partial(log_floor, settings=HyperSettings(kappa=3.0), scale=0.5))(
        long[None], long, np.ones(6, bool), of_rows
    )
    np.testing.assert_allclose(floor, 32 * 60**2 / 2 + np.log(6 / 3), rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("query", "key", "message"),
    [
        ((2, 0, 3), (2, 4, 3), "expected at least one example"),
        ((2, 4, 3), (2, 0, 3), "keys is 0, expected a number above 0"),
        ((2, 4, 0), (2, 4, 0), "expected at least one feature"),
        ((2, 4, 3), (2, 4, 2), "shapes do not fit"),
    ],
)
def test_hardness_needs_queries_keys_and_features(query, key, message):
    given = jnp.zeros(query), jnp.zeros(key)
    with pytest.raises(ValueError, match=message):
        hardness(*given)
    with pytest.raises(ValueError, match=message):
        heavy_mask(*given, jnp.zeros((4, query[-1])), HyperSettings(block=2))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("vectors", "planes", "message"),
    [
        ((0, 3), (4, 3), "expected at least one example"),
        ((5, 0), (4, 0), "expected at least one feature"),
        ((5, 3), (4, 2), "shapes do not fit"),
        ((5, 3), (31, 3), "planes is 31, expected a number between 1 and 30"),
    ],
)
def test_buckets_are_of_vectors_and_of_planes_of_their_width(vectors, planes, message):
    with pytest.raises(ValueError, match=message):
        buckets(jnp.zeros(vectors), jnp.zeros(planes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (HyperSettings(block=0), "block=0"),
        (HyperSettings(sinks=-1), "sinks=-1"),
        (HyperSettings(samples=-1), "samples=-1"),
        (HyperSettings(planes=0, samples=0), "samples=0, expected at least 1"),
        (HyperSettings(planes=31, least=0), "planes=31"),
        (HyperSettings(block=5, overlap=True), "block=5, expected an even number"),
        (HyperSettings(sampling="norm"), "norm"),
        (HyperSettings(cap=0.0), r"cap=0\.0, expected above 0"),
        (HyperSettings(kappa=-1.0), r"kappa=-1\.0, expected above 0"),
        (HyperSettings(order="grey", least=0), "grey"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        hyper_attention(*inputs(), rng=jax.random.key(0), settings=settings)


def test_wrong_shapes_are_named():
    query, key, value = inputs(t=30)
    rng = jax.random.key(0)
    with pytest.raises(ValueError, match="30 and 40"):
        hyper_attention(query, key, value, Visible(causal=True), rng=rng)
    with pytest.raises(ValueError, match="window=3"):
        hyper_attention(query, key, value, Visible(window=3), rng=rng)
    with pytest.raises(ValueError, match="2 heads of keys must divide 3"):
        hyper_attention(query[:, :3], key, value, rng=rng)
