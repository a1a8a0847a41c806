"""What the tests of all losses share: float64 pieces of the oracles and the gradient check."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _lse(s, axis=-1):
    top = np.max(s, axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.sum(np.exp(s - top), axis=axis))


@pytest.fixture
def oracle():
    """Unit rows and log-sum-exp in float64 NumPy."""
    return SimpleNamespace(unit=_unit, lse=_lse)


@pytest.fixture
def check():
    """Compares a loss with its float64 oracle, and its gradient with the oracle's differences."""

    def run(loss, reference, *args, rtol=2e-5, step=1e-6):
        args = [np.asarray(x, np.float64) for x in args]
        value, grads = jax.jit(jax.value_and_grad(loss, tuple(range(len(args)))))(
            *(x.astype(np.float32) for x in args)
        )
        args = [np.asarray(x.astype(np.float32), np.float64) for x in args]
        np.testing.assert_allclose(value, reference(*args), rtol=rtol, atol=1e-6)
        rng = np.random.default_rng(7)
        for i, grad in enumerate(grads):
            grad = np.asarray(grad, np.float64)
            assert np.all(np.isfinite(grad))
            for _ in range(3):
                direction = rng.standard_normal(grad.shape)

                def along(t, i=i, direction=direction):
                    return reference(*args[:i], args[i] + t * direction, *args[i + 1 :])

                expected = (along(step) - along(-step)) / (2 * step)
                scale = np.linalg.norm(grad) * np.linalg.norm(direction)
                np.testing.assert_allclose(
                    np.sum(grad * direction), expected, rtol=1e-4, atol=2e-5 * scale + 1e-7
                )

    return run


@pytest.fixture
def normal():
    """Standard normal float64 arrays from a seed."""

    def draw(seed, *shape):
        return np.random.default_rng(seed).standard_normal(shape)

    return draw
