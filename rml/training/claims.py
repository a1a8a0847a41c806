"""Claims: statements of a paper, the metric that each reads, and its verdict over seeds."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from rml.ops.intervals import t_interval

RELATIONS = {">=": operator.ge, "<=": operator.le}
VERDICTS = ("holds", "not reproduced", "undecided", "one run: met", "one run: missed")


@dataclass(frozen=True)
class Claim:
    """A statement that a run can confirm or not reproduce.

    Attributes:
      statement: What is claimed, in one sentence, with its margin.
      metric: Name of the metric in the run's results.
      relation: ">=" or "<=", between the measured value and `threshold`.
      threshold: Margin, in the metric's unit.
      source: Paper with table, figure or section.
    """

    statement: str
    metric: str
    relation: str
    threshold: float
    source: str

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> "Claim":
        """The claim that `measure` measured, without its value."""
        return cls(**{field.name: measured[field.name] for field in fields(cls)})

    def meets(self, value: float) -> bool:
        """Whether a value meets the threshold; NaN never does."""
        return bool(RELATIONS[self.relation](value, self.threshold))

    def measure(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The claim with its measured value and whether it holds; NaN never holds."""
        value = float(metrics[self.metric])
        return {**asdict(self), "value": value, "holds": self.meets(value)}


def measure_claims(claims: Iterable[Claim], metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every claim with its measured value."""
    return [claim.measure(metrics) for claim in claims]


def judge(claim: Claim, values: Sequence[float]) -> dict[str, Any]:
    """The claim with its mean over seeds, the 95% interval of the mean, and a verdict.

    A claim "holds" if its whole interval meets the threshold, is "not reproduced" if the whole
    interval misses it, and is "undecided" otherwise. One value has no interval, and its verdict
    says so. A value that is not finite leaves the claim undecided, for a reason that `note` gives.

    Args:
      claim: A claim.
      values: Values of the claim's metric, one a seed.

    Returns:
      The claim's fields with `mean`, `low`, `high` (None where there is none), `verdict`, one of
      `VERDICTS`, and `note`, empty where there is nothing to say.

    Raises:
      ValueError: If there are no values.
    """
    if not len(values):
        raise ValueError(f"claim on {claim.metric!r} needs at least one value, got none")
    given = np.asarray(values, np.float64)
    mean, low, high, note = None, None, None, ""
    broken = int((~np.isfinite(given)).sum())
    if broken:
        verdict = "undecided"
        note = f"{claim.metric} is not finite in {broken} of {len(given)} runs"
    elif len(given) == 1:
        mean = float(given[0])
        verdict = "one run: met" if claim.meets(mean) else "one run: missed"
    else:
        mean, low, high = (float(part) for part in t_interval(given))
        met = {claim.meets(low), claim.meets(high)}
        verdict = "undecided" if len(met) > 1 else "holds" if True in met else "not reproduced"
    return {
        **asdict(claim), "mean": mean, "low": low, "high": high, "verdict": verdict, "note": note,
    }  # fmt: skip
