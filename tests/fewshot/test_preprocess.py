"""Transforms of features, of whole episodes, and of what a method sees."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from rml.fewshot import preprocessed, simple_shot, transform, transform_episode
from rml.fewshot.preprocess import shift_queries
from rml.ops.class_means import class_means


def test_transforms():
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    center = np.asarray([1.0, -2.0, 0.5], np.float32)
    a = jnp.asarray(x)
    np.testing.assert_array_equal(transform(a, kind="UN"), x)
    np.testing.assert_allclose(
        transform(a, kind="L2N"), x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-6
    )
    for given, used in ((None, x.mean(0)), (jnp.asarray(center), center)):
        y = x - used
        expected = y / np.linalg.norm(y, axis=1, keepdims=True)
        np.testing.assert_allclose(transform(a, kind="CL2N", center=given), expected, rtol=1e-5)
        support, query = transform_episode(a[:2], a[2:], kind="CL2N", center=given)
        np.testing.assert_allclose(jnp.concatenate([support, query]), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="unknown feature transform 'CL2'; did you mean 'CL2N'"):
        transform(a, kind="CL2")


def test_a_centre_that_is_not_a_row_is_refused(unchecked):
    for wrong in (jnp.ones(1), jnp.ones((5, 3)), jnp.ones(())):
        message = rf"x \(5, 3\) as \[rows, d\], center {re.escape(str(wrong.shape))} as \[d\]"
        with pytest.raises(ValueError, match=message):
            transform(jnp.ones((5, 3)), kind="CL2N", center=wrong)


def test_means_of_half_precision_are_of_float32():
    """A sum of float16 overflows, a difference of bfloat16 near 8 has no digits."""
    large = jnp.full((6, 2), 20_000, jnp.float16)
    means = class_means(large, jnp.asarray([0, 0, 0, 0, 0, 1]), num_classes=2)
    np.testing.assert_array_equal(means, np.full((2, 2), 20_000, np.float32))
    rng = np.random.default_rng(1)
    x, center = (
        jnp.asarray(8 + 0.3 * rng.standard_normal(size), jnp.bfloat16) for size in ((5, 3), (3,))
    )
    wide_x, wide_center = (a.astype(jnp.float32) for a in (x, center))
    for given, same in ((None, None), (center, wide_center)):
        found = transform(x, kind="CL2N", center=given)
        np.testing.assert_allclose(
            found, transform(wide_x, kind="CL2N", center=same), rtol=1e-6, atol=1e-6
        )
    np.testing.assert_allclose(
        shift_queries(x[:2], x[2:]), shift_queries(wide_x[:2], wide_x[2:]), rtol=1e-6
    )


@pytest.mark.slow
def test_a_preprocessed_method_sees_transformed_features(episode):
    support, labels, query, _ = episode(0)
    wrapped = preprocessed(simple_shot, kind="CL2N")(2 * support + 3, labels, 2 * query + 3,
                                                     num_classes=3)  # fmt: skip
    inner = simple_shot(2 * support + 3, labels, 2 * query + 3, num_classes=3, kind="CL2N")
    np.testing.assert_allclose(wrapped, inner, rtol=1e-6)
