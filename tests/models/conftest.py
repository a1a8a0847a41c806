"""Fixtures of the tests of models."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Without the shape checks of the tests, so that a model's own errors are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
