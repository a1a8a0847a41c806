"""One step ahead: gradients beside finite differences of the whole, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import conv2d
from rml.training import lookahead_gradient, lookahead_weights

RATE = 0.3


@pytest.fixture
def problem():
    """A little network on rows with two losses each, weighted by another network."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    data = {"x": draw(5, 3), "a": draw(5), "b": draw(5), "held": draw(4, 3), "y": draw(4)}
    theta = {"w": 0.5 * draw(3, 4), "v": draw(4)}
    omega = {"u": draw(3), "c": draw()}
    return data, theta, omega


def network(np_, theta, x):
    return np_.tanh(x @ theta["w"]) @ theta["v"]


def parts(np_, theta, data):
    out = network(np_, theta, data["x"])
    return np_.stack([(out - data["a"]) ** 2, np_.abs(out - data["b"]) ** 3], -1)


def weights(np_, omega, data):
    ratio = 1 / (1 + np_.exp(-(data["x"] @ omega["u"] + omega["c"])))
    return np_.stack([ratio, 1 - ratio], -1)


def inner(np_, theta, omega, data):
    return (weights(np_, omega, data) * parts(np_, theta, data)).sum() / 5


def outer(np_, theta, omega, data, direct=0.0):
    out = network(np_, theta, data["held"])
    return ((out - data["y"]) ** 2).mean() + direct * (omega["u"] ** 3).sum()


def differences(function, tree, step=1e-6):
    """Central differences by every number of a tree of float64 arrays."""
    found = {}
    for name, leaf in tree.items():
        slopes = np.zeros_like(np.asarray(leaf))
        for i in np.ndindex(slopes.shape):
            ends = []
            for sign in (1, -1):
                moved = {k: np.array(v, np.float64) for k, v in tree.items()}
                moved[name][i] += sign * step
                ends.append(function(moved))
            slopes[i] = (ends[0] - ends[1]) / (2 * step)
        found[name] = slopes
    return found


def ahead(theta, omega, data):
    """θ' by NumPy, its inner gradient by differences of a high order."""
    slopes = differences(lambda t: inner(np, t, omega, data), theta, 1e-5)
    return {name: theta[name] - RATE * slopes[name] for name in theta}


@pytest.mark.slow
@pytest.mark.parametrize("direct", [0.0, 0.4])
def test_the_gradient_goes_through_the_step(problem, direct):
    data, theta, omega = problem
    with jax.enable_x64(True):
        own = {k: jnp.asarray(v) for k, v in data.items()}
        run = jax.jit(
            lambda theta, omega: lookahead_gradient(
                lambda t, o: inner(jnp, t, o, own), lambda t, o: outer(jnp, t, o, own, direct),
                theta, omega, learning_rate=RATE,
            )
        )  # fmt: skip
        found = jax.tree.map(np.asarray, run(theta, omega))

    def whole(omega):
        return outer(np, ahead(theta, omega, data), omega, data, direct)

    np.testing.assert_allclose(found.value, whole(omega), rtol=1e-8)
    expected = differences(whole, omega, 1e-4)
    for name, slopes in expected.items():
        assert np.abs(slopes).max() > 1e-3
        np.testing.assert_allclose(found.gradient[name], slopes, rtol=2e-4, atol=1e-6)
    for name, leaf in ahead(theta, omega, data).items():
        np.testing.assert_allclose(found.inner[name], leaf, rtol=1e-6)


def test_the_first_order_holds_the_step_fixed(problem):
    data, theta, omega = problem
    own = {k: jnp.asarray(v) for k, v in data.items()}
    found = jax.jit(
        lambda theta, omega: lookahead_gradient(
            lambda t, o: inner(jnp, t, o, own), lambda t, o: outer(jnp, t, o, own, 0.4),
            theta, omega, learning_rate=RATE, order="first",
        )
    )(theta, omega)  # fmt: skip
    np.testing.assert_allclose(found.gradient["u"], 1.2 * omega["u"] ** 2, rtol=1e-5)
    np.testing.assert_array_equal(found.gradient["c"], 0)
    with pytest.raises(ValueError, match="order of a look-ahead 'second'"):
        lookahead_gradient(
            lambda t, o: 0.0, lambda t, o: 0.0, theta, omega, learning_rate=0.1, order="second"
        )


def test_weights_have_the_inner_products_of_gradients(problem):
    """The closed form beside differences by each weight, and beside the general gradient."""
    data, theta, omega = problem
    with jax.enable_x64(True):
        own = {k: jnp.asarray(v) for k, v in data.items()}

        @jax.jit
        def run(theta, omega):
            w, back = jax.vjp(lambda o: weights(jnp, o, own), omega)
            found = lookahead_weights(
                lambda t: parts(jnp, t, own), lambda t: outer(jnp, t, omega, own),
                theta, w, learning_rate=RATE,
            )  # fmt: skip
            general = lookahead_gradient(
                lambda t, o: inner(jnp, t, o, own), lambda t, o: outer(jnp, t, o, own),
                theta, omega, learning_rate=RATE,
            )  # fmt: skip
            return found, back(found.gradient)[0], general

        found, chained, general = jax.tree.map(np.asarray, run(theta, omega))
    for name in omega:
        np.testing.assert_allclose(chained[name], general.gradient[name], rtol=1e-9)
    np.testing.assert_allclose(found.value, general.value, rtol=1e-12)
    given = weights(np, omega, data)

    def whole(tree):
        slopes = differences(lambda t: (tree["w"] * parts(np, t, data)).sum() / 5, theta, 1e-5)
        moved = {name: theta[name] - RATE * slopes[name] for name in theta}
        return outer(np, moved, omega, data)

    expected = differences(whole, {"w": given}, 1e-4)["w"]
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-4, atol=1e-7)


def test_both_go_through_convolutions_with_a_derivative_of_their_own():
    """`conv2d` has a `custom_vjp`, which forward mode refuses."""
    rng = np.random.default_rng(1)
    x, held, kernel, weights = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((3, 4, 4, 1), (2, 4, 4, 1), (3, 3, 1, 2), (3,))
    )

    def losses(kernel, images=x):
        return jnp.sin(conv2d(images, kernel, implementation="matmul")).sum((1, 2, 3))

    @jax.jit
    def run(kernel, weights):
        outer = lambda kernel: losses(kernel, held).mean()  # noqa: E731
        general = lookahead_gradient(
            lambda kernel, w: (w * losses(kernel)).mean(), lambda kernel, _: outer(kernel),
            kernel, weights, learning_rate=0.1,
        )  # fmt: skip
        return lookahead_weights(losses, outer, kernel, weights, learning_rate=0.1), general

    closed, general = run(kernel, weights)
    np.testing.assert_allclose(closed.gradient, general.gradient, rtol=1e-4)
    assert np.abs(closed.gradient).max() > 1e-3


def test_a_weight_rises_where_its_loss_and_the_outer_one_fall_together():
    """Losses of opposite slopes in one number: the outer one agrees with the first."""
    with jax.enable_x64(True):
        found = lookahead_weights(
            lambda t: jnp.stack([t, -t, 2 * t]), lambda t: 3 * t, jnp.asarray(0.5),
            jnp.asarray([0.2, 0.3, 0.1]), learning_rate=0.1,
        )  # fmt: skip
    np.testing.assert_allclose(found.gradient, np.array([-1, 1, -2]) * 3 * 0.1 / 3)
    np.testing.assert_allclose(found.inner, 0.5 - 0.1 / 3 * (0.2 - 0.3 + 0.2))
    with pytest.raises(ValueError, match="expected that of the weights"):
        lookahead_weights(
            lambda t: t * jnp.ones(3), lambda t: t, jnp.asarray(0.5), jnp.ones(2),
            learning_rate=0.1,
        )  # fmt: skip
