"""Claims: statements of a paper with the metric that they read and when they hold."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

RELATIONS = {">=": operator.ge, "<=": operator.le}


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

    def measure(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The claim with its measured value and whether it holds; NaN never holds."""
        value = float(metrics[self.metric])
        holds = bool(RELATIONS[self.relation](value, self.threshold))
        return {**asdict(self), "value": value, "holds": holds}


def measure_claims(claims: Iterable[Claim], metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every claim with its measured value."""
    return [claim.measure(metrics) for claim in claims]
