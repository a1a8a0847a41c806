import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from rml import kernels
from rml.kernels import deep_kernel_machine as dkm
from rml.kernels import deep_linear, layers, nngp
from rml.kernels.optimize import checked, minimize
from rml.kernels.outputs import Outputs, expected_log_softmax, output_kl

SE = kernels.squared_exponential
KERNELS = "kernel", "output_kernel"
forward = jax.jit(dkm.forward, static_argnames=KERNELS)
predict = jax.jit(dkm.predict, static_argnames=KERNELS)
predict_outputs = jax.jit(dkm.predict_outputs, static_argnames=KERNELS)
objective = jax.jit(dkm.objective, static_argnames=KERNELS)
regression_objective = jax.jit(dkm.regression_objective, static_argnames=KERNELS)
log_marginal_likelihood = jax.jit(nngp.log_marginal_likelihood)
free_gram = jax.jit(layers.free_gram)
kernel_matrix = jax.jit(kernels.gram, static_argnums=0)
deep_linear_grams = jax.jit(deep_linear.deep_linear_grams)


def problem(normal, n=6, d=9, c=2):
    x = jnp.asarray(normal(0, n, d))
    return x, kernels.input_gram(x), jnp.asarray(normal(1, n, c))


def numpy_objective(grams, g, y, kernel, widths, noise):
    """The paper's objective, written with inverses."""
    total, before = 0.0, np.asarray(g)
    for gram, width in zip(np.asarray(grams), widths, strict=True):
        k = np.asarray(kernel_matrix(kernel, jnp.asarray(before)))
        ratio = np.linalg.solve(k, gram)
        total -= width * (np.trace(ratio) - len(k) - np.linalg.slogdet(ratio)[1]) / 2
        before = gram
    k = np.asarray(kernel_matrix(kernel, jnp.asarray(before))) + noise * np.eye(len(before))
    fitted = np.trace(y.T @ np.linalg.solve(k, y)) + y.shape[1] * (
        np.linalg.slogdet(k)[1] + len(k) * np.log(2 * np.pi)
    )
    return total - fitted / 2


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [SE, kernels.relu])
def test_objective_is_the_papers_in_either_parametrisation(normal, kernel):
    _, g, y = problem(normal)
    raw = 0.3 * jnp.asarray(normal(2, 2, 6, 6))
    widths = jnp.array([3.0, 5.0])
    state = forward(raw, g, kernel=kernel)
    options = dict(kernel=kernel, widths=widths, noise=0.1)
    expected = numpy_objective(state.grams, g, np.asarray(y), kernel, [3, 5], 0.1)
    np.testing.assert_allclose(objective(state.grams, g, y, **options), expected, rtol=1e-10)
    np.testing.assert_allclose(regression_objective(raw, g, y, **options), expected, rtol=1e-10)


@pytest.mark.slow
def test_outputs_may_have_a_kernel_of_their_own(normal):
    """Of the objective, in either parametrisation, and of predictions at the training points."""
    x, g, y = problem(normal)
    raw, widths, noise = 0.3 * jnp.asarray(normal(2, 2, 6, 6)), jnp.array([3.0, 5.0]), 0.1
    options = dict(kernel=SE, output_kernel=kernels.relu)
    state = forward(raw, g, **options)
    k = np.asarray(kernel_matrix(kernels.relu, state.grams[-1]))
    np.testing.assert_allclose(state.kernel, k, rtol=1e-12)
    fitted = log_marginal_likelihood(k, y, noise=noise)
    expected = float(fitted - widths @ state.kls)
    given = dict(widths=widths, noise=noise, **options)
    np.testing.assert_allclose(objective(state.grams, g, y, **given), expected, rtol=1e-9)
    np.testing.assert_allclose(regression_objective(raw, g, y, **given), expected, rtol=1e-9)
    found = predict(raw, x, y, x, noise=noise, **options)
    posterior = k @ np.linalg.inv(k + noise * np.eye(6))
    np.testing.assert_allclose(found.mean, posterior @ y, rtol=1e-7)
    np.testing.assert_allclose(found.variance, np.diag(k - posterior @ k), rtol=1e-6)
    outputs = Outputs(jnp.asarray(normal(5, 6, 3)), 0.1 * jnp.asarray(normal(6, 6, 6)))
    root = np.linalg.cholesky(k)
    spread = root @ np.asarray(layers.triangle(outputs.raw))
    found = predict_outputs(raw, outputs, x, x, **options)
    np.testing.assert_allclose(found.mean, root @ outputs.mean, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.variance, np.sum(spread**2, 1), rtol=1e-7)
    labels, key = jnp.array([0, 1, 2, 0, 1, 2]), jax.random.key(0)

    @jax.jit
    def bounds(raw, outputs, prediction, kls):
        bound = expected_log_softmax(key, *prediction, labels, samples=20)
        return dkm.classification_objective(
            raw, outputs, g, labels, key, widths=widths, samples=20, **options
        ), jnp.sum(bound) - output_kl(outputs) - widths @ kls

    ours, expected = bounds(raw, outputs, found, state.kls)
    np.testing.assert_allclose(ours, expected, rtol=1e-7)


@pytest.mark.slow
def test_free_parameters_reach_every_positive_definite_matrix(normal):
    k, g = (jnp.asarray(normal(s, 5, 9)) for s in (3, 4))
    k, g = k @ k.T, g @ g.T
    blocks = kernels.Blocks(k, k[:1], jnp.diagonal(k)[:1])
    layer = jax.jit(layers.propagate)(blocks, free_gram(g, k))
    np.testing.assert_allclose(layer.gram.ii, g, rtol=1e-10)
    # An other point that equals an inducing point has that point's Gram entries.
    np.testing.assert_allclose(layer.gram.ti[0], g[0], rtol=1e-9)
    np.testing.assert_allclose(layer.gram.t[0], g[0, 0], rtol=1e-9)


@jax.jit  # one program for all targets of a shape
def linear_optimum(g, y, widths):
    def loss(raw):
        return -dkm.regression_objective(raw, g, y, kernel=kernels.linear, widths=widths, noise=0.0)

    return minimize(loss, jnp.zeros((2, 6, 6)), steps=1000, tolerance=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("c", "widths"), [(8, (8.0, 8.0)), (2, (5.0, 9.0)), (8, (3.0, 20.0))])
def test_deep_linear_optimum_is_the_closed_form(normal, c, widths):
    """The claim at 1e-4; few outputs and unequal widths included."""
    _, g, y = problem(normal, c=c)
    widths = jnp.array(widths)
    found = checked(linear_optimum(g, y, widths), tolerance=1e-9)
    assert found.converged
    grams = forward(found.params, g, kernel=kernels.linear).grams
    closed = deep_linear_grams(g, y, widths)
    np.testing.assert_allclose(grams, closed, atol=1e-4 * float(jnp.max(jnp.abs(closed))))


@pytest.mark.slow
def test_equal_widths_interpolate_between_input_and_output(normal):
    """G_l = G_0 (G_0⁻¹ Y Yᵀ / c)^(l / (L + 1)), by SciPy's fractional power."""
    from scipy.linalg import fractional_matrix_power

    _, g, y = problem(normal, c=8)
    ratio = np.linalg.solve(g, y @ y.T / 8)
    closed = deep_linear_grams(g, y, jnp.full(3, 8.0))
    for layer in (1, 2, 3):
        expected = np.asarray(g) @ fractional_matrix_power(ratio, layer / 4)
        np.testing.assert_allclose(closed[layer - 1], expected.real, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_large_widths_are_the_nngp_and_small_ones_are_not(normal):
    x, g, y = problem(normal)
    prior = nngp.nngp_grams(g, kernel=SE, depth=2)

    @jax.jit  # one program for all widths
    def distance(width):
        def loss(raw):
            return -dkm.regression_objective(
                raw, g, y, kernel=SE, widths=jnp.full(2, width), noise=0.1
            ) / width  # fmt: skip

        found = minimize(loss, jnp.zeros((2, 6, 6)), steps=300, tolerance=1e-10)
        return jnp.max(jnp.abs(dkm.forward(found.params, g, kernel=SE).grams - prior))

    distances = {width: float(distance(width)) for width in (1.0, 1e3, 1e6)}
    assert distances[1.0] > 0.05
    assert distances[1e6] < 1e-5
    np.testing.assert_allclose(distances[1e3] / distances[1e6], 1e3, rtol=0.1)  # first order: 1/ν
    # At the limit itself predictions are those of the exact Gaussian process.
    raw = jnp.zeros((2, 6, 6))
    new = jnp.asarray(normal(5, 3, 9))
    ours = predict(raw, x, y, new, kernel=SE, noise=0.1)

    @jax.jit
    def limit(x, y, new):
        blocks = kernels.input_blocks(x, new)
        for _ in range(3):
            blocks = kernels.gram_blocks(SE, blocks)
        return nngp.gp_predict(blocks, y, noise=0.1)

    exact = limit(x, y, new)
    np.testing.assert_allclose(ours.mean, exact.mean, atol=1e-9)
    np.testing.assert_allclose(ours.variance, exact.variance, atol=1e-9)


@pytest.mark.slow
def test_exact_gaussian_process_is_scikit_learns(normal):
    x, new, y = normal(6, 20, 3), normal(7, 5, 3), normal(8, 20, 1)
    peer = GaussianProcessRegressor(RBF(np.sqrt(3)), alpha=0.1, optimizer=None).fit(x, y[:, 0])
    mean, deviation = peer.predict(new, return_std=True)

    @jax.jit
    def process(x, y, new):
        blocks = kernels.gram_blocks(SE, kernels.input_blocks(x, new))  # G = X Xᵀ / 3
        likelihood = nngp.log_marginal_likelihood(blocks.ii, y, noise=0.1)
        return nngp.gp_predict(blocks, y, noise=0.1), likelihood

    ours, likelihood = process(x, y, new)
    np.testing.assert_allclose(ours.mean[:, 0], mean, atol=1e-6)
    np.testing.assert_allclose(jnp.sqrt(ours.variance), deviation, atol=1e-6)
    np.testing.assert_allclose(likelihood, peer.log_marginal_likelihood_value_, atol=1e-6)


@pytest.mark.slow
def test_gradients_are_finite_differences(normal):
    _, g, y = problem(normal, n=4, d=5)
    raw = 0.2 * jnp.asarray(normal(9, 2, 4, 4))

    @jax.jit
    @jax.value_and_grad
    def slope(raw):
        return dkm.regression_objective(
            raw, g, y, kernel=kernels.relu, widths=jnp.ones(2), noise=0.1
        )

    grads = slope(raw)[1]
    for index in ((0, 0, 0), (1, 2, 1), (0, 3, 3)):
        step = jnp.zeros_like(raw).at[index].set(1e-6)
        numeric = (slope(raw + step)[0] - slope(raw - step)[0]) / 2e-6
        np.testing.assert_allclose(grads[index], numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_of_a_singular_matrix_the_objective_is_not_a_number_without_jitter(normal, dtype):
    _, g, y = problem(normal)
    rows = np.array([0, 1, 2, 0, 0, 0])  # equal to the first point: pivots are exactly 0
    g, y = jnp.asarray(g[rows][:, rows], dtype), jnp.asarray(y, dtype)
    options = dict(kernel=SE, widths=jnp.ones(1, dtype), noise=0.1)
    singular = kernel_matrix(SE, g)
    regular = singular + 0.1 * jnp.eye(6, dtype=dtype)
    assert np.isnan(objective(regular[None], g, y, **options))  # its kernel matrix
    other = g + 0.1 * jnp.eye(6, dtype=dtype)
    assert np.isfinite(objective(regular[None], other, y, **options))
    assert np.isnan(objective(singular[None], other, y, **options))
    assert np.isnan(free_gram(singular, regular)).any()
    assert np.isfinite(free_gram(regular, singular)).all()
    raw = jnp.zeros((1, 6, 6), dtype)
    assert forward(raw, g, kernel=SE).jitters[0] > 0
    assert np.isfinite(regression_objective(raw, g, y, **options))
