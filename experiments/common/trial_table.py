"""The words of a trial: metrics, arms, questions, conditions, and the trial that holds them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from rml.errors import unknown
from rml.training import RunDirectory

METHOD, BASELINE, PART, NULL, REFERENCE = (
    "method", "baseline", "part left out", "null", "reference",
)  # fmt: skip
"""Roles of arms. A reference, such as an oracle, is neither claimed nor beaten."""


class Metric(NamedTuple):
    """What is scored.

    Attributes:
      says: Name as a reader knows it, such as "nDCG@10".
      unit: What one score belongs to, in the singular.
      better: "larger" or "smaller".
      shared: Whether all seeds are judged on the same units; if not, seeds alone are what varies.
      overlap: Test over training examples of random splits of one data set, see `t_interval`; only
        where units are not shared.
    """

    says: str
    unit: str = "test example"
    better: str = "larger"
    shared: bool = True
    overlap: float = 0.0


class Arm(NamedTuple):
    """One side of a comparison.

    Attributes:
      says: Name as a reader knows it.
      role: One of `METHOD`, `BASELINE`, `PART`, `NULL` and `REFERENCE`.
      changes: Values of dotted keys of the config.
      tries: Values of further keys, of whose products validation data choose one; every arm that is
        tuned has equally many.
      family: Name of the curve of which this arm is a point, where the trial has one.
    """

    says: str
    role: str
    changes: Mapping[str, Any] = {}
    tries: Mapping[str, Sequence[Any]] = {}
    family: str = ""


class Question(NamedTuple):
    """What the trial decides: how far an arm is above the strongest of others.

    Attributes:
      says: The finding as a reader would say it, see `Claim.says`; `{over}` is the strongest other.
      method: The arm.
      null: The arm that takes the method's place where its idea is absent.
      over: The others, of which validation data name the strongest; none where the arm's own value
        is held against a number of the paper.
      margin: Margin in the metric's unit: 0, or a number that the paper has.
      metric: Name of the metric, the trial's first if empty.
      ratio: Whether means are divided instead of subtracted; the margin is then a ratio.
      statistic: `statistic(values, arm) -> [seeds]` in the place of a mean, such as an exponent
        fitted to several arms; `values` is `[seeds, units]` by arm. Its interval is over seeds.
      source: Where the paper says so, the trial's source if empty.
      stated: Date of the margin, the trial's if empty.
    """

    says: str
    method: str
    null: str
    over: tuple[str, ...] = ()
    margin: float = 0.0
    metric: str = ""
    ratio: bool = False
    statistic: Callable[[Mapping[str, np.ndarray], str], np.ndarray] | None = None
    source: str = ""
    stated: str = ""


class Go(NamedTuple):
    """A condition without which the trial cannot show what it asks, by validation means of arms.

    Attributes:
      says: The condition in words, such as "arithmetic wins back 40% of the experts' gain".
      least: The least value with which the trial goes on.
      value: `value(means) -> float`, of the first metric's mean by arm.
    """

    says: str
    least: float
    value: Callable[[Mapping[str, float]], float]


class Curve(NamedTuple):
    """Arms along a budget, drawn as a line a family.

    Attributes:
      key: Dotted key of the config whose value is the horizontal place of an arm.
      says: Label of that axis, with its unit.
    """

    key: str
    says: str


class Found(NamedTuple):
    """All that a trial measured, for a recipe's own picture and for derived numbers.

    Attributes:
      values: The scores of each seed by part ("validation", "test"), metric and arm.
      rows: The table of arms.
      config: The run's config.
      bed: What the trial's `bed` gave.
    """

    values: Mapping[str, Mapping[str, Mapping[str, Sequence[np.ndarray]]]]
    rows: Sequence[Mapping[str, Any]]
    config: Any
    bed: Any


@dataclass(frozen=True)
class Trial:
    """What a recipe says.

    Attributes:
      metrics: What is scored, by name; options are chosen by the first.
      arms: The sides, by name, in the order of the table.
      score: `score(config, bed, state, part)` of a run: scores `[units]` by metric, or of a single
        metric the scores themselves. The part is "validation" or "test".
      headline: The question that the paper's title asks.
      source: The paper, for the claims.
      stated: Date of the margins.
      fit: `fit(config, bed)` of a run: a `Task`, which is trained, or any other pytree, which is
        its state as it was computed; None where a run has no state.
      computed: Whether `fit` computes all states itself, so that there is no step to time.
      bed: `bed(config, run)`: what all runs share, such as teachers or data that is prepared once.
      questions: Further questions by name, three at most.
      go: Conditions that are measured before seeds are spent.
      clusters: `clusters(config, bed, part)`: the cluster of each unit where units are dependent.
      costs: `costs(config, bed, state)` of a run: what it costs beside its training, by name, such
        as bytes that are kept or tokens that are read; the table has the first seed's.
      groups: `groups(config, bed, part)`: the name of each unit's group, such as its task, for a
        matrix of arms and groups.
      apart: Dotted keys whose values make other programs though they are floats.
      curve: How arms lie along a budget.
      check: `check(config)`: raises `UserError` where the config asks for what cannot be, before
        any work.
      picture: `picture(run, found)`: draws what is this method's own, see `captions`.
      captions: A caption for each figure that `picture` draws.
    """

    metrics: Mapping[str, Metric]
    arms: Mapping[str, Arm]
    score: Callable[[Any, Any, Any, str], Any]
    headline: Question
    source: str
    stated: str
    fit: Callable[[Any, Any], Any] | None = None
    computed: bool = False
    bed: Callable[[Any, RunDirectory], Any] | None = None
    questions: Mapping[str, Question] = field(default_factory=dict)
    go: Sequence[Go] = ()
    clusters: Callable[[Any, Any, str], Any] | None = None
    costs: Callable[[Any, Any, Any], Mapping[str, float]] | None = None
    groups: Callable[[Any, Any, str], Any] | None = None
    apart: tuple[str, ...] = ()
    curve: Curve | None = None
    check: Callable[[Any], None] | None = None
    picture: Callable[[RunDirectory, Found], None] | None = None
    captions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `ValueError` where the table and the questions do not fit together."""
        if len(self.questions) > 3:
            raise ValueError(f"a trial has {len(self.questions)} questions, expected at most 3")
        counts = {name: len(tries_of(arm)) for name, arm in self.arms.items() if arm.tries}
        if len(set(counts.values())) > 1:
            raise ValueError(f"tries are {counts}, expected equally many of each tuned arm")
        for name, own in self.asked.items():
            for arm in (own.method, own.null, *own.over):
                if arm not in self.arms:
                    raise ValueError(f"{name}: {unknown('arm', arm, self.arms)}")
            if own.metric and own.metric not in self.metrics:
                raise ValueError(f"{name}: {unknown('metric', own.metric, self.metrics)}")

    @property
    def asked(self) -> dict[str, Question]:
        """The headline and the questions, by name."""
        return {"headline": self.headline, **self.questions}

    def metric_of(self, asked: Question) -> str:
        """The name of the metric that a question is about."""
        return asked.metric or next(iter(self.metrics))


def tries_of(arm: Arm) -> list[dict[str, Any]]:
    """The tries of an arm, values by dotted key; one empty try where it is not tuned."""
    return [dict(zip(arm.tries, own, strict=True)) for own in product(*arm.tries.values())]
