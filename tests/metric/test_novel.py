"""Vectors of novel classes, and a classifier that classes come to and leave."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.errors import UserError
from rml.fewshot import simple_shot
from rml.losses import normalized_softmax
from rml.metric import OpenClassifier, class_prototypes, cosine_logits, unit_rows


def rows(seed, n, d=4):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, d)) * 3, jnp.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_vector_is_the_direction_of_the_mean_of_unit_rows():
    x, labels = rows(0, 7), np.array([0, 2, 2, 0, 2, 3, 2])
    found = class_prototypes(x, jnp.asarray(labels), num_classes=4)
    for c in (0, 2, 3):
        expected = unit(unit(np.asarray(x)[labels == c]).mean(0))
        np.testing.assert_allclose(found[c], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[1], 0)  # a class without rows


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_classes_are_those_of_simple_shot_on_the_sphere(classes, shots, seed):
    support, query = rows(seed, classes * shots), rows(seed + 1, 6)
    labels = jnp.arange(classes * shots) % classes
    logits = cosine_logits(query, class_prototypes(support, labels, num_classes=classes))
    options = dict(num_classes=classes, kind="L2N", unit_prototypes=True)
    probabilities = simple_shot(support, labels, query, **options)
    order = np.argsort(np.asarray(logits), axis=1)
    sorted_by = np.take_along_axis(np.asarray(probabilities), order, axis=1)
    assert (np.diff(sorted_by, axis=1) >= -1e-6).all()


def test_one_example_of_each_class_is_the_nearest_neighbour_by_cosine():
    support, query = rows(3, 6), rows(4, 9)
    logits = cosine_logits(query, class_prototypes(support, jnp.arange(6), num_classes=6))
    expected = (unit(np.asarray(query)) @ unit(np.asarray(support)).T).argmax(1)
    np.testing.assert_array_equal(jnp.argmax(logits, axis=1), expected)


def test_logits_are_those_of_the_loss():
    x, w, labels = rows(0, 6), rows(1, 5), jnp.arange(6) % 5
    logits = cosine_logits(x, w, scale=3.0)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    found = normalized_softmax(x, labels, w, scale=3.0, reduction="none")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_scales_and_labels_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"^scale is 0\.0, expected a number above 0$"):
        cosine_logits(jnp.eye(2), jnp.eye(2), scale=0.0)
    with pytest.raises(ValueError, match="labels must lie between 0 and 1, got values from 0 to 2"):
        class_prototypes(jnp.eye(3), jnp.arange(3), num_classes=2)
    with pytest.raises(ValueError, match=r"^num_classes is 0, expected a number at least 1$"):
        class_prototypes(jnp.eye(3), jnp.arange(3), num_classes=0)


def test_classes_are_added_beside_trained_ones_without_moving_them():
    trained = rows(0, 2)
    known = OpenClassifier.trained(["cat", "dog"], trained)
    foxes = rows(1, 3)
    more = known.add_class("fox", foxes)
    np.testing.assert_allclose(more.prototypes[:2], unit(np.asarray(trained)), rtol=1e-5)
    np.testing.assert_allclose(
        more.prototypes[2:], class_prototypes(foxes, jnp.zeros(3, int), num_classes=1), rtol=1e-5
    )
    assert (known.names, more.names, more.counts) == (("cat", "dog"), ("cat", "dog", "fox"),
                                                      (0, 0, 3))  # fmt: skip
    assert more.predict(2.5 * more.prototypes[::-1]) == ["fox", "dog", "cat"]


def test_examples_in_parts_give_the_vector_of_all():
    x = rows(2, 7)
    whole = OpenClassifier.empty(4).add_class("owl", rows(5, 2)).add_class("elk", x)
    parts = OpenClassifier.empty(4).add_class("owl", rows(5, 2)).add_class("elk", x[:2])
    parts = parts.add_examples("elk", x[2:3]).add_examples("elk", x[3:])
    np.testing.assert_allclose(parts.prototypes, whole.prototypes, rtol=1e-5)
    assert parts.counts == whole.counts == (2, 7)


def test_a_class_that_is_taken_away_is_predicted_no_more():
    known = OpenClassifier.empty(3)
    for name, row in zip("abc", jnp.eye(3), strict=True):
        known = known.add_class(name, row[None])
    left = known.remove_class("b")
    assert left.names == ("a", "c")
    assert left.predict(jnp.asarray([[0.1, 0.9, 0.2], [0.3, 0.8, 0.1]])) == ["c", "a"]
    again = left.add_class("b", jnp.eye(3)[1:2])
    assert again.predict(jnp.eye(3)) == ["a", "b", "c"]


def two():
    return OpenClassifier.trained(("a",), jnp.eye(2)[:1]).add_class("b", jnp.eye(2)[1:])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda c: c.add_class("a", jnp.ones((1, 2))), "the class 'a' is known; expected another"),
        (lambda c: c.add_class("c", jnp.ones((1, 3))), r"shape \(1, 3\), expected rows of 2"),
        (lambda c: c.add_class("c", jnp.ones((0, 2))), r"shape \(0, 2\), expected rows of 2"),
        (lambda c: c.add_class("c", jnp.zeros((1, 2))), "the class 'c' have no direction"),
        (lambda c: c.add_class("c", jnp.full((1, 2), jnp.nan)), "'c' have no direction"),
        (lambda c: c.add_class("c", jnp.asarray([[1.0, 0], [-1, 0]])), "'c' have no direction"),
        (lambda c: c.add_examples("b", -jnp.eye(2)[1:]), "'b' have no direction"),
        (lambda c: c.add_examples("a", jnp.ones((1, 2))), "'a' has a trained vector"),
        (lambda c: c.add_examples("x", jnp.ones((1, 2))), "class 'x'"),
        (lambda c: c.remove_class("x"), "class 'x'"),
        (lambda c: c.predict(jnp.ones((1, 3))), r"shape \(1, 3\), expected rows of 2"),
        (lambda c: OpenClassifier.empty(2).predict(jnp.ones((1, 2))), "there is no class"),
        (lambda c: OpenClassifier.empty(0), "width is 0, expected a number at least 1"),
        (lambda c: OpenClassifier.trained("ab", jnp.eye(3)), "2 names and 3 vectors"),
        (lambda c: OpenClassifier.trained("aa", jnp.eye(2)), "the name 'a' stands twice"),
        (lambda c: OpenClassifier.trained("ab", jnp.eye(2).at[1].set(0)), "'b' have no direction"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_what_no_class_can_be_made_of_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act(two())
    assert issubclass(UserError, ValueError)


def test_class_vectors_have_unit_length_after_every_update_and_nothing_else_has():
    params = {"prototypes": rows(0, 3), "head": {"kernel": rows(1, 2)}}
    slopes = {"prototypes": rows(2, 3), "head": {"kernel": rows(3, 2)}}
    transform = optax.chain(optax.sgd(0.2), unit_rows())
    updates, _ = transform.update(slopes, transform.init(params), params)
    moved = optax.apply_updates(params, updates)
    expected = unit(np.asarray(params["prototypes"] - 0.2 * slopes["prototypes"]))
    np.testing.assert_allclose(moved["prototypes"], expected, rtol=1e-5, atol=1e-6)
    kernel = params["head"]["kernel"] - 0.2 * slopes["head"]["kernel"]
    np.testing.assert_allclose(moved["head"]["kernel"], kernel, rtol=1e-6)
