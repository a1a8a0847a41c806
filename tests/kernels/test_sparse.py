from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml import kernels
from rml.errors import UserError
from rml.kernels import deep_kernel_machine as dkm
from rml.kernels import layers, sparse
from rml.kernels.outputs import (
    Outputs,
    expected_log_softmax,
    log_predictive,
    output_marginals,
)
from rml.ops.psd import cholesky
from tests.precision import rounded

SE = kernels.squared_exponential
STATIC = "kernel", "normalization", "jitter", "likelihood"
elbo = jax.jit(sparse.elbo, static_argnames=STATIC)
propagate_sparse = jax.jit(sparse.propagate_sparse, static_argnames=STATIC[:3])
averaged = jax.jit(expected_log_softmax, static_argnames="samples")


def machine_of(normal, x, depth=2, outputs=2, **options):
    machine = sparse.init_sparse(x, depth=depth, outputs=outputs, **options)
    p = len(x)
    return machine._replace(
        raw=0.2 * jnp.asarray(normal(1, depth, p, p)),
        outputs=Outputs(jnp.asarray(normal(2, p, outputs)), 0.1 * jnp.asarray(normal(3, p, p))),
    )


@pytest.mark.slow
def test_all_points_as_inducing_points_are_the_full_machine(normal):
    """The bound with the optimal q is the full objective; predictions are the full machine's."""
    x, y = jnp.asarray(normal(0, 6, 4)), jnp.asarray(normal(4, 6, 2))
    machine = machine_of(normal, x, noise=0.2)
    g = kernels.input_gram(x)
    widths = jnp.array([3.0, 5.0])
    k = jax.jit(partial(dkm.forward, kernel=SE))(machine.raw, g).kernel
    factor = cholesky(k).factor
    precision = jnp.eye(6) + factor.T @ factor / 0.2
    covariance = jnp.linalg.inv(precision)
    optimal = Outputs(
        covariance @ factor.T @ y / 0.2, layers.free_parameters(cholesky(covariance).factor)
    )
    machine = machine._replace(outputs=optimal)
    options = dict(kernel=SE, jitter=0.0)
    bound = elbo(machine, x, y, total=6, widths=widths, likelihood="gaussian", **options)
    full = jax.jit(partial(dkm.regression_objective, kernel=SE))(
        machine.raw, g, y, widths=widths, noise=0.2
    )
    np.testing.assert_allclose(6 * bound, full, rtol=1e-6)
    new = jnp.asarray(normal(5, 3, 4))
    ours = propagate_sparse(machine, new, **options).prediction
    exact = jax.jit(partial(dkm.predict, kernel=SE))(machine.raw, x, y, new, noise=0.2)
    np.testing.assert_allclose(ours.mean, exact.mean, atol=1e-6)
    np.testing.assert_allclose(ours.variance, exact.variance, atol=1e-6)


@pytest.mark.slow
def test_propagation_is_conditioning_of_a_joint_gaussian(normal):
    """F_t | F_i under N(0, K), F_i with second moment G: by inverses in NumPy."""
    a = normal(6, 7, 12)
    k = a @ a.T
    raw = 0.3 * normal(7, 4, 4)
    blocks = kernels.Blocks(*(jnp.asarray(b) for b in (k[:4, :4], k[4:, :4], np.diag(k)[4:])))
    layer = jax.jit(layers.propagate)(blocks, raw)
    g = np.asarray(layer.gram.ii)
    weights = k[4:, :4] @ np.linalg.inv(k[:4, :4])
    own = k[4:, 4:] - weights @ k[:4, 4:] + weights @ g @ weights.T
    np.testing.assert_allclose(layer.gram.ti, weights @ g, rtol=1e-8)
    np.testing.assert_allclose(layer.gram.t, np.diag(own), rtol=1e-8)
    ratio = np.linalg.solve(k[:4, :4], g)
    kl = (np.trace(ratio) - 4 - np.linalg.slogdet(ratio)[1]) / 2
    np.testing.assert_allclose(layer.kl, kl, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "global", "local"])
def test_a_batch_is_an_unbiased_part_of_the_whole(normal, how):
    """Mean over all batches of the bound is the bound of all points: no point sees another."""
    x, y = jnp.asarray(normal(8, 6, 3)), jnp.asarray(normal(9, 6, 2))
    machine = machine_of(normal, x[:4])
    bound = partial(
        elbo, machine, total=6, kernel=SE, widths=jnp.ones(2), likelihood="gaussian",
        normalization=how,
    )  # fmt: skip
    parts = [bound(x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(np.mean(parts), bound(x, y), rtol=1e-10)


@pytest.mark.slow
def test_scales_of_inputs_layers_and_outputs_are_where_they_belong(normal):
    """Kernel by kernel in NumPy, with every learned scale off its neutral value."""
    z, new, scales = normal(14, 4, 3), normal(15, 3, 3), np.array([0.5, -0.7, 0.3])
    layers_, amplitude = np.array([0.4, -0.6, 0.9]), 0.8
    machine = sparse.init_sparse(jnp.asarray(z), depth=2, outputs=2, learned=False)._replace(
        outputs=Outputs(jnp.asarray(normal(16, 4, 2)), 0.1 * jnp.asarray(normal(17, 4, 4))),
        log_input_scales=jnp.asarray(scales), log_scales=jnp.asarray(layers_),
        log_amplitude=jnp.asarray(amplitude),
    )  # fmt: skip
    x = np.concatenate([z, new]) * np.exp(scales)
    g = x @ x.T / 3
    for log_scale in layers_:
        v = np.diag(g)
        g = np.exp(-np.exp(log_scale) * (v[:, None] + v - 2 * g) / 2)
        g[:4, :4] += 0.01 * np.eye(4)
    g = np.exp(amplitude) * g
    root = np.linalg.cholesky(g[:4, :4])
    t = np.asarray(layers.triangle(machine.outputs.raw))
    weights = np.linalg.solve(root, g[:4, 4:]).T
    spread = np.sum((weights @ t) ** 2, 1) - np.sum(weights**2, 1)
    found = propagate_sparse(machine, jnp.asarray(new), kernel=SE, jitter=0.01).prediction
    np.testing.assert_allclose(found.mean, weights @ machine.outputs.mean, rtol=1e-9)
    np.testing.assert_allclose(found.variance, np.diag(g)[4:] + spread, rtol=1e-9)


@pytest.mark.slow
def test_jitter_is_a_share_of_the_diagonal_that_every_layer_adds(normal):
    z = jnp.asarray(normal(18, 4, 3))
    k = kernels.Blocks(*(3 * b for b in kernels.gram_blocks(SE, kernels.input_blocks(z, z[:2]))))
    layer = jax.jit(layers.propagate, static_argnames="jitter")(k, jnp.zeros((4, 4)), jitter=0.01)
    np.testing.assert_allclose(layer.gram.ii, k.ii + 0.03 * jnp.eye(4), rtol=1e-12)
    np.testing.assert_allclose(layer.jitter, 0.03, rtol=1e-12)
    zero = Outputs(jnp.asarray(normal(19, 4, 1)), jnp.zeros((4, 4)))
    found = jax.jit(output_marginals, static_argnames="jitter")(k, zero, jitter=0.01).mean
    root = np.linalg.cholesky(np.asarray(k.ii) + 0.03 * np.eye(4))
    np.testing.assert_allclose(found, k.ti @ np.linalg.solve(root.T, zero.mean), rtol=1e-10)


@pytest.mark.slow
def test_without_learned_grams_it_is_the_machine_at_its_prior(normal):
    x = jnp.asarray(normal(10, 5, 3))
    fixed = sparse.init_sparse(x, depth=2, outputs=2, learned=False)
    learned = sparse.init_sparse(x, depth=2, outputs=2)
    new = jnp.asarray(normal(11, 4, 3))
    for machine in (fixed, learned):
        terms = propagate_sparse(machine, new, kernel=kernels.relu)
        np.testing.assert_allclose(terms.kls, 0, atol=1e-12)
        # q is the prior: mean zero, variance of the composed kernel.
        np.testing.assert_allclose(terms.prediction.mean, 0, atol=1e-12)
        np.testing.assert_allclose(
            terms.prediction.variance, np.sum(np.asarray(new) ** 2, 1) / 3, rtol=1e-3
        )


@pytest.mark.slow
def test_expected_log_softmax_is_the_integral():
    """Two classes: the difference of the outputs is one Gaussian, integrated by quadrature."""
    mean, variance = jnp.array([[0.3, -0.5], [1.0, 2.0]]), jnp.array([0.7, 2.0])
    labels = jnp.array([0, 0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    gap = np.asarray(mean[:, 0] - mean[:, 1])[:, None] + np.sqrt(2 * variance)[:, None] * nodes
    weights = weights / weights.sum()
    draws = 40_000
    bound = 5 * np.sqrt(2 * np.asarray(variance)) / np.sqrt(draws)  # |d/df log softmax| <= 1
    ours = averaged(jax.random.key(0), mean, variance, labels, samples=draws)
    assert (np.abs(ours - -np.log1p(np.exp(-gap)) @ weights) < bound).all()
    probability = (1 / (1 + np.exp(-gap))) @ weights
    predict = jax.jit(log_predictive, static_argnames="samples")
    predicted = np.exp(predict(jax.random.key(1), mean, variance, samples=draws))
    assert (np.abs(predicted[:, 0] - probability) < bound).all()
    np.testing.assert_allclose(predicted.sum(1), 1, rtol=1e-10)


@pytest.mark.slow
def test_draws_of_log_softmax_are_antithetic():
    """Of opposite draws the error falls as the variance, not as the deviation."""
    mean, labels = jnp.array([[0.3, -0.5, 1.0]]), jnp.array([0])
    found = averaged(jax.random.key(0), mean, jnp.array([1e-6]), labels, samples=2)
    assert abs(float(found[0] - jax.nn.log_softmax(mean)[0, 0])) < 1e-5


@pytest.mark.slow
def test_one_class_and_one_inducing_point_train(normal):
    x = jnp.asarray(normal(12, 4, 3))
    machine = sparse.init_sparse(x[:1], depth=1, outputs=1)
    labels = jnp.zeros(4, jnp.int32)

    def bound(machine):
        return sparse.elbo(
            machine, x, labels, total=4, kernel=SE, widths=jnp.ones(1), likelihood="categorical",
            key=jax.random.key(0),
        )  # fmt: skip

    value, grads = jax.jit(jax.value_and_grad(bound))(machine)
    assert abs(value) < 1e-12  # certain, and at the prior
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_duplicate_inducing_points_need_jitter_and_say_so(normal):
    z = jnp.asarray(normal(13, 4, 3)).at[1].set(normal(13, 4, 3)[0])
    machine = sparse.init_sparse(z, depth=1, outputs=1)
    terms = propagate_sparse(machine, z[:2], kernel=SE, jitter=0.0)
    assert 0 < terms.jitter < 1e-8
    assert np.isfinite(terms.prediction.variance).all()


def test_an_unknown_likelihood_is_named(normal):
    machine = sparse.init_sparse(jnp.ones((1, 2)), depth=1, outputs=1)
    with pytest.raises(UserError, match="unknown likelihood 'gausian'; did you mean 'gaussian'"):
        sparse.elbo(
            machine, jnp.ones((1, 2)), jnp.ones((1, 1)), total=1, kernel=SE, widths=jnp.ones(1),
            likelihood="gausian",
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "normalization"), [(SE, "none"), (kernels.relu, "local")])
def test_single_precision_is_double_up_to_rounding(normal, kernel, normalization):
    """With duplicates among the inducing points rounding counts thousandfold, TF32's would not do.

    So no product may be rounded further.
    """
    z, x, y = (normal(s, *shape) for s, shape in ((0, (8, 5)), (1, (12, 5)), (2, (12, 2))))
    z[1] = z[0]
    given = dict(total=12, likelihood="gaussian", jitter=1e-3)

    def objective(machine, x, y):
        widths = jnp.ones(1, x.dtype)
        return sparse.elbo(
            machine, x, y, kernel=kernel, widths=widths, normalization=normalization, **given
        )

    double = machine_of(normal, jnp.asarray(z), depth=1), jnp.asarray(x), jnp.asarray(y)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), double)
    slope = jax.jit(jax.value_and_grad(objective))
    (exact, expected), (ours, found) = slope(*double), slope(*single)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, rtol=1e-3)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-2 * largest)
    assert rounded(objective, *single) == []


def test_a_categorical_likelihood_needs_a_key(normal):
    x, labels = jnp.asarray(normal(0, 4, 3)), jnp.arange(4) % 2
    machine = sparse.init_sparse(x, depth=1, outputs=2)
    bound = dict(total=4, kernel=SE, widths=jnp.full(1, 3.0))
    with pytest.raises(UserError, match="a categorical likelihood needs a key"):
        sparse.elbo(machine, x, labels, likelihood="categorical", **bound)
