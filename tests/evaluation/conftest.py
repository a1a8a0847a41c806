"""Fixtures of the evaluation tests."""

import jax
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def digits() -> tuple[jax.Array, jax.Array]:
    """1,797 real digits of 8 × 8 pixels in random order, as features, and their classes."""
    images, labels = load_digits(return_X_y=True)
    order = jax.random.permutation(jax.random.key(0), len(labels))
    return jax.numpy.asarray(images, jax.numpy.float32)[order], jax.numpy.asarray(labels)[order]
