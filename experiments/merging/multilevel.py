"""Multilevel training: a model is trained in part at half its width and depth, at equal FLOPs.

Zou et al., A Multi-Level Framework for Accelerating Training Transformer Models, arXiv:2404.07999.
A few steps of the full model, then it is coalesced, trained small, made large again and
interpolated with what it was. Beside it: no small level (`scratch`), the small level thrown away
(α = 0), other α, the other groups, three levels, width or depth alone, and growth from a fresh
small model in both (as bert2BERT) or in depth (stacking). All arms have the FLOPs of `train.steps`
full steps, counted in products, forward and backward; changes of size are not counted. One arm
interpolates with an untrained small model; the FLOPs of the small level count all the same. An
untrained model made small is trained to the end of its small level alone. Each arm tries the same
learning rates, of which validation chooses. The code interpolates with a finished baseline
(`multilevel_pretrain.sh`), we with the model as it was coalesced. Linear CKA says whether
neighbouring layers and heads are alike. Intervals are over test examples, of CKA by leaving blocks
of them out. Sizes, schedules of three levels and margins are this repository's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.common.claims import with_bounds
from experiments.merging import multilevel_figures
from experiments.merging.multilevel_arms import ARMS, FULL, costs, seconds
from experiments.merging.multilevel_problems import Problem, Shape, of_shape, problem
from experiments.merging.multilevel_similarity import alike, jackknifed, of_training
from experiments.merging.multilevel_training import Part, Trained, trained, untrained
from experiments.ranges import Range
from rml.errors import UserError
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2404.07999; data, sizes and margins are this repository's"
CLAIMS = (
    Claim("The V-cycle reaches the last validation loss of training from scratch with 80% of its "
          "FLOPs", "flops_ratio_both", "<=", 0.8,
          f"{SOURCE}; 1 where it does not within the budget; changed after the first measurement, "
          "which took test losses", stated="2026-11-27", null="flops_ratio_alpha_0",
          says="The V-cycle reaches the loss of training from scratch with {mean:.2f} of its "
          "operations, stacking layers with {flops_ratio_stacking:.2f} (1 if never)"),
    Claim("Interpolated, it ends 0.003 nats lower than the better of both ends, α = 0 and 1",
          "interpolation_gain", ">=", 0.003,
          f"{SOURCE}; null changed after the first measurement: α = 1 is one of the ends",
          stated="2026-11-27", null="interpolation_gain_untrained",
          says="Mixing the enlarged model with the one before saves {mean:+.3f} nats over the "
          "better of the two unmixed"),
    Claim("A small model that begins coalesced after training loses 0.05 nats less than one of an "
          "untrained model after a quarter of its steps", "coalesced_over_untrained", ">=", 0.05,
          f"{SOURCE}; neither warms up; the null is a fresh one, which does, as in the paper; held "
          "against that one at first, beside which the untrained one met it too",
          stated="2026-11-28", null="fresh_over_untrained",
          says="A small model that starts from a trained large one has saved {mean:+.3f} nats over "
          "one from an untrained one at a quarter of its steps"),
    Claim("Three levels are at least as good as two",
          "gain_of_third", ">=", 0.0, f"{SOURCE}; uncertain",
          stated="2026-11-26", null="gain_of_third_alpha_0",
          says="A third, smallest level saves {mean:+.3f} nats over two ({loss_three:.2f} against "
          "{loss_both:.2f})"),
)  # fmt: skip
RANGES = {"cycle.before": Range(0, 1), "cycle.small": Range(0, 10), "cycle.alpha": Range(0, 1)}
CAPTIONS = multilevel_figures.CAPTIONS
PICTURE = "flops.png"
STAGED = True  # phases begin from those before them


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Counts FLOPs, trains all arms, compares them on test data, draws."""
    check(config)
    given = problem(config)
    flops = costs(config, given)
    found = trained(config, run, given, flops)
    best, metrics = chosen(config, given, found)
    tests = {name: given.losses(config, own.params, "test") for name, own in best.items()}
    total = flops[1, 1] * config.train.steps
    metrics |= {f"flops_{w}x{d}": value for (w, d), value in flops.items()}
    times = seconds(config, given)
    metrics |= {f"seconds_{w}x{d}": value for (w, d), value in times.items()}
    metrics |= compared(tests) | saved(best, total, times) | starts(config, found, best)
    parts = [
        given.parts(params)
        for params in (
            best["scratch"].params, untrained(config, given, FULL),
            untrained(config, given, FULL, other=True),
        )
    ]  # fmt: skip
    similar = [alike(own) for own in parts]
    metrics |= of_training(*similar) | jackknifed(parts, given.examples)
    multilevel_figures.of_similarity(run, *similar[:2])
    multilevel_figures.of_courses(run, best, total, given.unit)
    multilevel_figures.of_losses(run, tests, given.unit)
    multilevel_figures.of_starts(run, at_rate(config, found, best), given.unit)
    Progress().note(
        f"the V-cycle ends {metrics['gain_both']:.4f} nats lower than training from scratch, and "
        f"reaches its validation loss with {metrics['flops_ratio_both']:.2f} of its FLOPs and "
        f"{metrics['time_ratio_both']:.2f} of its time"
    )
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless there are rates to try and sizes that can be divided by four."""
    if config.get("seeds", 1) != 1:
        raise UserError(f"seeds is {config.seeds}, expected 1: a run trains each arm with one seed")
    if not config.cycle.rates:
        raise UserError("cycle.rates is empty, expected at least one learning rate")
    for arm in ARMS.values():
        for shape in arm.shapes:
            of_shape(config, shape)


def chosen(
    config: Any, given: Problem, found: Mapping[tuple[str, float], Trained]
) -> tuple[dict[str, Trained], dict[str, float]]:
    """The run of each arm that loses least on validation data, and what was tried."""
    best: dict[str, Trained] = {}
    metrics: dict[str, float] = {}
    for name in ARMS:
        if name == "noise":  # small to its end; held against the runs of the arm "both"
            continue
        losses = {
            rate: float(given.losses(config, found[name, rate].params, "validation").mean())
            for rate in config.cycle.rates
        }
        rate = min(losses, key=losses.__getitem__)
        best[name] = found[name, rate]
        metrics |= {f"rate_{name}": rate, f"tries_{name}": len(losses),
                    f"validation_{name}": losses[rate]}  # fmt: skip
    return best, metrics


def compared(tests: Mapping[str, Float[np.ndarray, " m"]]) -> dict[str, float]:
    """Mean test losses, and gains with their intervals over test examples."""
    metrics = {f"loss_{name}": float(own.mean()) for name, own in tests.items()}
    ends = min((tests[name] for name in ("alpha_0", "alpha_100")), key=np.mean)
    pairs = {f"gain_{name}": tests["scratch"] - own for name, own in tests.items()}
    del pairs["gain_scratch"]
    pairs |= {
        "interpolation_gain": ends - tests["both"],
        "interpolation_gain_untrained": ends - tests["untrained"],
        "gain_of_third": tests["both"] - tests["three"],
        "gain_of_third_alpha_0": tests["both"] - tests["alpha_0"],
    }
    for axis in ("depth", "width"):
        pairs[f"gain_over_{axis}"] = tests[axis] - tests["both"]
        pairs[f"gain_over_{axis}_alpha_0"] = tests[axis] - tests["alpha_0"]
    for name, values in pairs.items():
        metrics |= with_bounds(name, t_interval(values))
    return metrics


def saved(
    best: Mapping[str, Trained], total: float, times: Mapping[Shape, float]
) -> dict[str, float]:
    """Shares of the cost of training from scratch at which its last validation loss is reached.

    The cost is FLOPs (`flops_ratio`) or seconds of steps (`time_ratio`), without compiling,
    evaluating and changing sizes. Where the loss is not reached within the budget, the share of
    FLOPs is 1, and that of time is 1 or the whole arm's, whichever is more. Beside them stand the
    shares of both that whole arms take.
    """

    def taken(name: str, parts: Sequence[Part]) -> float:
        steps = [(ARMS[name].shapes[own.phase.level], own.phase.steps) for own in parts]
        return sum(times[shape] * count for shape, count in steps)

    whole, goal = taken("scratch", best["scratch"].parts), best["scratch"].parts[-1].validation[-1]
    metrics: dict[str, float] = {}
    for name, own in best.items():
        last = own.parts[-1]
        flops, all_seconds = reached(last, goal), taken(name, own.parts) / whole
        steps = (flops - last.start) / (last.flops[-1] - last.start) * last.steps[-1]
        seconds = taken(name, own.parts[:-1]) + steps * times[ARMS[name].shapes[last.phase.level]]
        within = np.isfinite(flops)
        metrics[f"flops_ratio_{name}"] = flops / total if within else 1.0
        metrics[f"time_ratio_{name}"] = seconds / whole if within else max(1.0, all_seconds)
        metrics[f"flops_share_{name}"] = last.flops[-1] / total
        metrics[f"seconds_ratio_{name}"] = all_seconds
    return metrics


def reached(part: Part, goal: float) -> float:
    """FLOPs at which a validation loss is first reached, on a line between two; else infinite."""
    flops, losses = part.flops, part.validation
    below = np.flatnonzero(losses <= goal)
    if not len(below):
        return float("inf")
    i = int(below[0])
    if i == 0:
        return float(flops[0])
    share = (losses[i - 1] - goal) / (losses[i - 1] - losses[i])
    return float(flops[i - 1] + share * (flops[i] - flops[i - 1]))


def at_rate(
    config: Any, found: Mapping[tuple[str, float], Trained], best: Mapping[str, Trained]
) -> dict[str, Trained]:
    """Runs with a small level that begins in each way, all with the rate of the V-cycle chosen."""
    rate = next(r for r in config.cycle.rates if found["both", r] is best["both"])
    return {
        "coalesced": best["both"],
        "fresh": found["growth", rate],
        "noise": found["noise", rate],
    }


def starts(
    config: Any, found: Mapping[tuple[str, float], Trained], best: Mapping[str, Trained]
) -> dict[str, float]:
    """What starts gain over an untrained one at the first evaluation of the small level.

    Intervals are over test examples.
    """
    first = {
        name: next(part for part in own.parts if part.phase.level == 1).first
        for name, own in at_rate(config, found, best).items()
    }
    metrics: dict[str, float] = {}
    for name in ("coalesced", "fresh"):
        gained = t_interval(first["noise"] - first[name])
        metrics |= with_bounds(f"{name}_over_untrained", gained)
    return metrics
