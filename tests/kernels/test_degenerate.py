import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml import kernels
from rml.errors import UserError
from rml.kernels import deep_kernel_machine as dkm
from rml.kernels import deep_linear, sparse
from rml.kernels.layers import exact_factor
from rml.kernels.optimize import checked, fit, minimize
from rml.kernels.outputs import Outputs, expected_log_softmax, log_predictive

SE = kernels.squared_exponential


@pytest.mark.slow
def test_a_fit_says_whether_it_converged():
    def bowl(p):
        return jnp.sum((p["a"] - 3.0) ** 2) + jnp.sum(p["b"] ** 4)

    start = {"a": jnp.zeros(2), "b": jnp.ones(3)}
    for optimizer in (None, optax.adam(0.1)):
        done = fit(bowl, start, steps=2000, tolerance=1e-5, optimizer=optimizer)
        assert done.converged
        assert 0 < done.steps < 2000
        np.testing.assert_allclose(done.params["a"], 3, atol=1e-5)
        assert done.gradient_norm <= 1e-5
        short = fit(bowl, start, steps=2, tolerance=1e-5, optimizer=optimizer)
        assert not short.converged
        assert short.steps == 2
        assert short.value < float(bowl(start))


def test_a_fit_that_leaves_the_finite_is_an_error():
    """A line search would avoid it; gradient descent with this step does not."""
    with pytest.raises(UserError, match=r"objective is .*(nan|inf).* after \d+ steps"):
        fit(lambda p: jnp.sum(p**4), jnp.full(1, 10.0), optimizer=optax.sgd(1.0))


@jax.jit
def optimised(x, y, new, length_scale, linear):
    """Twenty steps, the layers that they lead to, and predictions of `new`; one for all kernels."""

    def kernel(c, v, w):
        exponential = SE(c, v, w, length_scale=length_scale)
        return jnp.where(linear, kernels.linear(c, v, w), exponential)

    g, n, given = kernels.input_gram(x), len(x), dict(kernel=kernel, noise=0.1)

    def loss(raw):
        return -dkm.regression_objective(raw, g, y, widths=jnp.ones(2), **given)

    found = minimize(loss, jnp.zeros((2, n, n)), steps=20, tolerance=1e-6)
    state = dkm.forward(found.params, g, kernel=kernel)
    return found, state, dkm.predict(found.params, x, y, new, **given)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["duplicates", "one point", "short scale", "long scale", "linear"])
def test_degenerate_inputs_give_a_finite_result(normal, case):
    x, y = normal(11, 5, 3), normal(12, 5, 1)
    length_scale = {"short scale": 1e-6, "long scale": 1e8}.get(case, 1.0)
    kernel = kernels.build("squared_exponential", length_scale=length_scale)
    if case == "duplicates":
        x[3] = x[4] = x[0]
    if case == "one point":
        x, y = x[:1], y[:1]
    if case == "linear":  # more points than features: the Gram matrix of the inputs is singular
        kernel = kernels.linear
    x, y, n = jnp.asarray(x), jnp.asarray(y), len(x)
    dkm.require_kernels(jnp.zeros((2, n, n)), kernels.input_gram(x), kernel=kernel)
    new = jnp.asarray(normal(13, 2, 3))
    found, state, prediction = optimised(x, y, new, length_scale, case == "linear")
    assert np.isfinite(checked(found, tolerance=1e-6).value)
    assert np.isfinite(state.grams).all()
    assert (state.jitters >= 0).all()
    if case in ("duplicates", "long scale", "linear"):
        assert state.jitters[0] > 0
    assert np.isfinite(prediction.mean).all()


@pytest.mark.slow
def test_what_has_no_answer_is_one_clear_error(normal):
    g, y = kernels.input_gram(jnp.asarray(normal(0, 6, 9))), jnp.asarray(normal(1, 6, 2))
    raw = jnp.zeros((2, 6, 6))
    with pytest.raises(UserError, match=r"kernel matrix of layer 1 \(6 x 6\) .* condition"):
        dkm.require_kernels(raw, g, kernel=kernels.scaled(kernels.linear, bias=-9.0))
    with pytest.raises(UserError, match="36 entries that are not finite"):
        dkm.require_kernels(raw, g * jnp.nan, kernel=SE)
    with pytest.raises(UserError, match=r"objective is nan .* where the fit starts"):
        fit(lambda r: jnp.sum(r) * jnp.nan, raw)
    with pytest.raises(UserError, match=r"Gram matrix of the inputs .* is not positive definite"):
        deep_linear.deep_linear_grams(-g, y, jnp.full(2, 5.0))
    with pytest.raises(UserError, match="every width must be greater than 2"):
        deep_linear.deep_linear_grams(g, y, jnp.array([5.0, 2.0]))


@pytest.mark.slow
def test_many_outputs_of_a_low_rank_have_no_optimum_of_small_widths(normal):
    g, y = kernels.input_gram(jnp.asarray(normal(0, 4, 9))), jnp.asarray(normal(1, 4, 5))
    low = y.at[2].set(y[0])  # two points of the same outputs
    with pytest.raises(UserError, match=r"rank below 4, .* every width must be greater than 5"):
        deep_linear.deep_linear_grams(g, low, jnp.array([9.0, 5.0]))
    for outputs, least in ((low, 9.0), (y, 5.0)):
        found = deep_linear.deep_linear_grams(g, outputs, jnp.array([9.0, least]))
        assert (jnp.linalg.eigvalsh(found)[:, 0] > 1e-4).all()


@pytest.mark.slow
def test_a_singular_gram_matrix_has_no_deep_linear_optimum(normal):
    """Whether or not rounding leaves it a Cholesky factor, which jitter would give it."""
    solve, widths = jax.jit(deep_linear.deep_linear_grams), jnp.full(2, 9.0)
    y, by_chance = jnp.asarray(normal(1, 4, 3)), 0
    for seed in range(30):
        g = kernels.input_gram(jnp.asarray(normal(seed, 4, 2)))
        by_chance += bool(jnp.isfinite(exact_factor(g)).all())
        with pytest.raises(UserError, match=r"the inputs \(4 x 4\) is singular: eigenvalues from"):
            deep_linear.deep_linear_grams(g, y, widths)
        assert jnp.isnan(solve(g, y, widths)).all()
    assert 0 < by_chance < 30
    near = g + 1e-9 * jnp.eye(4)  # far from rounding
    found = deep_linear.deep_linear_grams(near, y, widths)
    np.testing.assert_allclose(solve(near, y, widths), found, rtol=1e-4)
    assert jnp.isfinite(found).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (4, 1)])
def test_classification_of_one_point_or_one_class_has_an_answer(normal, n, classes):
    x = jnp.asarray(normal(14, n, 3))
    labels = jnp.arange(n) % classes
    outputs = Outputs(jnp.zeros((n, classes)), jnp.zeros((n, n)))

    def loss(params):
        return -dkm.classification_objective(
            *params, kernels.input_gram(x), labels, jax.random.key(0), kernel=SE,
            widths=jnp.ones(1),
        )  # fmt: skip

    found = fit(loss, (jnp.zeros((1, n, n)), outputs), steps=10, optimizer=optax.adam(0.1))

    @jax.jit
    def predicted(params):
        prediction = dkm.predict_outputs(*params, x, x + 0.1, kernel=SE)
        return log_predictive(jax.random.key(1), *prediction, samples=50)

    logs = predicted(found.params)
    assert np.isfinite(found.value)
    np.testing.assert_allclose(np.exp(logs).sum(1), 1, rtol=1e-10)
    if classes == 1:
        assert abs(found.value) < 1e-8  # certain, at the prior


@pytest.mark.slow
def test_long_inputs_neither_overflow_nor_pass_one_in_single_precision():
    with jax.enable_x64(False):
        x = 1e6 * jax.random.normal(jax.random.key(0), (6, 3), jnp.float32)
        blocks = kernels.gram_blocks(SE, kernels.input_blocks(x, x))
        assert all(float(part.max()) <= 1 for part in blocks)  # v + w - 2c may round below 0
        g = kernels.gram(kernels.relu, kernels.input_gram(1e12 * x))
        assert np.isfinite(g).all()  # v w is beyond the largest number


@pytest.mark.slow
def test_the_sparse_machine_names_its_singular_matrix(normal):
    zeros = sparse.init_sparse(jnp.zeros((3, 2)), depth=2, outputs=1)
    for how in ("none", "global", "local"):
        with pytest.raises(UserError, match=r"inducing kernel matrix of layer 1 .* condition inf"):
            sparse.require_inducing(zeros, kernel=kernels.relu, normalization=how)
        sparse.require_inducing(zeros, kernel=SE, normalization=how)  # all ones, and jitter
    broken = zeros._replace(inducing=jnp.full((3, 2), jnp.nan))
    with pytest.raises(UserError, match="9 entries that are not finite"):
        sparse.require_inducing(broken, kernel=SE)


@jax.jit
def of_each_kernel(c, v, w):
    return jnp.stack([kernel(c, v, w) for kernel in kernels.KERNELS.values()])


@jax.jit  # one program for all kernels: the machines are most of it
def slopes_of_bounds(machines, x, images, labels, key, number):
    # A slope that is not finite stays so times the zero of a kernel that is not chosen. To choose
    # by `switch` takes as long again to compile.
    def kernel(c, v, w):
        return of_each_kernel(*jnp.broadcast_arrays(c, v, w))[number]

    def bounds(machines):
        given = dict(total=6, kernel=kernel, widths=jnp.ones(1), samples=4)
        of_rows = sparse.elbo(machines[0], x, labels, key=key, likelihood="categorical", **given)
        return of_rows + kernels.conv_elbo(machines[1], images, labels[:3], key, **given)

    return jax.value_and_grad(bounds)(machines)


@pytest.mark.slow
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_a_row_of_zeros_and_a_blank_image_have_finite_gradients(normal, name):
    """Their variance is exactly 0 where the kernel of a point of norm 0 is."""
    x, images = normal(15, 6, 3), normal(16, 3, 4, 4, 1)
    x[0] = images[0] = 0
    x, images, labels = jnp.asarray(x), jnp.asarray(images), jnp.arange(6) % 3
    key, number = jax.random.key(0), list(kernels.KERNELS).index(name)
    patches = kernels.draw_patches(key, images[1:], count=4, size=3)
    machines = (
        sparse.init_sparse(x[1:4], depth=1, outputs=3),
        kernels.init_conv(key, patches, depth=1, outputs=3),
    )
    value, slopes = slopes_of_bounds(machines, x, images, labels, key, number)
    assert np.isfinite(value)
    for slope in jax.tree.leaves(slopes):
        assert np.isfinite(slope).all()


@pytest.mark.slow
def test_outputs_without_variance_are_log_softmax_with_its_gradient(normal):
    mean, labels = jnp.asarray(normal(17, 4, 3)), jnp.array([2, 0, 1, 2])
    variance, key = jnp.array([0.0, 0.5, 0.0, 2.0]), jax.random.key(0)

    def expected(mean, variance):
        return expected_log_softmax(key, mean, variance, labels, samples=6)

    def predicted(mean, variance):
        logs = log_predictive(key, mean, variance, samples=6)
        return jnp.take_along_axis(logs, labels[:, None], axis=1)[:, 0]

    exact = jnp.take_along_axis(jax.nn.log_softmax(mean), labels[:, None], axis=1)[:, 0]
    slope = (jax.nn.one_hot(labels, 3) - jax.nn.softmax(mean))[::2]

    def summed(mean, variance, function):
        found = function(mean, variance)
        return jnp.sum(found), found

    slopes = jax.jit(jax.grad(summed, (0, 1), has_aux=True), static_argnames="function")
    for function in (expected, predicted):
        (by_mean, by_variance), found = slopes(mean, variance, function)
        np.testing.assert_allclose(found[::2], exact[::2], rtol=1e-12)
        np.testing.assert_allclose(by_mean[::2], slope, atol=1e-12)
        np.testing.assert_array_equal(by_variance[::2], 0)
        assert (by_variance[1::2] != 0).all()
        # A fit that diverged is not certain of anything.
        assert jnp.isnan(slopes(mean, variance.at[1].set(jnp.nan), function)[1][1])


@pytest.mark.slow
def test_targets_that_broadcasting_would_spread_are_refused(unchecked, normal):
    x, y = jnp.asarray(normal(18, 5, 3)), jnp.asarray(normal(19, 5, 1))
    machine = sparse.init_sparse(x[:2], depth=1, outputs=1)
    given = dict(total=5, kernel=SE, widths=jnp.full(1, 3.0), key=jax.random.key(0))
    prediction = sparse.propagate_sparse(machine, x, kernel=SE).prediction
    blocks = kernels.gram_blocks(SE, kernels.input_blocks(x, x))
    calls = (
        lambda y: sparse.elbo(machine, x, y, likelihood="gaussian", **given),
        lambda y: kernels.regression_scores(machine, x, y, kernel=SE),
        lambda y: kernels.gaussian_log_likelihood(prediction, y, noise=0.3),
        lambda y: kernels.gp_predict(blocks, y, noise=0.3),
    )
    for call in calls:
        for wrong in (y[:, 0], y[:1]):
            message = f"shapes do not fit: .*{re.escape(str(wrong.shape))}"
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(call, wrong)
        jax.eval_shape(call, y)
    labels = jnp.zeros((5, 1), jnp.int32)
    with pytest.raises(ValueError, match=r"mean \(5, 1\) .*\(5, 1\) as \[t\]"):
        sparse.elbo(machine, x, labels, likelihood="categorical", **given)


def test_matrices_and_targets_of_other_points_are_refused(unchecked, normal):
    g, y, widths = kernels.input_gram(jnp.asarray(normal(27, 4, 3))), jnp.ones((4, 2)), jnp.ones(2)
    layers, given = jnp.zeros((2, 4, 4)), dict(kernel=SE, noise=0.1)
    calls = (
        kernels.log_marginal_likelihood,
        lambda g, y, noise: dkm.objective(layers, g, y, widths=widths, **given),
        lambda g, y, noise: dkm.regression_objective(layers, g, y, widths=widths, **given),
        lambda g, y, noise: deep_linear.deep_linear_grams(g, y, 9 * widths),
    )
    for call in calls:
        for wrong in ((g[:3], y), (g, y[:3]), (g, y[:, 0]), (g[0], y)):
            shapes = [re.escape(str(part.shape)) for part in wrong]
            message = rf"shapes do not fit: .*{shapes[0]} as .*y {shapes[1]} as"
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(partial(call, noise=0.1), *wrong)
        jax.eval_shape(partial(call, noise=0.1), g, y)


@pytest.mark.parametrize("wrong", [-0.1, np.nan])
def test_a_noise_that_is_no_variance_and_layers_below_0_are_named(wrong):
    g, y, layers = jnp.eye(3), jnp.ones((3, 1)), jnp.zeros((1, 3, 3))
    prediction, given = kernels.Prediction(y, jnp.ones(3)), dict(kernel=SE, noise=wrong)
    for call in (
        lambda: kernels.log_marginal_likelihood(g, y, noise=wrong),
        lambda: dkm.objective(layers + g, g, y, widths=jnp.ones(1), **given),
        lambda: kernels.gp_predict(kernels.Blocks(g, g, jnp.ones(3)), y, noise=wrong),
        lambda: kernels.gaussian_log_likelihood(prediction, y, noise=wrong),
        lambda: kernels.optimal_grams(g, y, depth=1, width=5.0, **given),
        lambda: kernels.optimal_grams_of_starts(layers[None], g, y, width=5.0, **given),
        lambda: kernels.sample_grams(jax.random.key(0), g, y, widths=(1,), copies=2, **given),
    ):
        with pytest.raises(ValueError, match=f"noise is {wrong}, expected a number at least 0"):
            call()
    for call in (kernels.nngp_grams, partial(kernels.optimal_grams, y=y, width=5.0, noise=0.1)):
        with pytest.raises(ValueError, match="depth is -1, expected a number at least 0"):
            call(g, kernel=SE, depth=-1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([2], r"mean \(4, 3\) .*labels \(1,\) as \[n\]"),
        ([2, 0, -1, 1], "labels must lie between 0 and 2, got values from -1 to 2"),
        ([2, 0, 3, 1], "labels must lie between 0 and 2, got values from 0 to 3"),
    ],
)
@pytest.mark.slow
def test_labels_that_are_not_a_class_of_each_point_are_refused(unchecked, normal, labels, message):
    outputs, labels = Outputs(jnp.asarray(normal(23, 4, 3)), jnp.zeros((4, 4))), jnp.array(labels)
    g, key = kernels.input_gram(jnp.asarray(normal(24, 4, 2))), jax.random.key(0)
    with pytest.raises(ValueError, match=message):
        dkm.classification_objective(
            jnp.zeros((0, 4, 4)), outputs, g, labels, key, kernel=SE, widths=jnp.zeros(0)
        )


def test_a_variance_that_is_not_one_a_point_is_refused(unchecked):
    for wrong in (jnp.ones(1), jnp.ones((4, 3)), jnp.ones(3)):
        message = rf"mean \(4, 3\) as \[t, c\], variance {re.escape(str(wrong.shape))}"
        with pytest.raises(ValueError, match=message):
            log_predictive(jax.random.key(0), jnp.ones((4, 3)), wrong, samples=2)


@pytest.mark.slow
def test_without_hidden_layers_a_machine_is_the_gaussian_process(normal):
    x, y = jnp.asarray(normal(25, 4, 3)), jnp.asarray(normal(26, 4, 2))
    g, none, widths = kernels.input_gram(x), jnp.zeros((0, 4, 4)), jnp.zeros(0)
    kernel, given = partial(SE, length_scale=0.7), dict(kernel=SE, noise=0.3)
    likelihood = jax.jit(kernels.log_marginal_likelihood)
    expected = likelihood(kernels.gram(SE, g), y, noise=0.3)
    other = likelihood(kernels.gram(kernel, g), y, noise=0.3)
    for function in (dkm.objective, dkm.regression_objective):
        objective = jax.jit(function, static_argnames=("kernel", "output_kernel"))
        np.testing.assert_allclose(objective(none, g, y, widths=widths, **given), expected)
        own = objective(none, g, y, widths=widths, output_kernel=kernel, **given)
        np.testing.assert_allclose(own, other)
    grams, found = kernels.optimal_grams(g, y, depth=0, width=5.0, **given)
    assert grams.shape == (0, 4, 4)
    assert found.converged
    np.testing.assert_allclose(-5 * found.value, expected)
    machine = sparse.init_sparse(x, depth=0, outputs=2)
    assert kernels.inducing_grams(machine, kernel=SE).shape == (0, 4, 4)
    dkm.require_kernels(none, g, kernel=SE)


def test_there_is_one_width_a_layer(unchecked, normal):
    x, y, labels = jnp.asarray(normal(20, 4, 3)), jnp.asarray(normal(21, 4, 2)), jnp.arange(4) % 2
    g, raw, key = kernels.input_gram(x), jnp.zeros((2, 4, 4)), jax.random.key(0)
    grams = dkm.forward(raw, g, kernel=SE).grams
    machine = sparse.init_sparse(x, depth=2, outputs=2)
    images = jnp.asarray(normal(22, 4, 4, 4, 1))
    conv = kernels.init_conv(key, images[:2, :3, :3], depth=2, outputs=2)
    bound = dict(total=4, kernel=SE)
    calls = (
        lambda widths: dkm.objective(grams, g, y, kernel=SE, widths=widths, noise=0.1),
        lambda widths: dkm.regression_objective(raw, g, y, kernel=SE, widths=widths, noise=0.1),
        lambda widths: dkm.classification_objective(
            raw, machine.outputs, g, labels, key, kernel=SE, widths=widths
        ),
        lambda widths: sparse.elbo(machine, x, y, likelihood="gaussian", widths=widths, **bound),
        lambda widths: kernels.conv_elbo(conv, images, labels, key, widths=widths, **bound),
    )
    for call in calls:
        for depth in (1, 3):
            with pytest.raises(ValueError, match=rf"widths \({depth},\) as \[depth\]"):
                jax.eval_shape(call, jnp.full(depth, 3.0))


@pytest.mark.parametrize("samples", [0, 1, 17])
def test_an_odd_number_of_antithetic_draws_is_named(samples):
    with pytest.raises(UserError, match=f"samples is {samples}, expected an even number"):
        expected_log_softmax(
            jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1), jnp.array([1]), samples=samples
        )
