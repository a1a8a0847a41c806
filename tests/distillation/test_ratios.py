"""Ratios that are not learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.distillation import (
    correctness_ratio,
    cosine_ratio,
    entropy_ratio,
    linear_ratio,
    wls_ratio,
)

Z = np.array([[3.0, 0.0, 1.0], [0.0, 2.0, -1.0], [0.5, 0.5, 0.5]])
TEACHER = np.array([[1.0, 4.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
LABELS = np.array([1, 0, 2])


def cross_entropy(z):
    return np.log(np.exp(z).sum(1)) - z[np.arange(3), LABELS]


def test_schedules_begin_and_end_where_they_are_told():
    for ratio in (linear_ratio, cosine_ratio):
        ends = [float(ratio(at, first=0.9, last=0.3)) for at in (-0.5, 0.0, 0.5, 1.0, 1.5)]
        np.testing.assert_allclose(ends, [0.9, 0.9, 0.6, 0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(linear_ratio(0.25, first=0.9, last=0.3), 0.75, rtol=1e-6)
    half = (1 - np.cos(np.pi / 4)) / 2
    np.testing.assert_allclose(cosine_ratio(0.25, first=0.9, last=0.3), 0.9 - 0.6 * half, rtol=1e-6)


def test_a_teacher_that_has_the_label_is_heeded():
    found = correctness_ratio(jnp.asarray(TEACHER), jnp.asarray(LABELS), right=0.8, wrong=0.1)
    np.testing.assert_allclose(found, [0.8, 0.1, 0.1])


def test_a_sure_teacher_is_heeded():
    p = np.exp(TEACHER) / np.exp(TEACHER).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1) / np.log(3)
    found = entropy_ratio(jnp.asarray(TEACHER), highest=0.8, lowest=0.2)
    np.testing.assert_allclose(found, 0.8 - 0.6 * entropy, rtol=1e-5)
    np.testing.assert_allclose(found[2], 0.2, rtol=1e-5)


def test_a_class_that_is_masked_has_no_entropy():
    masked = np.array([[1.0, -np.inf, 0.3], [-np.inf, 2.0, -np.inf], [0.5, 0.0, -1.0]])
    ratio = lambda z: entropy_ratio(z, highest=0.8, lowest=0.2)  # noqa: E731
    found = ratio(jnp.asarray(masked))
    p = np.exp(masked) / np.exp(masked).sum(1, keepdims=True)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1) / np.log(3)
    np.testing.assert_allclose(found, 0.8 - 0.6 * entropy, rtol=1e-5)
    np.testing.assert_allclose(found[1], 0.8, rtol=1e-6)
    slope = jax.grad(lambda z: ratio(z).sum())(jnp.asarray(masked))
    with np.errstate(divide="ignore", invalid="ignore"):
        by_hand = np.where(p > 0, p * (np.log(p) + entropy[:, None] * np.log(3)), 0)
    np.testing.assert_allclose(slope, 0.6 / np.log(3) * by_hand, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("unchecked")
def test_columns_and_single_rows_are_not_spread_over_examples():
    student, teacher, labels = map(jnp.asarray, (Z, TEACHER, LABELS))
    for known in ((teacher, labels[:, None]), (teacher, labels[:1]), (teacher[:1], labels)):
        with pytest.raises(ValueError, match=r"shapes do not fit: teacher .*, labels"):
            correctness_ratio(*known, right=0.8)
    for known in ((student[:1], teacher, labels), (student, teacher[:1], labels)):
        with pytest.raises(ValueError, match="shapes do not fit: student"):
            wls_ratio(*known)


def test_a_student_worse_than_its_teacher_is_taught():
    weight = 1.5 * (1 - np.exp(-cross_entropy(Z) / cross_entropy(TEACHER)))
    found = wls_ratio(*map(jnp.asarray, (Z, TEACHER, LABELS)), strength=1.5)
    np.testing.assert_allclose(found, weight / (1 + weight), rtol=1e-5)
    sure = 200 * np.eye(3)[LABELS]
    for student, teacher in ((Z, sure), (sure, sure), (-sure, sure), (sure, -sure)):
        arrays = [jnp.asarray(x) for x in (student, teacher, LABELS)]
        edge = wls_ratio(*arrays)
        assert ((edge >= 0) & (edge <= 2.5 / 3.5 + 1e-6)).all()
    slope = jax.grad(lambda z: wls_ratio(z, *map(jnp.asarray, (TEACHER, LABELS))).sum())
    np.testing.assert_array_equal(slope(jnp.asarray(Z)), 0)
