import jax
import jaxtyping
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def normal():
    return lambda seed, *shape: np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture
def unchecked():
    """Without the shape checks of the tests, so that the function's own errors are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
