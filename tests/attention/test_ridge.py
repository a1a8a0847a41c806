import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, Ridge

from rml.attention import ridge
from rml.attention.random_feature_attention import rfa_features, rfa_weights
from rml.attention.targets import draw_inputs
from rml.errors import UserError


def problem(n, f, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, f)), rng.standard_normal((n, 2))
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "f"), [(30, 8), (8, 30), (9, 9)])
def test_primal_and_dual_are_ridge_regression(n, f):
    x, y = problem(n, f)
    weights = ridge.fit_ridge(jnp.asarray(x), jnp.asarray(y), regularization=0.3)
    expected = Ridge(alpha=0.3, fit_intercept=False).fit(x.astype(np.float64), y).coef_.T
    np.testing.assert_allclose(weights, expected, atol=2e-5)


@pytest.mark.parametrize(("n", "f"), [(30, 8), (8, 30)])
def test_without_penalty_the_norm_is_least(n, f):
    x, y = problem(n, f)
    x[:, 1] = x[:, 0]  # rank deficient
    weights = ridge.fit_ridge(jnp.asarray(x), jnp.asarray(y), regularization=None)
    expected = np.linalg.pinv(x.astype(np.float64), rcond=1e-5) @ y
    np.testing.assert_allclose(weights, expected, atol=3e-5)
    if n < f:
        np.testing.assert_allclose(x @ weights, y, atol=1e-4)


def test_small_eigenvalues_are_cut_as_a_share_of_the_largest():
    rng = np.random.default_rng(5)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    values = 1e-3 * np.array([1.0, 0.5, 0.2, 1e-4, 1e-9, 0.0])
    gram, y = (basis * values) @ basis.T, rng.standard_normal((6, 2))
    for rcond, kept in ((None, 4), (1e-3, 3)):
        found = ridge.solve_min_norm(jnp.asarray(gram), jnp.asarray(y), rcond=rcond)
        part = basis[:, :kept]
        expected = part @ ((part.T @ y) / values[:kept, None])
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2 * np.abs(expected).max())


@pytest.mark.slow
def test_leave_one_out_is_refitting_without_each_example():
    for n, f in ((7, 12), (12, 4)):
        x, y = problem(n, f)
        penalties = jnp.array([0.1, 2.0])
        given = jnp.asarray(x), jnp.asarray(y)
        expected = np.zeros((2, 2))
        for r, penalty in enumerate(penalties):
            for i in range(n):
                rest = np.arange(n) != i
                model = Ridge(alpha=float(penalty), fit_intercept=False).fit(x[rest], y[rest])
                expected[r] += (model.predict(x[i : i + 1])[0] - y[i]) ** 2 / n
        value = ridge.leave_one_out(given[0] @ given[0].T, given[1], penalties)
        np.testing.assert_allclose(value, expected, rtol=1e-3)
        if f < n:
            value = ridge.leave_one_out_primal(*given, penalties)
            np.testing.assert_allclose(value, expected, rtol=1e-3)


def test_an_example_alone_in_its_direction_is_left_out_at_small_penalties_too():
    x = 30 * jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    y = jnp.array([[1.0], [2.0], [3.0], [1.0]])
    found = ridge.leave_one_out_primal(x, y, jnp.array([1e-4, 1e-5, 1e-7]))
    # The first is predicted by 0, each other one by the slope of two: 1, 0.5 and 2.5.
    expected = np.mean(np.square([1.0, 2.0 - 1.0, 3.0 - 0.5, 1.0 + 2.5]))
    np.testing.assert_allclose(found, np.full((3, 1), expected), rtol=1e-4)


def test_float64_where_it_is_enabled():
    x, y = problem(30, 8)
    x, y = x.astype(np.float64), y.astype(np.float64)
    with jax.enable_x64(True):
        weights = ridge.fit_ridge(jnp.asarray(x), jnp.asarray(y), regularization=1e-9)
    expected = LinearRegression(fit_intercept=False).fit(x, y).coef_.T
    np.testing.assert_allclose(weights, expected, atol=1e-9)


def _block(key, inputs):
    return rfa_features(*inputs, rfa_weights(key, 4, 3))


@pytest.mark.slow
def test_streamed_features_are_the_features_at_once():
    left, right = (draw_inputs(jax.random.key(s), n, keys=2, d=3) for s, n in ((0, 9), (1, 5)))
    blocks = jax.random.split(jax.random.key(2), 6)
    weights = jax.jit(jax.vmap(lambda k: rfa_weights(k, 4, 3)))(blocks).reshape(24, 4, 4)
    features = jax.jit(rfa_features)
    phi = [np.asarray(features(*x, weights)).reshape(len(x[0]), -1) for x in (left, right)]
    streamed = jax.jit(partial(ridge.streamed_gram, _block), static_argnames="strips")
    gram = streamed(blocks, left, right)
    np.testing.assert_allclose(gram, phi[0] @ phi[1].T, atol=1e-6)
    y = jax.random.normal(jax.random.key(3), (9, 2))
    gram = streamed(blocks, left, strips=4)
    np.testing.assert_allclose(gram, phi[0] @ phi[0].T, atol=1e-6)
    dual = ridge.solve_ridge(gram, y, 0.1)
    peer = KernelRidge(alpha=0.1, kernel="precomputed").fit(np.asarray(gram, np.float64), y)
    predicted = np.asarray(streamed(blocks, right, left)) @ dual
    np.testing.assert_allclose(predicted, peer.predict(phi[1] @ phi[0].T), atol=1e-4)
    # The weights of the features give the same predictions as the dual coefficients.
    value = jax.jit(partial(ridge.streamed_weights, _block))(blocks, left, dual)
    scale = np.sqrt(6)  # a block's features are scaled as if it were alone
    np.testing.assert_allclose(scale * phi[1] @ np.reshape(value, (-1, 2)), predicted, atol=1e-4)


def test_memory_of_a_hundred_thousand_heads_is_that_of_the_gram_matrix():
    """n = 10,000 and 100,000 heads, which draw their weights block by block: below 2 GB."""
    n, d, count, heads, block = 10_000, 16, 16, 100_000, 50
    inputs = jax.eval_shape(lambda: draw_inputs(jax.random.key(0), n, keys=count, d=d))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), heads // block))

    def fit(keys, inputs, y):
        def feature_map(key, inputs):
            return rfa_features(*inputs, rfa_weights(key, block, d))

        gram = ridge.streamed_gram(feature_map, keys, inputs)
        return ridge.solve_ridge(gram, y, 1e-3)

    y = jax.ShapeDtypeStruct((n, 1), jnp.float32)
    memory = jax.jit(fit).lower(keys, inputs, y).compile().memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert total < 2e9, total


@pytest.mark.slow
def test_replicates_are_vmapped():
    x, y = problem(12, 5)
    batch = jnp.stack([x, x[::-1]]), jnp.stack([y, 2 * y])
    out = jax.jit(jax.vmap(lambda x, y: ridge.fit_ridge(x, y, regularization=0.1)))(*batch)
    for i in range(2):
        expected = ridge.fit_ridge(batch[0][i], batch[1][i], regularization=0.1)
        np.testing.assert_allclose(out[i], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("block", [5, 1024])
def test_prefixes_are_solved_by_one_factorisation(block):
    x, y = (jnp.asarray(a) for a in problem(12, 20))
    solve = jax.jit(lambda g, y: ridge.solve_prefixes(g, y, 0.1, (3, 12), block=block))
    solved = solve(x @ x.T, y)
    for m, (dual, error) in zip((3, 12), solved, strict=True):
        gram = x[:m] @ x[:m].T
        np.testing.assert_allclose(dual, ridge.solve_ridge(gram, y[:m], 0.1), rtol=1e-3, atol=1e-5)
        expected = ridge.leave_one_out(gram, y[:m], jnp.array([0.1]))[0]
        np.testing.assert_allclose(error, expected, rtol=1e-3)


def test_targets_that_broadcasting_would_spread_are_refused(unchecked):
    x, y = (jnp.asarray(a) for a in problem(5, 3))
    gram, penalties = x @ x.T, jnp.array([0.1, 2.0])
    calls = (
        lambda y: ridge.solve_ridge(gram, y, 0.1),
        lambda y: ridge.solve_min_norm(gram, y),
        lambda y: ridge.fit_ridge(x, y, regularization=0.1),
        lambda y: ridge.fit_ridge(x, y, regularization=None),
        lambda y: ridge.leave_one_out(gram, y, penalties),
        lambda y: ridge.leave_one_out_primal(x, y, penalties),
        lambda y: ridge.solve_prefixes(gram, y, 0.1, (2, 4)),
    )
    for call in calls:
        for wrong in (y[:, 0], y[:4]):
            with pytest.raises(ValueError, match=rf"\(5, .*{re.escape(str(wrong.shape))}"):
                call(wrong)


def test_a_negative_penalty_is_named():
    x, y = (jnp.asarray(a) for a in problem(5, 3))
    gram = x @ x.T
    for call in (
        lambda p: ridge.solve_ridge(gram, y, p[0]),
        lambda p: ridge.fit_ridge(x, y, regularization=p[0]),
        lambda p: ridge.leave_one_out(gram, y, p),
        lambda p: ridge.leave_one_out_primal(x, y, p),
        lambda p: ridge.solve_prefixes(gram, y, p[0], (2,)),
    ):
        with pytest.raises(UserError, match=r"regularization is .*-1.*, expected at least 0"):
            call(jnp.array([-1.0, 2.0]))


def test_sizes_and_parts_of_nothing_are_named():
    x, y = (jnp.asarray(a) for a in problem(5, 3))
    gram = x @ x.T
    for sizes in ((), (0, 2), (2, 6)):
        with pytest.raises(UserError, match=re.escape(f"sizes are {sizes}, expected one or more")):
            ridge.solve_prefixes(gram, y, 0.1, sizes)
    with pytest.raises(ValueError, match="block is 0, expected a number above 0"):
        ridge.solve_prefixes(gram, y, 0.1, (2,), block=0)
    for rcond in (-1e-3, 1.5, np.nan):
        with pytest.raises(ValueError, match=f"rcond is {rcond}, expected a number between 0 and"):
            ridge.solve_min_norm(gram, y, rcond=rcond)
    for blocks, strips, name in ((0, 8, "blocks"), (2, 0, "strips")):
        with pytest.raises(ValueError, match=f"{name} is 0, expected a number above 0"):
            ridge.streamed_gram(jnp.multiply, jnp.ones(blocks), x, strips=strips)
