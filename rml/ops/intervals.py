"""Confidence intervals of means."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


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


class CrossedInterval(NamedTuple):
    """The mean of a table of seeds and units with its confidence interval.

    Attributes:
      mean: Mean of all entries.
      low: Lower end.
      high: Upper end.
      over_seeds: Standard deviation of the effects of seeds.
      over_units: Standard deviation of the effects of units, or of clusters of them.
    """

    mean: float
    low: float
    high: float
    over_seeds: float
    over_units: float


def crossed_interval(
    values: Float[np.ndarray, "seeds units"],
    *,
    clusters: Int[np.ndarray, " units"] | None = None,
    level: float = 0.95,
) -> CrossedInterval:
    """Computes an interval of the mean over seeds and units together, both drawn at random.

    All seeds are judged on the same units, so that a value is the sum of a mean, an effect of its
    seed, an effect of its unit and a rest. The variance of the grand mean is estimated by
    (MS_seeds + MS_units - MS_rest) / (s n), and by no less than either of the first two alone;
    Student's quantile is taken at Satterthwaite's degrees of freedom. Simulated, 95% intervals hold
    the mean in 93 to 96% of trials from five seeds on, normal or skewed, and in somewhat fewer with
    two or three seeds (tests/ops/test_intervals.py).

    Units of one cluster, such as the queries of one document, are no independent draws: their sums
    take the place of units.

    Args:
      values: A value for each seed and unit, usually the difference of two methods.
      clusters: Number of the cluster of each unit; each is its own if not given.
      level: Confidence of the interval.

    Returns:
      Mean, interval and both standard deviations. Of one seed the interval is over units alone, of
      one unit over seeds alone; of a single value its ends are NaN.

    Raises:
      ValueError: If the level is not between 0 and 1, there is no value, or not one cluster a unit.

    Source: Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance Components";
    Burdick and Graybill 1992, "Confidence Intervals on Variance Components", two-way layout without
    replication.
    """
    from scipy import special  # not needed to train

    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"values must be [seeds, units] and not empty, got shape {rows.shape}")
    if clusters is not None:
        if np.shape(clusters) != rows.shape[1:]:
            raise ValueError(
                f"clusters must be one a unit, {rows.shape[1:]}, got {np.shape(clusters)}"
            )
        _, place = np.unique(clusters, return_inverse=True)
        count = place.max() + 1
        sums = np.zeros((count, len(rows)))
        np.add.at(sums, place, rows.T)
        # Scaled so that the mean over clusters is the mean over units.
        rows = sums.T * (count / rows.shape[1])
    (s, n), mean = rows.shape, float(rows.mean())
    if s == 1 or n == 1:
        own = t_interval(rows.ravel(), level=level)
        spread = float(rows.std(ddof=1)) if rows.size > 1 else 0.0
        over = (spread, 0.0) if n == 1 else (0.0, spread)
        return CrossedInterval(float(own.mean), float(own.low), float(own.high), *over)
    by_seed, by_unit = rows.mean(1) - mean, rows.mean(0) - mean
    rest = rows - mean - by_seed[:, None] - by_unit
    freedoms = np.array([s - 1, n - 1, (s - 1) * (n - 1)])
    squares = np.array([n * np.sum(by_seed**2), s * np.sum(by_unit**2), np.sum(rest**2)]) / freedoms
    seeds, units, left = squares
    total = max(seeds + units - left, seeds, units)
    if total == 0:
        return CrossedInterval(mean, mean, mean, 0.0, 0.0)
    freedom = total**2 / np.sum(squares**2 / freedoms)
    half = float(special.stdtrit(freedom, (1 + level) / 2) * np.sqrt(total / (s * n)))
    over_seeds, over_units = np.sqrt(np.maximum([seeds - left, units - left], 0) / [n, s])
    return CrossedInterval(mean, mean - half, mean + half, float(over_seeds), float(over_units))
