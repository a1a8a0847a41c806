"""How a quantity grows or falls with another: slopes and levels on logarithmic axes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rml.ops.intervals import MeanInterval

Values = Sequence[Any] | np.ndarray


def log_log_slopes(x: Values, y: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """Computes slopes of log y over log x by least squares, one a row of y.

    Args:
      x: The n positive values that all rows share.
      y: Positive values.

    Returns:
      The slopes: 1 where y is proportional to x, -1/2 where it falls as a mean's deviation does.
    """
    logs = np.log(np.asarray(x, float)) - np.mean(np.log(np.asarray(x, float)))
    return np.asarray(np.log(y) @ logs / (logs @ logs))


def log_log_slope_interval(x: Values, y: Float[np.ndarray, "n r"]) -> MeanInterval:
    """Fits one slope of log y over log x to several values at each x, by least squares.

    Args:
      x: The n positive values.
      y: Positive, independent values at each.

    Returns:
      The slope and the ends of its 95% interval, of Student's distribution with n r - 2 degrees.
    """
    from scipy import stats  # slow to import

    logs = np.repeat(np.log10(np.asarray(x, float)), y.shape[1])
    line = stats.linregress(logs, np.log10(y).ravel())
    half = stats.t.ppf(0.975, y.size - 2) * line.stderr
    return MeanInterval(line.slope, line.slope - half, line.slope + half)


def examples_needed(sizes: Sequence[int], errors: Float[np.ndarray, " n"], level: float) -> float:
    """Finds the least number of examples with error at most `level`, by log-log interpolation.

    Args:
      sizes: Increasing numbers of examples.
      errors: Error with each.
      level: Level to reach.

    Returns:
      The number; NaN where the errors never fall to the level or begin below it. Before an error
      of zero, which has no logarithm, nothing is interpolated.
    """
    if errors[0] == level:
        return float(sizes[0])
    if not (errors[0] > level >= errors.min()):
        return float("nan")
    i = int(np.argmax(errors <= level))
    if not errors[i]:
        return float(sizes[i])
    x, y = np.log(np.asarray(sizes[i - 1 : i + 1])), np.log(errors[i - 1 : i + 1])
    return float(np.exp(x[0] + (np.log(level) - y[0]) / (y[1] - y[0]) * (x[1] - x[0])))
