from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from rml.attention import kernels
from rml.attention import random_feature_attention as rfa
from rml.attention.targets import draw_inputs

PRODUCT = jax.jit(kernels.biased_rectified_product)
SLOPES = jax.jit(jax.grad(lambda *at: PRODUCT(*at).sum(), (0, 1, 2)))
HESSIAN = jax.jit(jax.hessian(PRODUCT, (0, 1, 2)))


def bias(x):
    x = np.asarray(x, np.float64)
    return np.concatenate([x, np.ones_like(x[..., :1])], -1)


def rectified(mean, other, rho):
    """E relu(mean + u) relu(other + v), Rosenbaum's moments of the truncated bivariate normal."""
    s = np.sqrt(1 - rho**2)
    both = multivariate_normal.cdf([mean, other], cov=[[1, rho], [rho, 1]], abseps=1e-12)
    density = multivariate_normal.pdf([mean, other], cov=[[1, rho], [rho, 1]])
    return (
        (mean * other + rho) * both
        + mean * norm.pdf(other) * norm.cdf((mean - rho * other) / s)
        + other * norm.pdf(mean) * norm.cdf((other - rho * mean) / s)
        + s**2 * density
    )


def reference(query, keys, other_query, other_keys, scale, biased):
    """One pair of keys at a time, from outer products, in float64."""
    out = np.zeros((len(query), len(other_query)))
    d = query.shape[1]
    identity = np.diag([1.0] * d + [0.0]) * biased
    for a in range(len(query)):
        for b in range(len(other_query)):
            for x in bias(keys[a]):
                for y in bias(other_keys[b]):
                    u, v = np.outer(bias(query[a]), x), np.outer(bias(other_query[b]), y)
                    su, sv = scale * np.linalg.norm(u), scale * np.linalg.norm(v)
                    rho = scale**2 * np.sum(u * v) / (su * sv)
                    value = rectified(np.sum(identity * u) / su, np.sum(identity * v) / sv, rho)
                    out[a, b] += su * sv * value * (x @ y)
    return out / (keys.shape[1] * other_keys.shape[1])


@pytest.fixture(scope="module")
def pair():
    return *draw_inputs(jax.random.key(0), 4, keys=3, d=4), *draw_inputs(
        jax.random.key(1), 3, keys=2, d=4
    )


@pytest.mark.slow
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [0.5, 0.2])
def test_attention_kernel_is_the_float64_oracle(pair, biased, scale):
    value = jax.jit(partial(kernels.rfa_kernel, scale=scale, biased=biased))(*pair)
    expected = reference(*map(np.asarray, pair), scale, biased)
    np.testing.assert_allclose(value, expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_a_kernel_of_matrices_that_do_not_vary_is_refused(pair, scale):
    with pytest.raises(ValueError, match=f"scale is {scale}, expected a number above 0"):
        kernels.rfa_kernel(*pair, scale=scale, biased=True)


def test_inputs_that_do_not_fit_or_have_no_key_are_named(unchecked):
    x, keys = jnp.ones((2, 3)), jnp.ones((2, 4, 3))
    both = (kernels.rfa_kernel, kernels.rf_mlp_kernel)
    for call, wrong, name in (
        *((call, (x, keys, x[:, :2], keys[..., :2]), "other_query") for call in both),
        *((call, (x, keys[:1], x, keys), "keys") for call in both),
        (kernels.rfa_kernel, (x, keys[..., :1], x, keys[..., :1]), "keys"),
        (kernels.rfa_kernel, (x, keys, x, keys[..., :1]), "other_keys"),
        (kernels.rf_mlp_kernel, (x, keys, x, keys[:, :2]), "other_keys"),
    ):
        with pytest.raises(ValueError, match=rf"shapes do not fit: .*{name} \("):
            call(*wrong)
    for wrong, name in (((x, keys[:, :0], x, keys), "keys"), ((x, keys, x, keys[:, :0]), "other")):
        with pytest.raises(ValueError, match=f"{name}.* is 0, expected a number above 0"):
            kernels.rfa_kernel(*wrong)


@pytest.mark.slow
def test_mlp_kernel_is_the_float64_oracle():
    a, b = (draw_inputs(jax.random.key(s), n, keys=3, d=4) for s, n in ((0, 4), (1, 3)))
    x, y = (bias(np.concatenate([q, np.reshape(k, (len(k), -1))], 1)) for q, k in (a, b))
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    theta = np.arccos(x @ y.T / size)
    expected = size * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi) / 5
    np.testing.assert_allclose(jax.jit(kernels.rf_mlp_kernel)(*a, *b), expected, rtol=3e-6)


@pytest.mark.slow
def test_quadrature_agrees_with_bivariate_normal_probabilities_up_to_the_ends():
    cases = [
        (mean, other, rho)
        for mean in (-2.5, 0.0, 0.7)
        for other in (-1.0, 2.0)
        for rho in (-0.999, -0.5, 0.0, 0.9, 0.999)
    ]
    mean, other, rho = (np.array(x) for x in zip(*cases, strict=True))
    with jax.enable_x64(True):
        value = PRODUCT(*map(jnp.asarray, (mean, other, rho)))
    expected = [rectified(*case) for case in cases]
    np.testing.assert_allclose(value, expected, atol=2e-7)


@pytest.mark.slow
def test_slopes_of_the_biased_product_are_probabilities_up_to_the_ends():
    """By the correlation, Price's theorem; by a mean, central differences."""
    cases = [
        (mean, other, rho)
        for mean in (-1.3, 0.5)
        for other in (0.5, 1.1)
        for rho in (-1 - 1e-6, -1.0, -0.6, 0.3, 1 - 1e-6, 1.0, 1 + 1e-6)
    ]

    def probability(mean, other, rho):
        if rho >= 1:
            return norm.cdf(min(mean, other))
        if rho <= -1:
            return max(norm.cdf(mean) + norm.cdf(other) - 1, 0)
        return multivariate_normal.cdf([mean, other], cov=[[1, rho], [rho, 1]], abseps=1e-12)

    given = [np.array(x) for x in zip(*cases, strict=True)]
    expected = [probability(*case) for case in cases]
    np.testing.assert_allclose(SLOPES(*(jnp.asarray(x, jnp.float32) for x in given))[2], expected,
                               atol=2e-5)  # fmt: skip
    with jax.enable_x64(True):
        mean, other, rho = map(jnp.asarray, given)
        by_mean, by_other, by_rho = SLOPES(mean, other, rho)
        np.testing.assert_allclose(by_rho, expected, atol=2e-6)
        step = 1e-5
        differences = (PRODUCT(mean + step, other, rho) - PRODUCT(mean - step, other, rho)) / 2e-5
        np.testing.assert_allclose(by_mean, differences, atol=1e-6)
        differences = (PRODUCT(mean, other + step, rho) - PRODUCT(mean, other - step, rho)) / 2e-5
        np.testing.assert_allclose(by_other, differences, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [-0.9, 0.3, 0.8])
def test_second_derivatives_of_the_biased_product_are_finite_differences(rho):
    at = np.array([0.5, -0.7, rho])
    with jax.enable_x64(True):
        found = np.array(HESSIAN(*at))
        shifted = at + 1e-5 * np.concatenate([np.eye(3), -np.eye(3)])
        up, down = np.split(np.stack(SLOPES(*map(jnp.asarray, shifted.T))), 2, axis=1)
    np.testing.assert_allclose(found, (up - down) / 2e-5, atol=1e-7)


@pytest.mark.slow
def test_second_derivatives_of_the_biased_product_are_finite_where_points_coincide():
    for rho in (-1.0, 1.0, 1 + 1e-6):
        for other in (0.5, 0.7):
            assert np.isfinite(HESSIAN(0.5, other, rho)).all()
    z = jax.random.normal(jax.random.key(0), (3, 4))

    def total(z):
        return kernels.rfa_kernel(z, z[:, None], z, z[:, None], biased=True).sum()

    assert jnp.isfinite(jax.jit(jax.hessian(total))(z)).all()


@pytest.mark.slow
def test_half_precision_is_widened_first():
    mean, other, rho = (jnp.asarray(x, jnp.bfloat16) for x in ([0.7, -1], [2, 0.5], [0.9, -0.5]))
    wider = [x.astype(jnp.float32) for x in (mean, other, rho)]
    found = PRODUCT(mean, other, rho)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, PRODUCT(*wider))


@pytest.mark.slow
def test_without_means_the_biased_product_is_the_arc_cosine_kernel():
    rho = jnp.linspace(-1, 1, 41)
    zero = jnp.zeros_like(rho)
    plain = jax.jit(kernels.rectified_product)(rho)
    np.testing.assert_allclose(PRODUCT(zero, zero, rho), plain, atol=3e-7)
    np.testing.assert_allclose(plain[::20], [0, 1 / (2 * np.pi), 0.5], atol=1e-7)


@pytest.mark.slow
def test_gradients_are_finite_on_equal_and_opposite_inputs(pair):
    query, keys = pair[:2]

    def total(query, keys, biased):
        other = jnp.concatenate([query, -query]), jnp.concatenate([keys, -keys])
        return kernels.rfa_kernel(query, keys, *other, biased=biased).sum()

    for biased in (False, True):
        gradient = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)(query, keys, biased)
        assert all(jnp.all(jnp.isfinite(g)) for g in gradient)


@pytest.mark.slow
def test_attention_kernel_is_positive_semi_definite_and_invariant():
    query, keys = draw_inputs(jax.random.key(2), 30, keys=3, d=3)
    for biased in (False, True):
        kernel = jax.jit(partial(kernels.rfa_kernel, biased=biased))
        gram = np.asarray(kernel(query, keys, query, keys))
        assert np.linalg.eigvalsh(gram.astype(np.float64))[0] > -1e-4
        permuted = kernel(query, keys[:, ::-1], query, keys)
        np.testing.assert_allclose(permuted, gram, atol=1e-5)


def slope_with_interval(sizes, errors):
    """Slope of log error against log size, mean over replicates and its 95% half-width."""
    x = np.log(sizes) - np.mean(np.log(sizes))
    slopes = np.log(errors) @ x / (x @ x)
    return slopes.mean(), 1.96 * slopes.std(ddof=1) / np.sqrt(len(slopes))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rfa", "biased", "mlp"])
def test_finite_heads_converge_at_the_rate_of_a_mean(model):
    """The error of M heads falls as M^-1/2: the interval of the slope holds -1/2 and is narrow."""
    query, keys = draw_inputs(jax.random.key(0), 12, keys=3, d=4)
    if model == "mlp":
        limit = jax.jit(kernels.rf_mlp_kernel)(query, keys, query, keys)
    else:
        kernel = jax.jit(partial(kernels.rfa_kernel, biased=model == "biased"))
        limit = kernel(query, keys, query, keys)
    sizes = [64, 256, 1024, 4096]

    def error(key, heads):
        if model == "mlp":
            phi = rfa.rf_mlp_features(query, keys, rfa.rf_mlp_weights(key, heads, 3, 4))
        else:
            weights = rfa.rfa_weights(key, heads, 4, biased=model == "biased")
            phi = rfa.rfa_features(query, keys, weights).reshape(12, -1)
        return jnp.linalg.norm(phi @ phi.T - limit)

    replicates = jax.random.split(jax.random.key(1), 24)
    errors = [jax.jit(jax.vmap(lambda k, m=m: error(k, m)))(replicates) for m in sizes]
    slope, half = slope_with_interval(sizes, np.stack(errors, 1))
    assert abs(slope + 0.5) <= half, (slope, half)
    assert half < 0.08, (slope, half)
