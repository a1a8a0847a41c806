"""Claims: statements of a paper, the metric that each reads, and its verdict over seeds."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
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
      any_data: Whether the threshold holds on any data, as a theorem's does.
    """

    statement: str
    metric: str
    relation: str
    threshold: float
    source: str
    any_data: bool = field(default=False, compare=False)  # results of before do not have it

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> "Claim":
        """The claim that `measure` measured, without its value."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: measured[name] for name in names if name in measured})

    def meets(self, value: float) -> bool:
        """Whether a value meets the threshold; NaN never does."""
        return bool(RELATIONS[self.relation](value, self.threshold))

    def measure(self, metrics: Mapping[str, float], *, other_data: str = "") -> dict[str, Any]:
        """Measures the claim.

        Args:
          metrics: The run's results; without the claim's metric only on other data.
          other_data: Name of the run's data where the threshold was set on other data.

        Returns:
          The claim's fields with `value`, `holds` (False of NaN, None where the claim is not
          judged; the value is None there if it was not measured) and `note`, why it is not.
        """
        if other_data and not self.any_data:
            value, note = metrics.get(self.metric), f"not judged on {other_data}"
            measured = None if value is None else float(value)
            return {**asdict(self), "value": measured, "holds": None, "note": note}
        value = float(metrics[self.metric])
        return {**asdict(self), "value": value, "holds": self.meets(value), "note": ""}


def measure_claims(
    claims: Iterable[Claim], metrics: Mapping[str, float], *, other_data: str = ""
) -> list[dict[str, Any]]:
    """Every claim with its measured value, see `Claim.measure`."""
    return [claim.measure(metrics, other_data=other_data) for claim in claims]


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
    stated = asdict(claim)
    del stated["any_data"]  # its own data were measured
    return {
        **stated, "mean": mean, "low": low, "high": high, "verdict": verdict, "note": note,
    }  # fmt: skip
