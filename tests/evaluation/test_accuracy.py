"""Accuracy against scikit-learn."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from rml.evaluation import accuracy


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_scikit_learn(k):
    scores = jax.random.normal(jax.random.key(0), (50, 6))
    labels = jax.random.randint(jax.random.key(1), (50,), 0, 6)
    expected = top_k_accuracy_score(np.asarray(labels), np.asarray(scores), k=k, labels=range(6))
    np.testing.assert_allclose(accuracy(scores, labels, k=k), expected, rtol=1e-6)


def test_ties_go_to_the_lower_class():
    scores = jnp.zeros((2, 3))
    assert float(accuracy(scores, jnp.asarray([0, 0]))) == 1
    assert float(accuracy(scores, jnp.asarray([1, 2]))) == 0
    assert float(accuracy(scores, jnp.asarray([1, 2]), k=2)) == 0.5


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_be_a_number_of_classes(k):
    with pytest.raises(ValueError, match=f"the 3 classes, got {k}"):
        accuracy(jnp.zeros((2, 3)), jnp.zeros(2, int), k=k)


def test_no_rows_have_no_accuracy():
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        accuracy(jnp.zeros((0, 3)), jnp.zeros(0, int))


@pytest.mark.parametrize(
    ("scores", "labels"), [((3, 3), (3, 1)), ((4, 3), (1,)), ((3, 3), (2,)), ((3,), (3,))]
)
def test_labels_that_do_not_fit_the_scores_are_refused(unchecked, scores, labels):
    shapes = re.escape(f"{scores} and {labels}")
    with pytest.raises(ValueError, match=rf"scores \[n, c\] and labels \[n\], got shapes {shapes}"):
        accuracy(jnp.ones(scores), jnp.zeros(labels, int))


@pytest.mark.parametrize(("wrong", "told"), [(-1, "from -1 to 2"), (3, "from 0 to 3")])
def test_a_label_of_no_class_is_refused_where_that_can_be_known(wrong, told):
    scores, labels = jnp.eye(4)[:, :3], jnp.array([0, wrong, 2, 1])
    with pytest.raises(ValueError, match=f"labels must lie between 0 and 2, got values {told}"):
        accuracy(scores, labels)
    assert float(jax.jit(accuracy)(scores, labels)) == 0.5


def test_scores_must_be_finite_where_that_can_be_known():
    scores, labels = jnp.eye(3).at[0, 1].set(jnp.nan), jnp.arange(3)
    with pytest.raises(ValueError, match="scores must be finite, got 1 NaN"):
        accuracy(scores, labels)
    assert jax.jit(accuracy)(scores, labels).shape == ()
