"""What a trial's scores say: paired differences, intervals, power, the table of arms, claims."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.common.claims import with_bounds
from experiments.common.trial_table import BASELINE, Arm, Metric, Question, Trial
from rml.errors import UserError
from rml.ops import CrossedInterval, crossed_interval, t_interval
from rml.training import Claim

ARMS = "arms.json"
"""File of a run directory with the table of arms and the strongest other of each question."""
POWER = 0.8
"""Chance with which the smallest effect that a trial is said to decide is decided."""
ByArm = Mapping[str, Sequence[np.ndarray]]
"""By arm, the scores `[units]` of each seed."""
Values = Mapping[str, Mapping[str, ByArm]]
"""By part and metric, the scores by arm."""
Answer = dict[str, Any]


class Effect(NamedTuple):
    """How two arms differ.

    Attributes:
      interval: The difference with its interval, or a ratio's.
      spread: Scores that vary: the difference of each seed and unit, for the power.
    """

    interval: CrossedInterval
    spread: np.ndarray


def sign(metric: Metric) -> int:
    """1 where larger values are better, -1 where smaller ones are."""
    return 1 if metric.better == "larger" else -1


def by_arm(arms: Mapping[str, Arm], jobs: Sequence[Any], found: Mapping[str, Any]) -> Values:
    """Orders the scores of jobs by part, metric and arm."""
    return {
        part: {
            metric: {
                name: [x for job, x in zip(jobs, scores, strict=True) if job.arm == name]
                for name in arms
            }
            for metric, scores in own.items()
        }
        for part, own in found.items()
    }


def edges(arm: Arm, tries: Sequence[Mapping[str, Any]], chosen: int) -> list[str]:
    """The numeric keys of an arm whose chosen value is the least or the largest tried."""
    return [
        key
        for key, values in _numeric(arm, tries).items()
        if tries[chosen][key] in (values[0], values[-1])
    ]


def beyond(arm: Arm, tries: Sequence[Mapping[str, Any]], chosen: int) -> dict[str, Any]:
    """The chosen try with a value beyond those tried, of the key that lies at its edge.

    An arm whose choice lies at no edge gets one too, on the side to which its choice is nearer, so
    that all arms have equally many; of a key without numbers the chosen try itself comes again.
    """
    numeric = _numeric(arm, tries)
    keys = edges(arm, tries, chosen) or list(numeric)
    if not keys:
        return dict(tries[chosen])
    key = keys[0]
    values = numeric[key]
    up = 2 * values.index(tries[chosen][key]) >= len(values) - 1
    last, before = (values[-1], values[-2]) if up else (values[0], values[1])
    step = last * last / before if min(values) > 0 else 2 * last - before
    return {**tries[chosen], key: round(step) if isinstance(last, int) else step}


def _numeric(arm: Arm, tries: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """By key the distinct numbers that an arm tries, rising, where they are more than two.

    Of two values each is an end, and says nothing of what lies beyond.
    """
    found = {}
    for key in arm.tries:
        values = {own[key] for own in tries}
        numbers = all(type(value) in (int, float) for value in values)
        if numbers and len(values) > 2:
            found[key] = sorted(values)
    return found


def effect(
    metric: Metric,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray] | None = None,
    *,
    ratio: bool = False,
    clusters: Any = None,
) -> Effect:
    """How far the mean of scores is above that of others, paired over seeds and units.

    Args:
      metric: The metric, which says what the seeds share.
      first: Scores of each seed.
      second: Those of the other arm; none where the scores stand for themselves.
      ratio: Whether the means are divided; its interval is by the linear part of the ratio.
      clusters: The cluster of each unit.
    """
    other = [np.zeros_like(x) for x in first] if second is None else second
    if ratio:
        above, below = (float(np.mean([x.mean() for x in own])) for own in (first, other))
        centre = above / below
        parts = [(x - centre * y) / below for x, y in zip(first, other, strict=True)]
    else:
        centre, parts = 0.0, [x - y for x, y in zip(first, other, strict=True)]
    if metric.shared:
        rows = np.stack(parts)
        found = crossed_interval(rows, clusters=clusters)
    else:
        rows = np.array([[x.mean()] for x in parts])
        own = t_interval(rows[:, 0], overlap=metric.overlap)
        spread = float(rows.std(ddof=1)) if len(rows) > 1 else 0.0
        found = CrossedInterval(float(own.mean), float(own.low), float(own.high), spread, 0.0)
    moved = (found.mean + centre, found.low + centre, found.high + centre)
    return Effect(CrossedInterval(*moved, *found[3:]), rows)


def answer_all(trial: Trial, values: Values, part: str, config: Any, bed: Any) -> dict[str, Answer]:
    """Effect, null and strongest other of every question whose arms were run."""
    clusters = None if trial.clusters is None else trial.clusters(config, bed, part)
    arms = next(iter(values[part].values()))
    found = {}
    for name, own in trial.asked.items():
        if {own.method, own.null, *own.over} <= arms.keys():
            found[name] = _answer(trial, own, values, part, clusters)
    return found


def _answer(trial: Trial, own: Question, values: Values, part: str, clusters: Any) -> Answer:
    name = trial.metric_of(own)
    metric, scores, validation = trial.metrics[name], values[part][name], values["validation"][name]
    means = {arm: np.mean([x.mean() for x in validation[arm]]) for arm in own.over}
    over = max(means, key=lambda arm: sign(metric) * means[arm]) if means else ""

    def of(arm: str) -> Effect:
        if own.statistic is not None:
            stacked = {key: np.stack(x) for key, x in scores.items()}
            found = np.asarray(own.statistic(stacked, arm), np.float64)
            return effect(metric._replace(shared=False), [np.atleast_1d(x) for x in found])
        others = scores[over] if over else None
        return effect(metric, scores[arm], others, ratio=own.ratio, clusters=clusters)

    found = of(own.method)
    seeds, units = found.spread.shape
    return {
        "over": over,
        "effect": found.interval,
        "null": of(own.null).interval,
        "decides": smallest(found.interval, found.interval.over_seeds, seeds, units, metric),
    }


def smallest(
    own: CrossedInterval, over_seeds: float, seeds: int, units: int, metric: Metric
) -> float:
    """The smallest effect that so many seeds and units decide with a chance of `POWER`."""
    if seeds < 2:
        return math.nan
    sides = float(stats.t.ppf(0.975, seeds - 1) + stats.norm.ppf(POWER))
    if not metric.shared:
        return sides * over_seeds * math.sqrt(1 / seeds + metric.overlap)
    return sides * math.sqrt(over_seeds**2 / seeds + own.over_units**2 / units)


def power_lines(
    trial: Trial, found: Mapping[str, ByArm], answers: Mapping[str, Answer], seeds: int, units: int
) -> Iterator[str]:
    """What a pilot says of each question: the smallest effect that the full trial decides.

    Args:
      trial: The trial.
      found: Scores of the pilot by metric and arm.
      answers: Its answers.
      seeds: Seeds of the full trial.
      units: Its units, as many as the pilot's where 0.

    Raises:
      UserError: A margin is below what the full trial decides.
    """
    for name, own in answers.items():
        asked = trial.asked[name]
        metric = trial.metrics[trial.metric_of(asked)]
        scores = found[trial.metric_of(asked)]
        spread = own["effect"].over_seeds if asked.statistic else _upper_spread(scores)
        count = units or len(next(iter(scores.values()))[0])
        least = smallest(own["effect"], spread, seeds, count, metric)
        yield f"{name}: decides effects from {least:.2g} on ({metric.says}, {seeds} seeds)"
        if asked.over and not asked.ratio and 0 < abs(asked.margin) < least:
            more = math.ceil(seeds * (least / abs(asked.margin)) ** 2)
            raise UserError(
                f"{name} has margin {asked.margin:g} and the trial decides effects from "
                f"{least:.2g} on; expected about {more} seeds and {more / seeds:.1f} times the "
                "units, or a margin of 0 or above it"
            )


def _upper_spread(found: ByArm) -> float:
    """Standard deviation over seeds of a difference of two arms: an upper 80% limit.

    Two seeds of one pair of arms are one degree of freedom, far too few; what all arms and seeds
    leave beside their means has more.
    """
    means = np.array([[np.mean(x) for x in own] for own in found.values()])
    rest = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
    freedom = (means.shape[0] - 1) * (means.shape[1] - 1)
    if freedom < 1:
        return math.nan
    return float(np.sqrt(2 * np.sum(rest**2) / stats.chi2.ppf(0.2, freedom)))


def table(
    trial: Trial, arms: Mapping[str, Arm], values: Values, tries: Mapping[str, Sequence[Any]],
    chosen: Mapping[str, int], costs: Mapping[str, Any], config: Any, bed: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row an arm and metric: means, the paired difference from the strongest baseline, options.

    The strongest baseline is named by validation data; an arm's own interval is as wide as splits
    differ, the difference is what tells arms apart.
    """
    clusters = None if trial.clusters is None else trial.clusters(config, bed, "test")
    rows = []
    for name, metric in trial.metrics.items():
        scores, validation = values["test"][name], values["validation"][name]
        means = {arm: float(np.mean([x.mean() for x in own])) for arm, own in validation.items()}
        rivals = [arm for arm in arms if arms[arm].role == BASELINE] or list(arms)[:1]
        best = max(rivals, key=lambda arm: sign(metric) * means[arm])
        for arm, row in arms.items():
            own = effect(metric, scores[arm], clusters=clusters).interval
            over = effect(metric, scores[arm], scores[best], clusters=clusters).interval
            rows.append({
                "name": arm, "says": row.says, "role": row.role, "metric": metric.says,
                "mean": own.mean, "low": _finite(own.low), "high": _finite(own.high),
                "over": best, "difference": over.mean,
                "difference_low": _finite(over.low), "difference_high": _finite(over.high),
                "by_seed": [float(x.mean()) for x in scores[arm]],
                "validation": means[arm], "tries": len(tries[arm]),
                "options": dict(tries[arm][chosen[arm]]),
                "at_edge": edges(row, tries[arm], chosen[arm]), **costs.get(arm, {}),
            })  # fmt: skip
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def metrics(
    trial: Trial, rows: Sequence[Mapping[str, Any]], values: Values,
    answers: Mapping[str, Answer], config: Any, bed: Any,
) -> dict[str, float]:  # fmt: skip
    """Numbers of every arm, of every pair of arms and of every question, by name."""
    clusters = None if trial.clusters is None else trial.clusters(config, bed, "test")
    found: dict[str, float] = {}
    for row in rows:
        if row["metric"] == next(iter(trial.metrics.values())).says:
            found[f"tries_{row['name']}"] = float(row["tries"])
            found[f"at_edge_{row['name']}"] = float(bool(row["at_edge"]))
            for key, value in row["options"].items():
                if isinstance(value, int | float):
                    found[f"chosen_{row['name']}_{key.rpartition('.')[2]}"] = float(value)
    for name, metric in trial.metrics.items():
        scores = values["test"][name]
        for arm, own in scores.items():
            found |= _bounds(f"{name}_{arm}", effect(metric, own, clusters=clusters).interval)
            validation = values["validation"][name][arm]
            found[f"validation_{name}_{arm}"] = float(np.mean([x.mean() for x in validation]))
        for other, arm in combinations(scores, 2):
            pair = effect(metric, scores[arm], scores[other], clusters=clusters).interval
            found |= _bounds(f"{name}_{arm}_over_{other}", pair)
        if trial.groups is not None and metric.shared:
            for group, kept in _groups(trial, config, bed):
                for arm, own in scores.items():
                    found[f"{name}_{arm}_{group}"] = float(np.mean([x[kept] for x in own]))
    for name in trial.asked:
        found |= _told(name, answers.get(name))
    return found


def _groups(trial: Trial, config: Any, bed: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The groups of test units, each with which units are its own."""
    assert trial.groups is not None
    names = np.asarray(trial.groups(config, bed, "test"))
    for group in dict.fromkeys(names.tolist()):
        yield str(group), names == group


def matrix(trial: Trial, scores: ByArm, config: Any, bed: Any) -> tuple[list[str], np.ndarray]:
    """Names of groups, and the mean of every arm in every group."""
    groups = list(_groups(trial, config, bed))
    means = [[np.mean([x[kept] for x in own]) for _, kept in groups] for own in scores.values()]
    return [name for name, _ in groups], np.array(means)


def _bounds(name: str, own: CrossedInterval) -> dict[str, float]:
    """A mean with the ends of its interval where it has one."""
    if math.isnan(own.low):
        return {name: own.mean}
    return with_bounds(name, own[:3])


def _told(name: str, own: Answer | None) -> dict[str, float]:
    """The metrics of a question; not finite where its arms were not run."""
    if own is None:
        return {name: math.nan, f"{name}_null": math.nan}
    told = _bounds(name, own["effect"]) | _bounds(f"{name}_null", own["null"])
    return told | {f"{name}_decides": own["decides"]}


def nothing(trial: Trial, found: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a trial that ended at a condition that does not hold."""
    unasked: dict[str, float] = {}
    for name in trial.asked:
        unasked |= _told(name, None)
    return {**found, **unasked}


def claims(trial: Trial) -> tuple[Claim, ...]:
    """The headline and the questions as claims on the trial's metrics."""
    found = []
    for name, own in trial.asked.items():
        metric = trial.metrics[trial.metric_of(own)]
        found.append(
            Claim(
                _statement(trial, own, metric), name, ">=" if sign(metric) > 0 else "<=",
                own.margin, own.source or trial.source, stated=own.stated or trial.stated,
                null=f"{name}_null", says=own.says,
            )
        )  # fmt: skip
    return tuple(found)


def _statement(trial: Trial, own: Question, metric: Metric) -> str:
    """What is asked, in one sentence with its margin."""
    better = "above" if sign(metric) > 0 else "below"
    method = trial.arms[own.method].says
    margin = f"{own.margin:g}"
    if not own.over:
        return f"{metric.says} of {method} is {better} {margin}"
    *first, last = (trial.arms[arm].says for arm in own.over)
    strongest = f"the strongest of {', '.join(first)} and {last}" if first else last
    if own.ratio:
        return f"{metric.says} of {method} over that of {strongest} is {better} {margin}"
    by = f" by {margin}" if own.margin else ""
    return f"{metric.says} of {method} is {better} that of {strongest}{by}"
