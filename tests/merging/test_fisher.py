"""Fisher information and merging by it, against closed forms and NumPy in float64."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.merging import (
    diagonal_fisher,
    dirichlet_weights,
    fisher_merge,
    floored_share,
    grid_weights,
    merge,
    search_weights,
    weighted_average,
)

RNG = np.random.default_rng(2)
X = RNG.normal(size=(7, 3))
KERNEL, BIAS = RNG.normal(size=(3, 4)), RNG.normal(size=4)
PARAMS = {"kernel": jnp.asarray(KERNEL, jnp.float32), "bias": jnp.asarray(BIAS, jnp.float32)}
BATCH = jnp.asarray(X, jnp.float32)


def log_probs(params, x):
    return jax.nn.log_softmax(x @ params["kernel"] + params["bias"])


def probabilities():
    logits = X @ KERNEL + BIAS
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def fisher(**options):
    return jax.jit(lambda p, x: diagonal_fisher(log_probs, p, x, **options))(PARAMS, BATCH)


def test_the_fisher_of_softmax_regression_is_its_closed_form():
    p = probabilities()
    kernel = np.einsum("na,nc->ac", X**2, p * (1 - p)) / len(X)
    # Blocks that do not divide the number of examples change nothing.
    for block in (1, 4):
        found = fisher(block=block)
        np.testing.assert_allclose(found["kernel"], kernel, rtol=1e-5)
        np.testing.assert_allclose(found["bias"], (p * (1 - p)).mean(0), rtol=1e-5)


def test_classes_of_the_largest_probabilities_are_summed():
    p = probabilities()
    wanted = np.zeros_like(KERNEL)
    for x, own in zip(X, p, strict=True):
        for y in np.argsort(-own)[:2]:
            wanted += own[y] * np.outer(x, np.eye(4)[y] - own) ** 2 / len(X)
    np.testing.assert_allclose(fisher(classes=2)["kernel"], wanted, rtol=1e-5)
    np.testing.assert_allclose(fisher(classes=9)["kernel"], fisher()["kernel"], rtol=1e-6)


def test_sampled_classes_are_right_in_the_mean():
    many = jnp.tile(BATCH, (3000, 1))
    found = jax.jit(
        lambda p, x, key: diagonal_fisher(log_probs, p, x, classes="sampled", key=key, block=500)
    )(PARAMS, many, jax.random.key(0))
    exact = fisher()
    assert np.abs(np.asarray(found["kernel"]) / exact["kernel"] - 1).max() < 0.25
    np.testing.assert_allclose(np.sum(found["bias"]), np.sum(exact["bias"]), rtol=0.05)


def test_the_mean_of_squares_is_at_least_the_square_of_the_mean():
    """They are equal for one example alone, so that the gradient of a batch gives no Fisher."""
    p = probabilities()
    likeliest = np.argmax(p, axis=1)
    slopes = np.eye(4)[likeliest] - p
    slopes = np.einsum("na,nc->nac", X, slopes * np.sqrt(p.max(1))[:, None])
    found = np.asarray(fisher(classes=1)["kernel"])
    np.testing.assert_allclose(found, (slopes**2).mean(0), rtol=1e-5)
    assert (found > 1.2 * slopes.mean(0) ** 2).all()
    one = diagonal_fisher(log_probs, PARAMS, BATCH[:1], classes=1)["kernel"]
    np.testing.assert_allclose(one, slopes[0] ** 2, rtol=1e-5)


def test_squares_are_taken_before_sums_over_what_an_example_shares():
    """Two rows of one example share a kernel: the square is of their sum."""

    def pooled(params, x):
        return jax.nn.log_softmax(jnp.sum(x @ params["kernel"], axis=0) + params["bias"])

    rows = jnp.asarray(RNG.normal(size=(3, 2, 3)), jnp.float32)
    found = jax.jit(lambda p, x: diagonal_fisher(pooled, p, x))(PARAMS, rows)
    summed = np.asarray(rows, np.float64).sum(1)
    logits = summed @ KERNEL + BIAS
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = np.einsum("na,nc->ac", summed**2, p * (1 - p)) / 3
    np.testing.assert_allclose(found["kernel"], wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (BATCH[:0], {}, "batch holds no example"),
        ((BATCH, BATCH[:2]), {}, r"batch holds arrays of \[\[7, 3\], \[2, 3\]\], expected as many"),
        ((BATCH, BATCH[0, 0]), {}, r"arrays of \[\[7, 3\], \[\]\], expected as many examples"),
        (BATCH, {"classes": "sampled"}, "key is not given"),
        (BATCH, {"classes": 0}, "classes is 0, expected at least 1"),
        (BATCH, {"block": 0}, "block is 0, expected at least 1"),
    ],
)
def test_what_gives_no_fisher_is_named(batch, options, message):
    with pytest.raises(UserError, match=message):
        diagonal_fisher(log_probs, PARAMS, batch, **options)


@pytest.mark.parametrize("name", ["classes", "block"])
def test_classes_and_blocks_are_whole_numbers(unchecked, name):
    with pytest.raises(ValueError, match=rf"{name} is 1\.5, expected a whole number"):
        diagonal_fisher(log_probs, PARAMS, BATCH, **{name: 1.5})


BASE = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}
EXPERTS = {"a": RNG.normal(size=(3, 2, 3)), "b": RNG.normal(size=(3, 4))}
FISHERS = {k: np.exp(3 * RNG.normal(size=v.shape) - 6) for k, v in EXPERTS.items()}
WEIGHTS = np.array([0.2, 0.5, 0.3])


def as_jax(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


MERGE = jax.jit(fisher_merge, static_argnames=("exclude", "favour_first", "normalise"))


def merged(fishers, weights, **options):
    found = MERGE(BASE, as_jax(EXPERTS), fishers=as_jax(fishers),
                  weights=jnp.asarray(weights, jnp.float32), **options)  # fmt: skip
    return {k: np.asarray(v, np.float64) for k, v in found.items()}


@pytest.mark.parametrize("favour_first", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_merge_is_its_formula(favour_first, normalise):
    floor = 0.01
    sizes = np.sqrt(sum((v.reshape(3, -1) ** 2).sum(1) for v in FISHERS.values()))
    own = WEIGHTS / sizes if normalise else WEIGHTS
    found = merged(FISHERS, WEIGHTS, floor=floor, favour_first=favour_first, normalise=normalise)
    for name, experts in EXPERTS.items():
        raised = FISHERS[name].copy()
        raised[: 1 if favour_first else 3] = np.maximum(raised[: 1 if favour_first else 3], floor)
        assert (raised != FISHERS[name]).any()
        share = own.reshape(3, *[1] * (experts.ndim - 1)) * raised
        np.testing.assert_allclose(
            found[name], (share * experts).sum(0) / share.sum(0), rtol=2e-4, atol=1e-5
        )


@pytest.mark.parametrize("weights", [[0.5, -0.1, 0.6], [0.0] * 3, [0.5, np.nan, 0.5]])
def test_weights_below_zero_or_all_zero_are_refused(weights):
    given, fishers = jnp.asarray(weights), as_jax(FISHERS)
    for call in (
        lambda: merge("weighted_average", BASE, as_jax(EXPERTS), weights=given),
        lambda: weighted_average(BASE, as_jax(EXPERTS), weights=given),
        lambda: fisher_merge(BASE, as_jax(EXPERTS), fishers=fishers, weights=given),
    ):
        with pytest.raises(UserError, match="expected numbers of at least 0, of which one"):
            call()


def test_limits_of_a_merge():
    ones = {k: np.full_like(v, 0.3) for k, v in EXPERTS.items()}
    none = {k: np.concatenate([np.zeros_like(v[:1])] * 3) for k, v in EXPERTS.items()}
    bigger = {
        k: v * np.reshape([1, 1e-20, 1], (3, *[1] * (v.ndim - 1))) for k, v in FISHERS.items()
    }
    mean = {k: v.mean(0) for k, v in EXPERTS.items()}
    first = {k: v[0] for k, v in EXPERTS.items()}
    for found, wanted in (
        (merged(ones, [1 / 3] * 3), mean),
        (merged(none, WEIGHTS), first),
        (merged(none, [1 / 3] * 3, floor=0.0), mean),
        (merged(none, [0.0, 1.0, 0.0]), {k: v[1] for k, v in EXPERTS.items()}),
        (merged(FISHERS, [0.0, 0.0, 1.0]), {k: v[2] for k, v in EXPERTS.items()}),
        # A Fisher's size does not count, however tiny.
        (merged(bigger, WEIGHTS, floor=0.0), merged(FISHERS, WEIGHTS, floor=0.0)),
    ):
        for name in EXPERTS:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_leaves_that_are_excluded_are_the_first_models_and_count_in_no_norm():
    found = merged(FISHERS, WEIGHTS, exclude="^b$", floor=0.0)
    np.testing.assert_allclose(found["b"], EXPERTS["b"][0], rtol=1e-6)
    sizes = np.sqrt((FISHERS["a"].reshape(3, -1) ** 2).sum(1))
    share = (WEIGHTS / sizes).reshape(3, 1, 1) * FISHERS["a"]
    wanted = (share * EXPERTS["a"]).sum(0) / share.sum(0)
    np.testing.assert_allclose(found["a"], wanted, rtol=2e-4, atol=1e-5)
    for exclude, said in (("(", "expected a regular expression"), ("a|b", "matches all leaves")):
        with pytest.raises(UserError, match=said):
            merge("fisher", BASE, as_jax(EXPERTS), fishers=as_jax(FISHERS), exclude=exclude)


def test_ridge_regressions_merge_to_the_one_on_all_data():
    """Columns of each design are orthogonal: Hessians are diagonal, and the merge is exact.

    Each of three has a third of the penalty. Fishers are means over examples, and weights their
    numbers.
    """
    rng, counts, penalty = np.random.default_rng(12), np.array([6, 9, 14]), 2.4
    designs = [np.linalg.qr(rng.normal(size=(n, 5)))[0] * rng.uniform(0.5, 3, 5) for n in counts]
    targets = [x @ rng.normal(size=5) + rng.normal(size=len(x)) for x in designs]

    def ridge(x, y, penalty):
        hessian = x.T @ x + penalty * np.eye(5)
        return np.linalg.solve(hessian, x.T @ y), hessian

    fitted = [ridge(x, y, penalty / 3) for x, y in zip(designs, targets, strict=True)]
    fishers = [np.diag(own) / n for (_, own), n in zip(fitted, counts, strict=True)]
    wanted, _ = ridge(np.concatenate(designs), np.concatenate(targets), penalty)
    found = fisher_merge(
        jnp.zeros(5), jnp.asarray(np.stack([own for own, _ in fitted]), jnp.float32),
        fishers=jnp.asarray(np.stack(fishers), jnp.float32),
        weights=jnp.asarray(counts, jnp.float32), normalise=False,
    )  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("floor", [-1, np.nan])
def test_a_floor_is_no_number_below_0(floor):
    given = as_jax(BASE), as_jax(EXPERTS)
    for call in (partial(fisher_merge, *given, fishers=as_jax(FISHERS)),
                 partial(floored_share, given[0])):  # fmt: skip
        with pytest.raises(ValueError, match=f"floor is {floor}, expected a number at least 0"):
            call(floor=floor)


def test_the_share_below_the_floor():
    tree = {"a": jnp.asarray([1e-7, 1e-5]), "b": jnp.asarray([[0.0, 1.0, 2e-6]])}
    assert float(floored_share(tree)) == pytest.approx(2 / 5)
    assert float(floored_share({"a": jnp.asarray(1e-7), "b": jnp.ones(3)})) == 1 / 4


def test_the_share_below_the_floor_is_that_of_more_entries_than_int32_counts():
    def share(low, high):  # XLA makes no array of copies of one number
        large = {"a": jnp.broadcast_to(low, (3, 2**15, 2**15)),
                 "b": jnp.broadcast_to(high, (2**15, 2**15))}  # fmt: skip
        return floored_share(large)

    assert float(jax.jit(share)(1e-7, 1e-5)) == 3 / 4


DRAW = partial(dirichlet_weights, jax.random.key(0), **{"models": 2, "draws": 2})
SEARCH = partial(search_weights, lambda w: w, jnp.sum, candidates=jnp.ones((3, 2)))


@pytest.mark.slow
def test_weights_are_searched_and_the_first_best_is_taken():
    grid = grid_weights(5)
    np.testing.assert_allclose(grid[:, 0], [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(grid.sum(1), 1)
    found = jax.jit(
        lambda candidates: search_weights(
            lambda w: {"x": w[1]}, lambda p: -jnp.abs(p["x"] - 0.625), candidates, together=2
        )
    )(grid)
    assert int(found.at) == 2
    np.testing.assert_allclose(found.weights, [0.5, 0.5])
    np.testing.assert_allclose(found.scores, [-0.625, -0.375, -0.125, -0.125, -0.375], atol=1e-6)
    drawn = dirichlet_weights(jax.random.key(0), models=4, draws=500)
    np.testing.assert_allclose(drawn.sum(1), 1, rtol=1e-5)
    # Uniform on the simplex: mean 1/4, variance 3/80.
    np.testing.assert_allclose(drawn.mean(0), 0.25, atol=0.03)
    np.testing.assert_allclose(drawn.var(0), 3 / 80, rtol=0.3)
    with pytest.raises(ValueError, match="count is 1"):
        grid_weights(1)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (grid_weights, {"count": 2.5}, r"count is 2\.5, expected a whole number"),
        (DRAW, {"models": 0}, "models is 0, expected a number at least 1"),
        (DRAW, {"models": 2.0}, r"models is 2\.0, expected a whole number"),
        (DRAW, {"draws": 0}, "draws is 0, expected a number at least 1"),
        (DRAW, {"draws": 2.0}, r"draws is 2\.0, expected a whole number"),
        (
            SEARCH,
            {"candidates": jnp.ones((0, 2))},
            r"at least one example, got candidates \(0, 2\)",
        ),
        (SEARCH, {"together": 0}, "together is 0, expected a number at least 1"),
        (SEARCH, {"together": 1.5}, r"together is 1\.5, expected a whole number"),
    ],
)
def test_searches_of_nothing_are_refused(unchecked, function, options, message):
    with pytest.raises(ValueError, match=message):
        function(**options)


GOLDEN = np.load(Path(__file__).parent / "golden" / "fisher_merging.npz")
"""Numbers in float64 of mmatena/model_merging at 46802f9, by `golden/make_fisher_merging.py`."""


def stored(name, count):
    return [jnp.asarray(GOLDEN[f"{name}{i}"]) for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("favour", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_merge_gives_the_numbers_of_the_authors_code(favour, normalise):
    """`_merge_with_coeffs`, with the sizes of `_l2_norm_of_fisher` where it normalises."""
    with jax.enable_x64(True):
        experts, fishers = stored("experts", 2), stored("fishers", 2)
        found = fisher_merge(
            [own[0] for own in experts], experts, fishers=fishers, floor=float(GOLDEN["floor"]),
            weights=jnp.asarray(GOLDEN["coefficients"]), favour_first=favour, normalise=normalise,
        )  # fmt: skip
    for i, own in enumerate(found):
        wanted = GOLDEN[f"merged{i}_{favour}_{normalise}"]
        np.testing.assert_allclose(own, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2])
def test_the_fisher_is_that_of_the_authors_code(block):
    """`_compute_exact_fisher_for_batch`, which gives the sum over examples, of a small network."""

    def logs(variables, x):
        kernel, shift, head, bias = variables
        pooled = x["weights"] @ jnp.tanh(x["tokens"] @ kernel + shift)
        return jax.nn.log_softmax(pooled @ head + bias)

    with jax.enable_x64(True):
        batch = {name: jnp.asarray(GOLDEN[name]) for name in ("tokens", "weights")}
        found = diagonal_fisher(logs, stored("variable", 4), batch, block=block)
    for i, own in enumerate(found):
        np.testing.assert_allclose(own, GOLDEN[f"sum{i}"] / 5, rtol=1e-10)


def test_a_score_that_is_no_number_is_below_all_others():
    candidates = jnp.arange(5.0)
    found = search_weights(
        lambda own: own, lambda own: jnp.where(own == 1, jnp.nan, -own), candidates[::-1]
    )
    assert found.at == 4
    assert jnp.isnan(found.scores).sum() == 1
