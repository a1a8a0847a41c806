"""Normalised softmax: the definition, its margins, and the bounds that no network passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses import minimum_loss, normalized_softmax, scale_for

LABELS = np.array([0, 2, 4, 1, 1, 3])


def definition(oracle, x, w, scale, turned):
    cosine = oracle.unit(x) @ oracle.unit(w).T
    rows = np.arange(len(x))
    own = turned(cosine[rows, LABELS])
    logits = scale * cosine
    logits[rows, LABELS] = scale * own
    return np.mean(oracle.lse(logits) - scale * own)


TURNED = {
    "none": lambda margin: lambda c: c,
    "cosine": lambda margin: lambda c: c - margin,
    # Angles of normal rows are small and large: beyond π - m it goes on as its authors' code does.
    "angle": lambda margin: (
        lambda c: np.where(
            np.arccos(c) <= np.pi - margin,
            np.cos(np.arccos(c) + margin),
            c - margin * np.sin(margin),
        )
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize(
    ("kind", "margin"), [("none", 0.0), ("cosine", 0.35), ("angle", 0.5), ("angle", 2.0)]
)
def test_is_the_cross_entropy_of_cosines(check, oracle, normal, kind, margin, block_size):
    x, w = normal(0, 6, 4), normal(1, 5, 4)
    cosine = (oracle.unit(x) @ oracle.unit(w).T)[np.arange(6), LABELS]
    beyond = np.arccos(cosine) > np.pi - margin
    assert kind != "angle" or margin < 1 or (beyond.any() and not beyond.all())

    def reference(x, w):
        return definition(oracle, x, w, 7.0, TURNED[kind](margin))

    def loss(x, w):
        return normalized_softmax(
            x, jnp.asarray(LABELS), w, scale=7.0, margin=margin, margin_kind=kind,
            block_size=block_size,
        )  # fmt: skip

    check(loss, reference, x, w)


@pytest.mark.parametrize("kind", ["none", "cosine", "angle"])
def test_values_of_examples_have_the_loss_as_their_mean(normal, kind):
    x, w = (jnp.asarray(normal(i, n, 4), jnp.float32) for i, n in ((0, 6), (1, 5)))
    options = dict(scale=3.0, margin=0.0 if kind == "none" else 0.3, margin_kind=kind)
    each = normalized_softmax(x, jnp.asarray(LABELS), w, reduction="none", **options)
    assert each.shape == (6,)
    assert jnp.mean(each) == pytest.approx(
        float(normalized_softmax(x, jnp.asarray(LABELS), w, **options)), rel=1e-6
    )


@pytest.mark.parametrize("kind", ["cosine", "angle"])
def test_without_a_margin_all_kinds_are_one(normal, kind):
    x, w = (jnp.asarray(normal(i, n, 4), jnp.float32) for i, n in ((0, 6), (1, 5)))
    plain = normalized_softmax(x, jnp.asarray(LABELS), w, scale=5.0)
    found = normalized_softmax(x, jnp.asarray(LABELS), w, scale=5.0, margin_kind=kind)
    np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_a_gradient_turns_a_row_and_does_not_stretch_it(normal):
    x, w = (jnp.asarray(normal(i, n, 4), jnp.float32) for i, n in ((0, 6), (1, 5)))
    slope = jax.grad(lambda x: normalized_softmax(x, jnp.asarray(LABELS), w, scale=5.0))(x)
    along = jnp.sum(x * slope, axis=1)
    assert jnp.max(jnp.abs(slope)) > 0.01
    np.testing.assert_allclose(along, 0, atol=1e-6)


def simplex(classes):
    """Corners of a simplex: unit rows whose cosines are -1 / (k - 1)."""
    corners = np.eye(classes) - 1 / classes
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)


@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (5, 3.0), (10, 7.0)])
def test_rows_at_the_corners_of_a_simplex_reach_the_minimum(classes, scale):
    corners, labels = jnp.asarray(simplex(classes), jnp.float32), jnp.arange(classes)
    found = normalized_softmax(2.5 * corners, labels, 0.4 * corners, scale=scale)
    bound = minimum_loss(classes, scale)
    assert float(found) == pytest.approx(bound, abs=5e-7 * scale)  # a rounding of the logits
    nearby = corners + 0.1 * jax.random.normal(jax.random.key(0), corners.shape)
    for rows in (nearby, jax.random.normal(jax.random.key(1), corners.shape)):
        assert normalized_softmax(rows, labels, rows, scale=scale) > bound


@pytest.mark.parametrize(("classes", "probability"), [(2, 0.9), (10, 0.99), (1000, 0.5)])
def test_the_least_scale_reaches_the_probability(classes, probability):
    scale = scale_for(classes, probability)
    assert np.exp(-minimum_loss(classes, scale)) == pytest.approx(probability, rel=1e-12)
    assert np.exp(-minimum_loss(classes, 0.9 * scale)) < probability


@pytest.mark.parametrize("probability", [0.1, 1.0, float("nan")])
def test_probabilities_that_every_scale_or_none_reaches_are_refused(probability):
    with pytest.raises(ValueError, match=r"^probability is .*, expected a number above 0\.1,"):
        scale_for(10, probability)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -0.1, "margin_kind": "cosine"}, r"^margin is -0\.1, expected a number at"),
        ({"margin": np.inf, "margin_kind": "cosine"}, "^margin is inf, expected a finite number$"),
        ({"margin": 3.2, "margin_kind": "angle"}, r"^margin is 3\.2, expected a number between"),
        ({"margin": 0.1}, r"^margin is 0\.1 and margin_kind 'none', expected a kind of margin"),
        ({"margin_kind": "arc"}, "^margin_kind must be one of none, cosine, angle, got 'arc'"),
        ({"reduction": "sum"}, "^reduction must be 'mean' or 'none', got 'sum'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        normalized_softmax(jnp.eye(3), jnp.arange(3), jnp.eye(3), scale=2.0, **options)


def test_labels_without_a_class_vector_are_refused():
    with pytest.raises(ValueError, match="labels must lie between 0 and 1, got values from 0 to 2"):
        normalized_softmax(jnp.eye(3), jnp.arange(3), jnp.eye(3)[:2], scale=2.0)


@pytest.mark.parametrize("one", [minimum_loss, scale_for])
def test_one_class_is_refused(one):
    with pytest.raises(ValueError, match=r"^classes is 1, expected a number at least 2$"):
        one(1, 0.7)
