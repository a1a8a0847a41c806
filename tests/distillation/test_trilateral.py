"""The triangle's encoding, the network of ratios, and what one step ahead says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.distillation import (
    FusionRatio,
    fused_loss,
    ratio_lookahead,
    relations,
    saturation,
    teacher_means,
)
from rml.losses import kd_loss


def chances(seed, rows=4, classes=3):
    z = np.random.default_rng(seed).standard_normal((rows, classes))
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


S, T, MEAN = chances(0), chances(1), chances(2)
G = np.eye(3)[[2, 0, 1, 1]]


def encode(*points, **options):
    return np.asarray(relations(*map(jnp.asarray, points), **options))


def test_the_encoding_is_that_of_the_definition():
    parts = [S, T, G, MEAN, (MEAN - S) ** 2, (G - S) ** 2, (T - S) ** 2, (T - G) ** 2,
             (MEAN - G) ** 2]  # fmt: skip
    found = encode(S, T, G, MEAN)
    assert found.shape == (4, 27)
    np.testing.assert_allclose(found, np.concatenate(parts, 1), rtol=1e-5, atol=1e-7)


def test_forms_are_differences_and_lengths():
    signed = [MEAN - S, G - S, T - S, T - G, MEAN - G]
    found = encode(S, T, G, MEAN, form="signed", vertices=False)
    np.testing.assert_allclose(found, np.concatenate(signed, 1), rtol=1e-5, atol=1e-7)
    lengths = np.stack([np.linalg.norm(x, axis=1) for x in signed], 1)
    np.testing.assert_allclose(encode(S, T, G, MEAN, form="norm"), lengths, rtol=1e-5)


@pytest.mark.parametrize(
    ("edges", "kept"),
    [
        (("sg", "tg"), [G - S, T - G]),
        (("st",), [T - S]),
        (("tg", "st", "sg"), [G - S, T - S, T - G]),
    ],
)
def test_edges_and_relations_between_examples_are_left_out(edges, kept):
    found = encode(S, T, G, edges=edges, inter=False, form="signed")
    np.testing.assert_allclose(found, np.concatenate([S, T, G, *kept], 1), rtol=1e-5, atol=1e-7)
    inter = encode(S, T, G, MEAN, edges=edges, form="signed", vertices=False)
    own = np.concatenate([MEAN - S, *kept, MEAN - G], 1)
    np.testing.assert_allclose(inter, own, rtol=1e-5, atol=1e-7)


def test_sides_of_equal_points_are_zero_and_classes_permute_blocks():
    found = encode(T, T, G, MEAN).reshape(4, 9, 3)
    np.testing.assert_array_equal(found[:, 6], 0)
    np.testing.assert_array_equal(encode(S, G, G, MEAN).reshape(4, 9, 3)[:, 7], 0)
    np.testing.assert_array_equal(encode(T, T, G, MEAN, form="norm")[:, 2], 0)
    order = [2, 0, 1]
    moved = encode(*(x[:, order] for x in (S, T, G, MEAN))).reshape(4, 9, 3)
    np.testing.assert_array_equal(moved, encode(S, T, G, MEAN).reshape(4, 9, 3)[:, :, order])


def test_no_gradient_enters_the_encoding():
    total = lambda s: relations(s, jnp.asarray(T), jnp.asarray(G), inter=False).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(S)), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": ("ts",)}, "edge of the triangle 'ts'"),
        ({"edges": ()}, "edges is empty"),
        ({"form": "cosine"}, "form of relations 'cosine'"),
        ({}, "mean is not given"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        relations(*map(jnp.asarray, (S, T, G)), **options)


@pytest.mark.parametrize("at", range(4))
def test_points_of_a_triangle_are_of_the_same_examples_and_classes(unchecked, at):
    for cut in (lambda x: x[:1], lambda x: x[:, :1], lambda x: x[0]):
        points = [S, T, G, MEAN]
        points[at] = cut(points[at])
        with pytest.raises(ValueError, match=r"shapes do not fit: student .*, mean \("):
            encode(*points)
    wrong = MEAN[:1]  # it is not read
    np.testing.assert_array_equal(encode(S, T, G, wrong, inter=False), encode(S, T, G, inter=False))


def test_a_teachers_means_are_of_labels_that_there_are(unchecked):
    known = jnp.asarray(T)
    for labels in (jnp.zeros(3, int), jnp.zeros(1, int), jnp.zeros((4, 1), int)):
        with pytest.raises(ValueError, match=r"shapes do not fit: probabilities \(4, 3\)"):
            teacher_means(known, labels, classes=3)
    for labels in ([0, 1, 2, 3], [0, -1, 2, 1]):
        with pytest.raises(ValueError, match="labels must lie between 0 and 2, got values from"):
            teacher_means(known, jnp.asarray(labels), classes=3)


def test_means_are_of_each_class_in_single_precision():
    labels = np.array([2, 0, 2, 2])
    found = teacher_means(jnp.asarray(T, jnp.bfloat16), jnp.asarray(labels), classes=4)
    assert found.dtype == jnp.float32
    expected = np.stack([T[1], T.mean(0), T[[0, 2, 3]].mean(0), T.mean(0)])
    np.testing.assert_allclose(found, expected, atol=4e-3)
    exact = teacher_means(jnp.asarray(T, jnp.float32), jnp.asarray(labels), classes=4)
    np.testing.assert_allclose(exact, expected, rtol=1e-5)


def test_the_network_of_ratios_is_that_of_the_definition():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((5, 4)), jnp.float32)
    net = FusionRatio(hidden=(3, 2), slope=0.2)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).standard_normal(leaf.shape)),
        jax.eval_shape(net.init, jax.random.key(0), x),
    )
    y, params = np.asarray(x), jax.tree.map(np.asarray, variables["params"])
    import flax.linen as nn

    params = nn.meta.unbox(params)
    for name in ("dense0", "dense1"):
        y = y @ params[name]["kernel"] + params[name]["bias"]
        y = np.where(y > 0, y, 0.2 * y)
    y = y @ params["out"]["kernel"] + params["out"]["bias"]
    found = jax.jit(net.apply)({"params": params}, x)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-y[:, 0])), rtol=1e-4)
    assert found.shape == (5,)


def test_fused_losses_are_shares_and_stop_the_ratios_gradient():
    kd, gt = jnp.asarray([2.0, 4.0]), jnp.asarray([1.0, 8.0])
    np.testing.assert_allclose(fused_loss(jnp.asarray([0.25, 0.5]), kd, gt), [1.25, 6.0])
    np.testing.assert_array_equal(fused_loss(jnp.ones(2), kd, gt), kd)
    np.testing.assert_array_equal(fused_loss(jnp.zeros(2), kd, gt), gt)
    slopes = jax.grad(lambda r, k, g: fused_loss(r, k, g).sum(), (0, 1, 2))(
        jnp.asarray([0.25, 0.5]), kd, gt
    )
    np.testing.assert_allclose(slopes, [[0, 0], [0.25, 0.5], [0.75, 0.5]])


@pytest.mark.usefixtures("unchecked")
def test_a_column_of_ratios_is_not_spread_over_examples():
    rows, column = jnp.asarray([0.25, 0.5]), jnp.asarray([[0.25], [0.5]])
    for given in ((column, rows, rows), (rows, column, rows), (rows, rows, rows[:1])):
        with pytest.raises(ValueError, match=r"shapes do not fit: ratio .*, kd .*, gt"):
            fused_loss(*given)


def test_ratios_that_are_near_their_ends_are_counted():
    found = saturation(jnp.asarray([0.005, 0.5, 0.995, 0.5]), margin=0.01)
    assert float(found["at_ends"]) == 0.5
    np.testing.assert_allclose(found["mean"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(found["deviation"], 0.495 / np.sqrt(2), rtol=1e-5)
    with pytest.raises(ValueError, match=r"expected at least one example, got ratio \(0,\)"):
        saturation(jnp.zeros(0))


@pytest.mark.slow
def test_the_step_ahead_is_exact_and_follows_who_agrees_with_validation():
    """Differences in ω of the validation loss after the step, in float64."""
    rng = np.random.default_rng(5)
    x, teacher, held = (
        rng.standard_normal((6, 3)),
        rng.standard_normal((6, 4)),
        rng.normal(size=(5, 3)),
    )
    labels, right = rng.integers(0, 4, 6), rng.integers(0, 4, 5)
    theta, omega = rng.standard_normal((3, 4)), rng.standard_normal(3)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(a) for a in (x, teacher, labels, held, right)]

        def cross_entropy(logits, labels):
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]

        def losses(theta):
            kd = kd_loss(arrays[0] @ theta, arrays[1], temperature=2.0)
            return kd, cross_entropy(arrays[0] @ theta, arrays[2])

        def outer(theta):
            return cross_entropy(arrays[3] @ theta, arrays[4]).mean()

        def ratio_of(omega):
            return jax.nn.sigmoid(arrays[0] @ omega)

        @jax.jit
        def ahead(omega):
            ratio = ratio_of(omega)
            total = lambda t: jnp.mean(  # noqa: E731
                ratio * losses(t)[0] + (1 - ratio) * losses(t)[1]
            )
            return outer(theta - 0.7 * jax.grad(total)(jnp.asarray(theta)))

        ratio, found = jax.jit(
            lambda t, o: ratio_lookahead(ratio_of, losses, outer, t, o, learning_rate=0.7)
        )(theta, omega)
        steps = 1e-5 * np.eye(3)
        slopes = [(ahead(omega + s) - ahead(omega - s)) / 2e-5 for s in steps]
        np.testing.assert_allclose(found.gradient, slopes, rtol=1e-6)
        np.testing.assert_allclose(found.value, ahead(omega), rtol=1e-12)
        np.testing.assert_allclose(ratio, 1 / (1 + np.exp(-x @ omega)), rtol=1e-6)
        # Where a step towards the teacher and the validation loss agree, the ratio rises.
        along, each = jax.jit(lambda a, t: (jax.grad(outer)(a), jax.jacobian(losses)(t)))(
            found.inner, theta
        )
        agreement = np.asarray(((each[0] - each[1]) * along).sum((1, 2)))
        _, own = jax.jit(
            lambda t, r: ratio_lookahead(lambda r: r, losses, outer, t, r, learning_rate=0.7)
        )(theta, ratio)
        np.testing.assert_allclose(own.gradient, -0.7 / 6 * agreement, rtol=1e-9)
        assert len(set(np.sign(agreement).tolist())) == 2
