"""Confidence intervals of means."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class MeanInterval(NamedTuple):
    """Means with their confidence intervals.

    Attributes:
      mean: Means.
      low: Lower ends.
      high: Upper ends.
    """

    mean: Float[np.ndarray, "*batch"]
    low: Float[np.ndarray, "*batch"]
    high: Float[np.ndarray, "*batch"]


def t_interval(
    values: Float[np.ndarray, "*batch n"], *, level: float = 0.95, overlap: float = 0.0
) -> MeanInterval:
    """Computes Student's interval of the mean of n independent values, mean ± t s / √n.

    With normal values it covers the true mean with probability `level`, for every n from 2. With
    skewed ones it covers less: at 95% and n = 2, 3, 5, 10 exponential values are covered in 91, 88,
    88 and 90% of simulations, log-normal ones (σ = 1) in 89, 84, 82 and 84%
    (tests/ops/test_intervals.py). Nearly all misses lie on the side of the long tail: the chance
    that the end away from it is wrong stays below 1.2%. Equal values have an interval of no width.

    Values measured on random splits of one data set are not independent, since the splits share
    examples. With their `overlap` r the interval is mean ± t s √(1/n + r), as Nadeau and Bengio
    correct it; however many splits are drawn, it does not become narrower than the data allow.

    Args:
      values: Values, the last axis being averaged.
      level: Confidence of the interval.
      overlap: Test examples over training examples of each random split; 0 of independent values.

    Returns:
      Means and intervals; the ends of the mean of a single value are NaN.

    Raises:
      ValueError: If the level is not between 0 and 1, or the overlap is below 0.

    Source: Student 1908, "The Probable Error of a Mean"; Nadeau and Bengio 2003, "Inference for
    the Generalization Error", Section 3.
    """
    from scipy import special  # not needed to train

    n = values.shape[-1]
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if overlap < 0:
        raise ValueError(f"overlap must be at least 0, got {overlap}")
    if n < 2:
        mean = values.mean(-1)
        return MeanInterval(mean, mean * np.nan, mean * np.nan)
    # The rounded mean of equal values may lie beside them, and then beside a threshold.
    mean = np.clip(values.mean(-1), values.min(-1), values.max(-1))
    spread = np.sqrt(((values - mean[..., None]) ** 2).sum(-1) / (n - 1))
    half = special.stdtrit(n - 1, (1 + level) / 2) * (spread * np.sqrt(1 / n + overlap))
    return MeanInterval(mean, mean - half, mean + half)
