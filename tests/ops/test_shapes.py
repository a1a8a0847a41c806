"""Whether numbers are what a function names."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml.ops.shapes import (
    check_above_0,
    check_between,
    check_count,
    check_finite,
    check_whole,
)


def test_numbers_above_0_are_taken():
    check_above_0(a=1, b=0.5, c=np.float32(1e-9), d=np.inf, e=jnp.zeros(2))
    for wrong in (0, -1, 0.0, np.nan, np.float32(-0.5)):
        with pytest.raises(ValueError, match=f"^b is {wrong}, expected a number above 0$"):
            check_above_0(a=1, b=wrong)


def test_numbers_in_a_range_are_taken_with_its_ends():
    check_between(0, 1, a=0, b=1, c=0.5, d=np.float32(1), e=jnp.full(2, 7.0))
    check_between(2, a=2, b=1e9, c=np.int64(3), d=np.inf)
    for wrong in (-0.25, 1.25, np.nan, np.inf, np.float32(-3)):
        with pytest.raises(ValueError, match=f"^b is {wrong}, expected a number between 0 and 1$"):
            check_between(0, 1, a=1, b=wrong)
    for wrong in (1, -2.0, np.nan):
        with pytest.raises(ValueError, match=f"^b is {wrong}, expected a number at least 2$"):
            check_between(2, a=2, b=wrong)


def test_whole_numbers_are_taken():
    check_whole(a=1, b=np.int32(-2), c=0)
    for wrong in (2.0, np.float32(2), np.nan, "2", None):
        with pytest.raises(ValueError, match=f"^b is {wrong}, expected a whole number$"):
            check_whole(a=1, b=wrong)


def test_counts_are_whole_and_no_fewer():
    check_count(0, a=0, b=np.int64(3))
    check_count(2, a=2)
    with pytest.raises(ValueError, match=r"^b is 2\.0, expected a whole number$"):
        check_count(1, a=1, b=2.0)
    for low, wrong in ((0, -1), (2, 1)):
        with pytest.raises(ValueError, match=f"^b is {wrong}, expected a number at least {low}$"):
            check_count(low, a=low, b=wrong)


def test_finite_numbers_are_taken():
    check_finite(a=-1, b=0.0, c=np.float32(1e30), d=jnp.full(2, jnp.nan), e=None)
    for wrong in (np.nan, np.inf, -np.inf, np.float32(np.nan)):
        with pytest.raises(ValueError, match=f"^b is {wrong}, expected a finite number$"):
            check_finite(a=1, b=wrong)
