"""Tests of the difference between two systems measured on the same queries."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rml.evaluation.checks import require_finite


class PairedDifference(NamedTuple):
    """The mean difference first - second over queries, and how far from chance it is.

    Attributes:
      difference: The mean difference.
      low: Lower end of its confidence interval.
      high: Upper end.
      p_value: Two-sided p-value of no difference.
    """

    difference: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    p_value: Float[Array, ""]


def _differences(first: Array, second: Array, resamples: int, block: int) -> Array:
    if first.shape != second.shape or first.ndim != 1 or first.shape[0] < 2:
        raise ValueError(
            f"the two systems must be measured on the same queries, at least 2, got shapes "
            f"{first.shape} and {second.shape}"
        )
    for name, value in (("resamples", resamples), ("block", block)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    require_finite("first", first)
    require_finite("second", second)
    dtype = _precision(first, second)
    if any(isinstance(own, jax.core.Tracer) for own in (first, second)):
        return first.astype(dtype) - second.astype(dtype)
    return jnp.asarray(_subtract(first, second).astype(dtype))


def _subtract(first: Array, second: Array) -> np.ndarray:
    """Subtracts on the host: integers as such, since large ones differ by less than a float has."""
    whole = all(jnp.issubdtype(own.dtype, jnp.integer) for own in (first, second))
    wide = np.int64 if whole else np.float64
    return np.asarray(first, wide) - np.asarray(second, wide)


def _precision(first: Array, second: Array) -> np.dtype:
    """The type in which two systems are compared, float32 at least."""
    return jnp.promote_types(jnp.promote_types(first.dtype, second.dtype), jnp.float32)


def paired_bootstrap(
    first: Float[Array, " q"],
    second: Float[Array, " q"],
    *,
    key: PRNGKeyArray,
    resamples: int = 10_000,
    level: float = 0.95,
    block: int = 256,
) -> PairedDifference:
    """Computes a percentile interval and p-value of the mean difference, by resampling queries.

    The p-value is the share of resamples, of differences shifted to mean 0, whose Student
    statistic is at least as large in size as the one observed. It need not agree with the interval
    to the last query: the interval is that of the mean itself.

    Args:
      first: Scores of the first system on each query.
      second: Scores of the second on the same queries.
      key: Key of the resamples.
      resamples: Number of resamples.
      level: Confidence of the interval.
      block: Resamples drawn at a time; memory grows with `block` times q, the result does not
        depend on it.

    Returns:
      The difference, its interval and the p-value, which is at least 1 / (resamples + 1).

    Raises:
      ValueError: If the shapes disagree, there are fewer than 2 queries, a score is not finite, the
        level is not between 0 and 1, or `resamples` or `block` is less than 1.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", sections 13.3 and 16.4;
      Sakai 2006, "Evaluating Evaluation Metrics based on the Bootstrap", section 3.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    differences = _differences(first, second, resamples, block)
    return _bootstrap(differences, key, level, resamples=resamples, block=block)


@partial(jax.jit, static_argnames=("resamples", "block"))
def _bootstrap(
    differences: Array, key: Array, level: float | Array, *, resamples: int, block: int
) -> PairedDifference:
    mean = jnp.mean(differences)
    centred = differences - mean

    def resample(key: Array) -> tuple[Array, Array]:
        drawn = jax.random.choice(key, centred, centred.shape)
        return jnp.mean(drawn), jnp.std(drawn)

    keys = jax.random.split(key, resamples)
    shifts, spreads = jax.lax.map(resample, keys, batch_size=min(block, resamples))
    # |t*| ≥ |t| without a division, as a resample of one value has no spread; equal up to rounding
    # is equal, and a mean of 0 is never beyond one that is not.
    tolerance = 1e-6 * jnp.max(jnp.abs(differences))
    observed = jnp.abs(mean) * spreads
    beyond = jnp.abs(shifts) * jnp.std(differences) >= observed - tolerance * spreads
    beyond &= (jnp.abs(shifts) > tolerance) | (jnp.abs(mean) <= tolerance)
    low, high = mean + jnp.quantile(shifts, jnp.stack([(1 - level) / 2, (1 + level) / 2]))
    return PairedDifference(mean, low, high, (1 + jnp.sum(beyond)) / (1 + resamples))


def paired_randomization(
    first: Float[Array, " q"],
    second: Float[Array, " q"],
    *,
    key: PRNGKeyArray,
    resamples: int = 10_000,
    block: int = 256,
) -> Float[Array, ""]:
    """Computes the two-sided p-value of no difference, exchanging systems at random on each query.

    Args:
      first: Scores of the first system on each query.
      second: Scores of the second on the same queries.
      key: Key of the exchanges.
      resamples: Number of random exchanges.
      block: Exchanges drawn at a time; memory grows with `block` times q, the result does not
        depend on it.

    Returns:
      The p-value, at least 1 / (resamples + 1).

    Raises:
      ValueError: If the shapes disagree, there are fewer than 2 queries, a score is not finite, or
        `resamples` or `block` is less than 1.

    Source: Smucker, Allan and Carterette 2007, "A Comparison of Statistical Significance Tests for
      Information Retrieval Evaluation", section 3.1.
    """
    differences = _differences(first, second, resamples, block)
    return _randomization(differences, key, resamples=resamples, block=block)


@partial(jax.jit, static_argnames=("resamples", "block"))
def _randomization(differences: Array, key: Array, *, resamples: int, block: int) -> Array:
    def exchanged(key: Array) -> Array:
        return jnp.sum(differences * jax.random.rademacher(key, differences.shape))

    keys = jax.random.split(key, resamples)
    sums = jax.lax.map(exchanged, keys, batch_size=min(block, resamples))
    # Equal sums in another order of rounding are equal.
    tolerance = 1e-6 * jnp.sum(jnp.abs(differences))
    beyond = jnp.abs(sums) >= jnp.abs(jnp.sum(differences)) - tolerance
    return (1 + jnp.sum(beyond)) / (1 + resamples)


class SignedRank(NamedTuple):
    """Wilcoxon's signed-rank test.

    Attributes:
      statistic: The lesser of the sums of ranks of positive and of negative differences.
      p_value: Two-sided p-value of differences symmetric about zero.
    """

    statistic: float
    p_value: float


def wilcoxon(first: Float[Array, " q"], second: Float[Array, " q"]) -> SignedRank:
    """Runs Wilcoxon's signed-rank test of paired measurements, by scipy on the host.

    Differences of zero are left out, as Wilcoxon did; systems that never differ have p-value 1.
    Differences that are equal but for rounding of the measurements are ties; integers have none.
    The p-value is exact for up to 50 pairs without ties or zeros, and by all permutations for up to
    13 with them; else it is by the normal approximation.

    Args:
      first: Measurements of a system on queries, seeds or data sets.
      second: Those of the other on the same ones.

    Returns:
      Statistic and p-value.

    Raises:
      ValueError: If the shapes differ, there are fewer than 2 pairs, or a number is not finite.

    Source: Wilcoxon 1945, Individual Comparisons by Ranking Methods; for several data sets
      recommended by Demšar 2006.
    """
    from scipy import stats

    _differences(first, second, 1, 1)
    differences = _subtract(first, second)
    rounding = 0.0
    if differences.dtype != np.int64:
        largest = max(np.abs(np.asarray(own, np.float64)).max() for own in (first, second))
        floats = [own.dtype for own in (first, second) if jnp.issubdtype(own.dtype, jnp.floating)]
        rounding = max((float(jnp.finfo(dtype).eps) for dtype in floats), default=0.0) * largest
    sizes = np.abs(differences)
    order = np.argsort(sizes)
    # The test reads no more than signs and order: steps of the sizes that are more than rounding.
    steps = np.empty(len(sizes), int)
    steps[order] = np.cumsum(np.diff(sizes[order], prepend=0) > rounding)
    if not steps.any():
        return SignedRank(0.0, 1.0)
    found = stats.wilcoxon(steps * np.sign(differences))
    return SignedRank(float(found.statistic), float(found.pvalue))


class McNemar(NamedTuple):
    """McNemar's test of two systems that are each right or wrong on the same examples.

    Attributes:
      only_first: Examples on which the first system alone is right.
      only_second: Those on which the second alone is.
      p_value: Exact two-sided p-value of equally many of both.
      mid_p: The same with only half the chance of what was seen: nearer to its level than the exact
        one, which is too cautious where the systems seldom differ, and not guaranteed.
    """

    only_first: int
    only_second: int
    p_value: float
    mid_p: float


def mcnemar(first: Bool[Array, " n"], second: Bool[Array, " n"]) -> McNemar:
    """Runs McNemar's test of equal accuracy, by the binomial distribution, by scipy on the host.

    Examples on which both are right or both wrong say nothing on which is better; without others
    both p-values are 1.

    Args:
      first: Whether the first system is right on each of n examples.
      second: Whether the second is, on the same ones.

    Returns:
      Both counts, the exact p-value and the mid-p-value.

    Raises:
      ValueError: If the shapes differ, there is no example, or an array is not of truth values.

    Source: McNemar 1947, Note on the Sampling Error of the Difference between Correlated
      Proportions or Percentages; mid-p as in Fagerland, Lydersen and Laake 2013, The McNemar Test
      for Binary Matched-Pairs Data, section Methods.
    """
    from scipy import stats

    if first.shape != second.shape or not first.size:
        raise ValueError(
            f"the two systems must be judged on the same examples, at least 1, got shapes "
            f"{first.shape} and {second.shape}"
        )
    one, other = np.asarray(first), np.asarray(second)
    if not one.dtype == other.dtype == bool:
        raise ValueError(
            f"the systems must be right or wrong, got arrays of type {one.dtype} and {other.dtype}"
        )
    counts = int((one & ~other).sum()), int((other & ~one).sum())
    if not sum(counts):
        return McNemar(0, 0, 1.0, 1.0)
    exact = float(stats.binomtest(counts[0], sum(counts)).pvalue)
    seen = float(stats.binom.pmf(counts[0], sum(counts), 0.5))
    # Of two equal counts both tails are one outcome, which is halved once.
    mid = exact - (seen / 2 if counts[0] == counts[1] else seen)
    return McNemar(*counts, exact, mid)


def holm(p_values: Float[Array, " c"] | Sequence[float]) -> Float[Array, " c"]:
    """Adjusts p-values of several comparisons so that one false alarm in all is as rare.

    Comparing them with α keeps the chance of any false rejection at most α, whatever the
    dependence of the comparisons.

    Args:
      p_values: P-values of c comparisons.

    Returns:
      Adjusted p-values in the same order, at most 1.

    Raises:
      ValueError: If there are none.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    p_values = jnp.asarray(p_values)
    if p_values.ndim != 1 or p_values.shape[0] == 0:
        raise ValueError(f"p_values must be a non-empty vector, got shape {p_values.shape}")
    count = p_values.shape[0]
    order = jnp.argsort(p_values)
    scaled = p_values[order] * (count - jnp.arange(count))
    adjusted = jnp.minimum(jax.lax.cummax(scaled), 1)
    return jnp.zeros_like(adjusted).at[order].set(adjusted)


def compare_systems(
    found: Mapping[str, Mapping[tuple[str, str], Float[np.ndarray, " q"]]],
    ours: str,
    *,
    key: PRNGKeyArray,
    prefix: str = "",
) -> dict[str, float]:
    """Computes means of all systems, and how far one of them is above each of the others.

    Args:
      found: Values of every query, by system, then by task and metric.
      ours: Name of the system that is compared.
      key: Key of the resamples.
      prefix: Beginning of the names of the differences.

    Returns:
      `<task>_<system>_<metric>`, and for each other system
      `<task>_<prefix><metric>_over_<system>` with the ends of the 95% interval (`_low`, `_high`)
      and the p-value (`_p`) of a `paired_bootstrap` over queries.
    """
    metrics: dict[str, float] = {}
    for name, results in found.items():
        for (task, metric), values in results.items():
            metrics[f"{task}_{name}_{metric}"] = float(values.mean())
            if name == ours:
                continue
            own = jnp.asarray(found[ours][task, metric])
            test = paired_bootstrap(own, jnp.asarray(values), key=key)
            label = f"{task}_{prefix}{metric}_over_{name}"
            metrics[label], metrics[f"{label}_p"] = float(test.difference), float(test.p_value)
            metrics[f"{label}_low"], metrics[f"{label}_high"] = float(test.low), float(test.high)
    return metrics
