"""The engine that compares arms: a recipe says what is compared, all the rest happens here.

A recipe is a table of arms with two functions. `fit(config, bed)` is the training problem of one
run (or what it computes where nothing is trained), `score(config, bed, state, part)` a value per
unit, such as a test image or a query. It never sees seeds, tries, pairing, files, progress or
verdicts:

    TRIAL = Trial(
        metrics={"accuracy": Metric("test accuracy", unit="image")},
        arms={
            "plain": Arm("no mixing", BASELINE, {"mix.mode": "none"}, RATES),
            "mixed": Arm("mixed examples", METHOD, {"mix.mode": "all"}, RATES),
            "hard": Arm("mixed, hard labels", NULL, {"mix.targets": "hard"}, RATES),
        },
        fit=fit, score=score,
        headline=Question("Mixed examples change accuracy by {mean:+.1p} points over {over}",
                          "mixed", over=("plain",), null="hard"),
        source="arXiv:2106.04990", stated="2026-12-04",
    )
    run, CLAIMS, CAPTIONS = recipe(TRIAL)

The engine runs in this order, each piece kept in the run directory so that a stopped trial goes on:

1. It builds the bed, times a step of each shape and says what the trial will cost. With a budget
   it cuts seeds, then tries, never an arm.
2. It tunes: every try of every arm on `config.tuning_seeds` seeds of validation data; where the
   best value is the last one tried, every arm gets one more try beyond its own.
3. It asks the go/no-go questions of the tuned arms on validation data; a no-go ends the trial.
4. It measures every arm with its chosen options on `config.seeds` seeds, of test and validation.
5. It answers: validation data name the strongest baseline of a question, the difference is paired
   over seeds and units, its interval is over both together, the null takes the method's place.

Runs whose configs differ in floats and seeds alone are one program (`experiments.common.many`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from experiments.common import trial_answers, trial_figures
from experiments.common.trial_programs import Work
from experiments.common.trial_table import (
    BASELINE,
    METHOD,
    NULL,
    PART,
    REFERENCE,
    Arm,
    Curve,
    Found,
    Go,
    Metric,
    Question,
    Trial,
    tries_of,
)
from experiments.registry import config_keys
from rml.errors import UserError, unknown
from rml.training import Claim, Progress, RunDirectory
from rml.training.durable import write_json
from rml.training.processes import is_primary

__all__ = [
    "BASELINE", "METHOD", "NULL", "PART", "REFERENCE", "Arm", "Curve", "Found", "Go", "Metric",
    "Question", "Trial", "recipe", "run_trial",
]  # fmt: skip
LEAST_SEEDS, EXTENSIONS, PILOT_SEEDS = 5, 2, 2
"""Seeds that a budget leaves; how often tries are added beyond an edge; seeds of a pilot."""


def recipe(
    trial: Trial,
) -> tuple[Callable[..., dict[str, float]], tuple[Claim, ...], dict[str, str]]:
    """What a recipe's module exports of its trial: `run`, `CLAIMS` and `CAPTIONS`."""
    captions = trial_figures.CAPTIONS | dict(trial.captions)
    return partial(run_trial, trial), trial_answers.claims(trial), captions


def run_trial(
    trial: Trial,
    config: Any,
    run: RunDirectory,
    *,
    pilot: bool = False,
    budget: float | None = None,
) -> dict[str, float]:
    """Conducts a trial in its run directory.

    Args:
      trial: What is compared.
      config: The run's config, with `seeds` and `tuning_seeds`; a run's seed i is
        `config.seed * config.seeds + i`. `arms` names the arms, all where it is empty or absent.
      run: Its directory.
      pilot: Whether two seeds are judged on validation data alone and the trial ends there: what is
        printed is the smallest effect that the full trial would decide.
      budget: Seconds that the trial may take.

    Returns:
      Metrics: `<metric>_<arm>`, its differences `<metric>_<arm>_over_<other>`, tries, chosen
      options and costs of every arm, and of every question its effect, null and the smallest
      effect that the trial decides.

    Raises:
      UserError: The config lacks a key that an arm changes, an arm is unknown, a budget is too
        small for `LEAST_SEEDS` seeds, or a margin is below what the trial can decide.
    """
    arms = chosen_arms(trial, config)
    if trial.check is not None:
        trial.check(config)
    bed = None
    if trial.bed is not None:
        inner = run.of_method("bed")
        bed = trial.bed(config, inner)
        inner.close()
    work = Work(trial, run, config, bed)
    tries = {name: tries_of(arm) for name, arm in arms.items()}
    seeds = [config.seed * config.seeds + i for i in range(PILOT_SEEDS if pilot else config.seeds)]
    work.gauge(arms, tries)
    if budget is not None and not pilot:
        seeds, tries = work.within(budget, seeds, tries, least=LEAST_SEEDS)
    work.tell(seeds, tries)
    tuning = seeds[: config.tuning_seeds]
    chosen = tuned(work, arms, tries, tuning)
    if stopped := no_go(trial, work, arms, tries, chosen, tuning or seeds[:1]):
        if is_primary() and not pilot:
            write_json(run.path / trial_answers.ARMS, {"table": [], "over": {}, "no_go": stopped})
        return {} if pilot else trial_answers.nothing(trial, work.metrics())
    final = [work.job(name, tries[name][chosen[name]], seed) for name in arms for seed in seeds]
    parts = ("validation",) if pilot else ("validation", "test")
    found = work.scores("pilot" if pilot else "measured", final, parts)
    values = trial_answers.by_arm(arms, final, found)
    answers = trial_answers.answer_all(trial, values, parts[-1], config, bed)
    if pilot:
        planned = config.seeds, config.get("test_units", 0)
        for line in trial_answers.power_lines(trial, values[parts[-1]], answers, *planned):
            Progress().note(line)
        return {}
    rows = trial_answers.table(trial, arms, values, tries, chosen, work.costs, config, bed)
    if is_primary():
        strongest = {name: own["over"] for name, own in answers.items() if own["over"]}
        says = {name: trial.arms[arm].says for name, arm in strongest.items()}
        kept = {"metric": next(iter(trial.metrics)), "table": rows, "over": says}
        write_json(run.path / trial_answers.ARMS, kept)
    found_all = Found(values, rows, config, bed)
    trial_figures.draw(trial, run, rows, found_all)
    if trial.picture is not None:
        trial.picture(run, found_all)
    return work.metrics() | trial_answers.metrics(trial, rows, values, answers, config, bed)


def chosen_arms(trial: Trial, config: Any) -> dict[str, Arm]:
    """The arms that a config names, all where it names none, once their keys are known to exist.

    Raises:
      UserError: There is no such arm, or a key that an arm changes is not in the config.
    """
    for key in ("seeds", "tuning_seeds"):
        if key not in config:
            raise UserError(f"the config has no {key}, expected a number of seeds")
    if not 0 <= config.tuning_seeds <= config.seeds:
        raise UserError(
            f"tuning_seeds is {config.tuning_seeds}, expected 0 to seeds, which is {config.seeds}"
        )
    named = tuple(config.get("arms") or trial.arms)
    for name in named:
        if name not in trial.arms:
            raise unknown("arm", name, trial.arms)
    arms = {name: arm for name, arm in trial.arms.items() if name in named}
    keys = config_keys(config)
    for arm in arms.values():
        for key in (*arm.changes, *arm.tries):
            if key not in keys:
                raise unknown(f"key that the arm {arm.says!r} changes", key, keys)
    return arms


def tuned(
    work: Work,
    arms: Mapping[str, Arm],
    tries: dict[str, list[dict[str, Any]]],
    seeds: Sequence[int],
) -> dict[str, int]:
    """Chooses a try of each arm; adds one to each arm, in place, where a choice lies at an edge."""
    means: dict[str, list[float]] = {name: [] for name in arms}
    chosen = dict.fromkeys(arms, 0)
    several = [name for name in arms if len(tries[name]) > 1]
    if not seeds or not several:
        return chosen
    for turn in range(1 + EXTENSIONS):
        new = {name: tries[name][len(means[name]) :] for name in several}
        jobs = [
            work.job(name, one, seed) for name in several for one in new[name] for seed in seeds
        ]
        found = work.scores(f"tuning{turn or ''}", jobs, ("validation",))
        first = iter(found["validation"][next(iter(work.trial.metrics))])
        for name in several:
            for _ in new[name]:
                means[name].append(float(np.mean([next(first).mean() for _ in seeds])))
            sign = trial_answers.sign(next(iter(work.trial.metrics.values())))
            chosen[name] = int(np.argmax(sign * np.array(means[name])))
        if turn == EXTENSIONS or not any(
            trial_answers.edges(arms[name], tries[name], chosen[name]) for name in several
        ):
            return chosen
        beyond = {
            name: trial_answers.beyond(arms[name], tries[name], chosen[name]) for name in several
        }
        if not all(work.allowed(name, one) for name, one in beyond.items()):
            return chosen  # an option that ends there, such as a share of 1
        for name, one in beyond.items():
            tries[name].append(one)
        Progress().note("an arm chose the last value tried: each arm gets one more beyond its own")
    return chosen


def no_go(
    trial: Trial,
    work: Work,
    arms: Mapping[str, Arm],
    tries: Mapping[str, Sequence[Mapping[str, Any]]],
    chosen: Mapping[str, int],
    seeds: Sequence[int],
) -> list[str]:
    """The conditions that do not hold, in words; all are said and kept among the metrics."""
    if not trial.go:
        return []
    jobs = [work.job(name, tries[name][chosen[name]], seed) for name in arms for seed in seeds]
    found = work.scores("go", jobs, ("validation",))
    first = trial_answers.by_arm(arms, jobs, found)["validation"][next(iter(trial.metrics))]
    means = {name: float(np.mean([one.mean() for one in own])) for name, own in first.items()}
    failed = []
    for number, own in enumerate(trial.go):
        value = own.value(means)
        work.also[f"go_{number}"], work.also[f"go_{number}_least"] = value, own.least
        said = f"{own.says}: {value:.3g}, {own.least:g} needed"
        if value < own.least:
            failed.append(said)
        Progress().note(f"{'no-go' if value < own.least else 'go'}: {said}")
    return failed
