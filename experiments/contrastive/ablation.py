"""The papers' own choices one at a time: temperature, batch, projector, queue, momentum, crops.

Every variant is a run of the recipe `recipe` but for what `config.variants` names, with the same
`seeds` seeds, so that differences are paired. Variants that differ in `TOGETHER` alone, and all
seeds of each, train as one program, see `experiments.common.many`.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.comparison import for_each
from experiments.common.encoders import build_encoder
from experiments.common.evaluators import ImageEvaluator
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from experiments.common.variants import BASE, variant
from experiments.ranges import Range
from experiments.registry import find_experiment
from rml.nested import flatten
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory, Task, initial_state

SOURCE = "SimCLR (arXiv:2002.05709), Sections 3 to 5; data, sizes and margins are this repository's"
CLAIMS = (
    Claim("A hidden layer in the projector is worth half a point of a linear probe",
          "linear_probe_over_linear_head", ">=", 0.005, SOURCE, stated="2026-11-26",
          null="linear_probe_untrained_over_linear_head"),
    Claim("Without warps of the image neighbours lose 3 points",
          "knn_over_erased_only", ">=", 0.03, SOURCE, stated="2026-11-26",
          null="knn_untrained_over_erased_only"),
    Claim("The temperature matters: neighbours lose 1 point at a temperature of 1",
          "knn_over_temperature_1", ">=", 0.01, SOURCE, stated="2026-11-26",
          null="knn_untrained_over_temperature_1"),
)  # fmt: skip
RANGES = {"seeds": Range(2, whole=True), "train.batch_size": Range(2, whole=True)}
CAPTIONS = {
    "accuracies.png": "Test accuracy of neighbours and of a linear probe by variant, mean over "
    "seeds and 95% interval.",
}
PICTURE = "accuracies.png"
KINDS = {"kNN": "knn", "probe": "linear_probe"}
TOGETHER = (
    "loss.temperature", "loss.sigma", "loss.redundancy", "loss.variance", "momentum.start",
)  # fmt: skip
"""Numbers that a program takes as arrays."""
UNTRAINED = "untrained"


def programs(configs: Mapping[str, Any]) -> list[list[str]]:
    """Names of variants, those that one program trains in one list."""
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        rest = {k: v for k, v in flatten(config.to_dict()).items() if k not in TOGETHER}
        groups.setdefault(repr(sorted(rest.items())), []).append(name)
    return list(groups.values())


def joined(recipe: ModuleType, configs: Sequence[Any], seeds: Sequence[int]) -> Task:
    """The task of all seeds of each config, config by config."""
    return many(
        recipe.task, [replaced(config, {"seed": seed}) for config in configs for seed in seeds]
    )


def seeds_of(config: Any) -> range:
    """The seeds of a run, which no run of another `seed` has."""
    return range(config.seed * config.seeds, (config.seed + 1) * config.seeds)


def task(config: Any) -> Task:
    """The training problem of the base with all seeds."""
    return joined(find_experiment(config.recipe), [variant(config, BASE)], seeds_of(config))


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains every variant with every seed, compares each with the base, draws."""
    recipe = find_experiment(config.recipe)
    configs = {name: variant(config, name) for name in (BASE, *config.variants)}
    seeds = seeds_of(config)
    groups = {f"program_{i}": names for i, names in enumerate(programs(configs))}
    found: dict[str, dict[str, np.ndarray]] = {}

    def judge(evaluator: ImageEvaluator, state: Any, first: int) -> dict[str, np.ndarray]:
        rows = []
        for i, seed in enumerate(seeds):
            evaluator.seed = seed
            features = evaluator.features(unstack(state, first + i).variables)
            rows.append({"knn": evaluator.knn(features), "linear_probe": evaluator.probe(features)})
        return {kind: np.array([row[kind] for row in rows]) for kind in KINDS.values()}

    def measure(group: str, inner: RunDirectory) -> tuple[dict[str, float], None]:
        names = groups[group]
        own = configs[names[0]]
        together = joined(recipe, [configs[name] for name in names], seeds)
        evaluator = ImageEvaluator(build_encoder(own), own)
        evaluator.check()
        state = on_one_device(train(own, inner, together))
        for i, name in enumerate(names):
            found[name] = judge(evaluator, state, i * len(seeds))
        if BASE in names:
            start = on_one_device(initial_state(together, seed=0))
            found[UNTRAINED] = judge(evaluator, start, names.index(BASE) * len(seeds))
        means = {f"{k}_{n}": float(found[n][k].mean()) for n in names for k in KINDS.values()}
        Progress().note(", ".join(f"{name} {value:.4f}" for name, value in means.items()))
        return means, None

    for_each(run, groups, measure)
    metrics = compare(found)
    order = {name: t_interval(np.stack(list(found[name].values()))) for name in configs}
    figures.bars(
        run.figure("accuracies.png"), [name.replace("_", " ") for name in order],
        {shown: [own.mean[i] for own in order.values()] for i, shown in enumerate(KINDS)},
        {shown: [own.high[i] - own.mean[i] for own in order.values()]
         for i, shown in enumerate(KINDS)},
        ylabel="test accuracy",
    )  # fmt: skip
    return metrics


def compare(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Means of all variants, and what the base and the untrained encoder have over each."""
    metrics = {
        f"{k}_{name}": float(v.mean()) for name, own in found.items() for k, v in own.items()
    }
    for name, own in found.items():
        for kind in KINDS.values() if name != BASE else ():
            for prefix, ours in ((kind, BASE), (f"{kind}_untrained", UNTRAINED)):
                interval = t_interval(found[ours][kind] - own[kind])
                metrics |= with_bounds(f"{prefix}_over_{name}", interval)
    return metrics
