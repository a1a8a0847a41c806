"""Fine-tuning of parents and of what was fused of them, for the same steps at the same rates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.common.comparison import for_each
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from experiments.common.selection import at_edge
from experiments.merging.multilevel_training import on_host, started
from experiments.merging.ot_models import Sources, flops, of_size, paired, right, task
from experiments.merging.ot_pairs import Pair, Searched, blended, differences, families, search
from rml.training import Progress, RunDirectory, read_metrics

EVALUATIONS = 6
"""Evaluations of a fine-tuning on validation images."""


class Tuned(NamedTuple):
    """One start after fine-tuning at the rate that validation chose.

    Attributes:
      params: Parameters.
      rate: The learning rate.
      steps: Steps at which it was evaluated, [k].
      course: Validation accuracy there, [k].
    """

    params: Any
    rate: float
    steps: np.ndarray
    course: np.ndarray


def after_tuning(
    config: Any, run: RunDirectory, sources: Sources, pair: Pair, wide: Any, soft: Searched
) -> tuple[dict[str, Tuned], dict[str, float]]:
    """Fine-tuned parents and fusions, and what the claims on them compare."""
    wider = paired(config, wide, pair.anchor, sources, "wide")
    score = {
        part: lambda params, part=part: right(config, params, getattr(sources, part))
        for part in ("validation", "test")
    }
    narrowed = search(wider, families(config.alignment.regs)["soft"], score["validation"])
    starts = {
        "parent 0": pair.first, "parent 1": pair.anchor,
        "vanilla": blended(pair.first, pair.anchor, 0.5), "soft": soft.params,
        "exchanged": pair.exchanged(config.seed).fuse(**soft.options),
        "wide": narrowed.params,
        "wide exchanged": wider.exchanged(config.seed).fuse(**narrowed.options),
    }  # fmt: skip
    tuned = fine_tuned(config, run, sources, starts)
    found = {name: score["test"](own.params) for name, own in tuned.items()}
    better = max(("parent 0", "parent 1"), key=lambda name: tuned[name].course[-1])
    metrics = differences(found, {
        "tuned_over_parents": ("soft", better), "vanilla_tuned_over_parents": ("vanilla", better),
        "wide_tuned_over_narrow": ("wide", "parent 1"),
        "wide_exchanged_tuned_over_narrow": ("wide exchanged", "parent 1"),
    })  # fmt: skip
    for name, own in found.items():
        place = name.replace(" ", "_")
        metrics[f"tuned_{place}"] = float(own.mean())
        metrics[f"tuned_rate_{place}"] = tuned[name].rate
        metrics[f"rate_at_edge_{place}"] = at_edge(tuned[name].rate, config.tuning.rates)
        Progress().note(f"{name}, fine-tuned: {100 * own.mean():.1f}% of test images")
    metrics["flops_narrow_over_wide"] = flops(config, pair.anchor) / flops(
        of_size(config, "wide"), wide
    )
    metrics["one_shot_wide"] = float(score["test"](narrowed.params).mean())
    metrics["accuracy_wide"] = float(right(of_size(config, "wide"), wide, sources.test).mean())
    for name, other in (("soft", "exchanged"), ("vanilla", "exchanged"), ("soft", "vanilla")):
        metrics[f"steps_{name}_over_{other}"] = reached(tuned[name], tuned[other].course[-1])
    return tuned, metrics


def fine_tuned(
    config: Any, run: RunDirectory, sources: Sources, starts: Mapping[str, Any]
) -> dict[str, Tuned]:
    """Fine-tunes every start with every learning rate, all on the same batches, as one program."""
    options = config.tuning
    pairs = [(name, rate) for name in starts for rate in options.rates]
    every = max(1, options.steps // EVALUATIONS)
    configs = [
        replaced(config, {
            "seed": 2 * config.seed + 1000, "optimizer.learning_rate": rate,
            "optimizer.warmup_steps": options.warmup_steps, "train.steps": options.steps,
            "train.eval_every": every, "train.checkpoint_every": options.steps,
            "train.log_every": every,
        })
        for _, rate in pairs
    ]  # fmt: skip
    together = started(
        many(lambda own: task(own, sources), configs), [starts[name] for name, _ in pairs]
    )

    def measure(_: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        state = on_one_device(train(configs[0], inner, together, "eval/accuracy"))
        lines = read_metrics(inner.path / "metrics.jsonl")
        shown = [line for line in lines if "eval/accuracy" in line]
        steps = np.array([line["step"] for line in shown], float)
        table = [
            np.array([line[f"eval/accuracy/{i}"] for line in shown]) for i in range(len(pairs))
        ]
        params = [on_host(unstack(state, i).params) for i in range(len(pairs))]
        return {"accuracy": float(np.mean([own[-1] for own in table]))}, (steps, table, params)

    steps, table, params = for_each(run, ["tuned"], measure)["tuned"][1]
    found: dict[str, Tuned] = {}
    for name in starts:
        own = [i for i, (other, _) in enumerate(pairs) if other == name]
        best = max(own, key=lambda i: table[i][-1])
        found[name] = Tuned(params[best], pairs[best][1], steps, table[best])
    return found


def reached(tuned: Tuned, goal: float) -> float:
    """The share of steps at which a validation accuracy is first seen; 1 where it never is."""
    found = np.flatnonzero(tuned.course >= goal)
    return float(tuned.steps[found[0]] / tuned.steps[-1]) if len(found) else 1.0
