"""Claims: statements of a paper, the metric that each reads, its null, and its verdict."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from datetime import date
from typing import Any

import numpy as np

from rml.ops.intervals import t_interval

RELATIONS = {">=": operator.ge, "<=": operator.le}
VERDICTS = (
    "holds", "not reproduced", "undecided", "vacuous", "one run: met", "one run: missed",
)  # fmt: skip
PASSES = ("holds", "one run: met")
"""Verdicts of values that meet a threshold."""


@dataclass(frozen=True)
class Claim:
    """A statement that a run can confirm or not reproduce, and what it is held against.

    A claim has one null: what its metric is where the idea is absent, such as without training,
    with shuffled labels or with the method's term off. What its null passes as well says nothing.

    Attributes:
      statement: The claim in one sentence, with its margin.
      metric: Name of the metric in the run's results. `<metric>_low` and `<metric>_high` are the
        run's own 95% interval, such as one over test examples, where it has them.
      relation: ">=" or "<=", between the measured value and `threshold`.
      threshold: Margin, in the metric's unit.
      source: Paper with table, figure or section.
      stated: Date on which the margin was stated, such as "2026-11-24".
      null: Metric of the same run that the metric is where the idea is absent, likewise.
      null_run: Name in the recipe's `NULLS` of the changes to the config under which the claim's
        metric is measured a second time, in the place of `null`.
      any_data: Whether the threshold holds on any data, as a theorem's does.
      says: The finding as a reader would say it, a template: `{mean}`, `{low}` and `{high}` are the
        metric's, other names those of further metrics; a format that ends in p gives points, so
        that `{mean:+.1p}` of 0.0123 is "+1.2". The statement is said where it is empty.
    """

    statement: str
    metric: str
    relation: str
    threshold: float
    source: str
    _: KW_ONLY
    stated: str
    null: str = ""
    null_run: str = ""
    any_data: bool = field(default=False, compare=False)
    says: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Refuses a claim without a null, a date or a relation."""
        if bool(self.null) == bool(self.null_run):
            given = f"{self.null!r} and {self.null_run!r}" if self.null else "neither"
            raise ValueError(f"claim on {self.metric!r} needs null or null_run, got {given}")
        if self.relation not in RELATIONS:
            raise ValueError(f"claim on {self.metric!r} has relation {self.relation!r}")
        try:
            date.fromisoformat(self.stated)
        except ValueError as error:
            raise ValueError(f"claim on {self.metric!r}: stated: {error}") from None

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> "Claim":
        """Makes the claim that `measure` measured, without its value."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: measured[name] for name in names if name in measured})

    def meets(self, value: float) -> bool:
        """Tells whether a value meets the threshold; NaN never does."""
        return bool(RELATIONS[self.relation](value, self.threshold))

    def measure(self, metrics: Mapping[str, float], *, other_data: str = "") -> dict[str, Any]:
        """Measures the claim.

        Args:
          metrics: The run's results; without the claim's metrics only on other data.
          other_data: Name of the run's data where the threshold was set on other data.

        Returns:
          The claim's fields with `value`, `null_value` (None where the null is another run),
          `holds` (False of NaN, None where the claim is not judged; the value is None there if it
          was not measured) and `note`, why it is not.
        """
        judged = self.any_data or not other_data
        value, null = (
            float(metrics[name]) if name and (judged or name in metrics) else None
            for name in (self.metric, self.null)
        )
        return {
            **asdict(self),
            "value": value,
            "null_value": null,
            "holds": self.meets(value) if judged and value is not None else None,
            "note": "" if judged else f"not judged on {other_data}",
        }


def measure_claims(
    claims: Iterable[Claim], metrics: Mapping[str, float], *, other_data: str = ""
) -> list[dict[str, Any]]:
    """Measures every claim and returns it with its value, see `Claim.measure`."""
    return [claim.measure(metrics, other_data=other_data) for claim in claims]


def over_runs(
    values: Sequence[float] | np.ndarray, ends: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """Computes the mean over runs and its 95% interval, widened by the runs' own intervals.

    Runs share their test examples, whose chance Student's interval over runs does not see. The two
    errors are independent, so that the distances of either interval's end from the mean are joined
    as the root of the sum of their squares; the distance of the runs' own ends is their mean's.

    Args:
      values: Finite values, one a run.
      ends: Each run's own interval, where it has one, else empty.

    Returns:
      The mean and the interval's ends, which are NaN of one run without an interval of its own.
    """
    mean, low, high = (float(part) for part in t_interval(np.asarray(values, np.float64)))
    if not len(ends):
        return mean, low, high
    own_low, own_high = (float(end) for end in np.asarray(ends, np.float64).mean(0))
    if len(values) == 1:
        return mean, own_low, own_high
    below, above = max(0.0, mean - own_low), max(0.0, own_high - mean)
    return mean, mean - math.hypot(mean - low, below), mean + math.hypot(high - mean, above)


def judge(
    claim: Claim,
    values: Sequence[float],
    *,
    ends: Sequence[Sequence[float]] = (),
    nulls: Sequence[float] = (),
    null_ends: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """Gives a claim its mean over seeds, the 95% interval of the mean, and a verdict.

    A claim "holds" if its whole interval meets the threshold, is "not reproduced" if the whole
    interval misses it, and is "undecided" otherwise. The interval has two sides: of values that
    vary normally, that a claim holds is wrong with a chance of 2.5% at most, as is that it is not
    reproduced; of skewed ones see `rml.ops.intervals.t_interval`. One value without an interval of
    its own has none, and its verdict says so.

    The null is judged by the same rule. A claim that passes and whose null passes too is "vacuous";
    a null whose interval holds the threshold inside does not pass.

    A value that is not finite leaves the claim undecided, for a reason that `note` gives.

    Args:
      claim: A claim.
      values: Values of the claim's metric, one a seed.
      ends: Each run's own interval, where it has one. Of one seed it is the interval; of several
        these and Student's interval over seeds are joined, see `over_runs`, so that the claim has
        to hold over both.
      nulls: Values of its null, one a seed; none where they were not measured.
      null_ends: The null's own intervals likewise.

    Returns:
      The claim's fields with `mean`, `low`, `high` (None where there is none), the same of the null
      (`null_mean`, `null_low`, `null_high`) with its `null_values`, `verdict`, one of `VERDICTS`,
      and `note`, empty where there is nothing to say.

    Raises:
      ValueError: If there are no values.
    """
    if not len(values):
        raise ValueError(f"claim on {claim.metric!r} needs at least one value, got none")
    own = _judge(claim, claim.metric, values, ends)
    null: dict[str, Any] = {"mean": None, "low": None, "high": None, "verdict": "", "note": ""}
    if len(nulls):
        null = _judge(claim, f"null ({claim.null or claim.null_run})", nulls, null_ends)
    verdict = own["verdict"]
    if verdict in PASSES and null["verdict"] in PASSES:
        verdict = "vacuous"
    stated = asdict(claim)
    del stated["any_data"]  # its own data were measured
    return {
        **stated,
        **{name: own[name] for name in ("mean", "low", "high")},
        **{f"null_{name}": null[name] for name in ("mean", "low", "high")},
        "null_values": [float(value) if np.isfinite(value) else None for value in nulls],
        "verdict": verdict,
        "note": "; ".join(filter(None, [own["note"], null["note"]])),
    }


def _judge(
    claim: Claim, name: str, values: Sequence[float], ends: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Mean, interval and verdict of values against a claim's threshold."""
    given, found = np.asarray(values, np.float64), {"mean": None, "low": None, "high": None}
    if broken := int((~np.isfinite(given)).sum()):
        what = f"{name} is not finite in {broken} of {len(given)} runs"
        return {**found, "verdict": "undecided", "note": what}
    if not np.isfinite(ends).all():
        what = f"the interval of {name} is not finite"
        return {**found, "verdict": "undecided", "note": what}
    mean, low, high = over_runs(given, ends)
    if np.isnan(low):
        verdict = "one run: met" if claim.meets(mean) else "one run: missed"
        return {**found, "mean": mean, "verdict": verdict, "note": ""}
    met = {claim.meets(low), claim.meets(high)}
    verdict = "undecided" if len(met) > 1 else "holds" if True in met else "not reproduced"
    return {"mean": mean, "low": low, "high": high, "verdict": verdict, "note": ""}
