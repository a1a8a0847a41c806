"""Transforms of features, of whole episodes, and of what a method sees."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml.fewshot import preprocessed, simple_shot, transform, transform_episode


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


@pytest.mark.slow
def test_a_preprocessed_method_sees_transformed_features(episode):
    support, labels, query, _ = episode(0)
    wrapped = preprocessed(simple_shot, kind="CL2N")(2 * support + 3, labels, 2 * query + 3,
                                                     num_classes=3)  # fmt: skip
    inner = simple_shot(2 * support + 3, labels, 2 * query + 3, num_classes=3, kind="CL2N")
    np.testing.assert_allclose(wrapped, inner, rtol=1e-6)
