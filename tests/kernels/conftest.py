import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def normal():
    return lambda seed, *shape: np.random.default_rng(seed).standard_normal(shape)
