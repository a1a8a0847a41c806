"""The papers' own choices one at a time: temperature, batch, projector, queue, augmentation.

Every variant is a run of the recipe `recipe` but for what `config.variants` names, with the same
`seeds` seeds, so that differences are paired. Variants that differ in `TOGETHER` alone, and all
seeds of each, train as one program, see `experiments.common.many`. What the base is above itself
with other seeds, `<kind>_over_again`, is the null of a claim that a choice matters. The claims here
are SimCLR's; `<paper>_ablation` beside it has those of another paper.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.common.claims import with_bounds
from experiments.common.comparison import for_each
from experiments.common.encoders import OfModel, build_encoder
from experiments.common.evaluators import ImageEvaluator, encode
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import first_state, train
from experiments.common.variants import (
    AGAIN,
    BASE,
    OTHER_SEEDS,
    check_names,
    variant,
)
from experiments.contrastive.ablation_figures import KINDS, draw_accuracies
from experiments.ranges import Range, check_ranges
from experiments.registry import find_experiment
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.errors import UserError, unknown
from rml.nested import flatten
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory, Task, TrainState

SOURCE = "SimCLR (arXiv:2002.05709), Sections 3 to 5; data, sizes and margins are this repository's"
CLAIMS = (
    Claim("A hidden layer in the projector is worth accuracy of a linear probe",
          "linear_probe_over_linear_head", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_over_again",
          says="A hidden layer in the projector changes a linear probe's accuracy by {mean:+.1p} "
          "points ({linear_probe_base:.1%} against {linear_probe_linear_head:.1%})"),
    Claim("Without flips and warps of the image a linear probe loses 1 point",
          "linear_probe_over_erased_only", ">=", 0.01,
          f"{SOURCE}; worded anew after the first measurement", stated="2026-11-28",
          null="linear_probe_over_again",
          says="Flips and warps of the image change it by {mean:+.1p} points"),
    Claim("The temperature matters: a linear probe loses half a point at a temperature of 1",
          "linear_probe_over_temperature_1", ">=", 0.005, SOURCE, stated="2026-11-28",
          null="linear_probe_over_again",
          says="The lower temperature changes it by {mean:+.1p} points beside one of 1"),
)  # fmt: skip
RANGES = {"seeds": Range(2, whole=True), "train.batch_size": Range(2, whole=True)}
CAPTIONS = {
    "accuracies.png": "Test accuracy of neighbours and of a linear probe by variant, mean over "
    "seeds and 95% interval.",
}
PICTURE = "accuracies.png"
TOGETHER = (
    "loss.temperature", "loss.sigma", "loss.redundancy", "loss.variance", "loss.invariance",
    "loss.covariance", "loss.log_scale", "loss.bias", "momentum.start",
)  # fmt: skip
"""Numbers that a program takes as arrays."""
UNTRAINED = "untrained"
Judge = Callable[[Any, int], dict[str, float]]
"""From the variables and the seed of a model to what is measured of it."""


def programs(configs: Mapping[str, Any]) -> list[list[str]]:
    """Names of variants, those that one program trains in one list."""
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        values = flatten(config.to_dict())
        rest = {k: "" if k in TOGETHER else value for k, value in values.items()}
        groups.setdefault(repr(sorted(rest.items())), []).append(name)
    return list(groups.values())


def joined(recipe: ModuleType, configs: Sequence[Any], seeds: Sequence[int]) -> Task:
    """The task of all seeds of each config, config by config."""
    return many(
        recipe.task, [replaced(config, {"seed": seed}) for config in configs for seed in seeds]
    )


def seeds_of(config: Any, names: Sequence[str] = (BASE,)) -> range:
    """The seeds of a run's variants, which no run of another `seed` has; `AGAIN` has its own."""
    start = config.seed * config.seeds + OTHER_SEEDS * (AGAIN in names)
    return range(start, start + config.seeds)


def config_of(config: Any, name: str) -> ConfigDict:
    """The config of a variant, which of `AGAIN` is the base's."""
    return variant(config, BASE if name == AGAIN else name)


def groups_of(config: Any) -> dict[str, list[str]]:
    """Names of variants that are trained as one program, by the name of the program's directory."""
    configs = {name: variant(config, name) for name in (BASE, *config.variants)}
    groups = {f"program_{i}": names for i, names in enumerate(programs(configs))}
    return groups | {AGAIN: [AGAIN]}


def trained_by(config: Any) -> list[str]:
    """Names of the variants of the program that a config is of, by default the base alone."""
    if "method" not in config:
        return [BASE]
    groups = groups_of(config)
    if config.method not in groups:
        raise unknown("program of the run", config.method, groups)
    return groups[config.method]


def task(config: Any) -> Task:
    """The training problem of the program that a config is of, by default the base, all seeds."""
    names = trained_by(config)
    configs = [config_of(config, name) for name in names]
    return joined(find_experiment(config.recipe), configs, seeds_of(config, names))


def encoder(config: Any, state: TrainState, *, variant: str = "", seed: int = 0) -> ImageEmbedder:
    """The features of images that one model of a program's trained state gives.

    Args:
      config: The config of the program's directory, `methods/<program>` of the run's.
      state: The state of all models of the program.
      variant: Name of the variant, one that the program trains; its first if not given.
      seed: Number of the seed among the run's own, from 0.

    Returns:
      The encoder of the variant's recipe.

    Raises:
      UserError: The program trains no such variant, or the run has no such seed.
    """
    names = trained_by(config)
    name = variant or names[0]
    if name not in names:
        raise unknown("variant of this program", name, names)
    if seed not in range(config.seeds):
        raise UserError(f"seed is {seed}, expected 0 to {config.seeds - 1}, the number of a seed")
    one = unstack(state, names.index(name) * config.seeds + seed)
    return find_experiment(config.recipe).encoder(config_of(config, name), one)


class Projections(OfModel):
    """What the loss sees of images."""

    def __call__(self, variables: Any, images: Any) -> Any:
        """Projections of a batch of images."""
        images = augment.to_float(images)
        return self.model.apply(variables, images, train=False, method="project")


def of_images(config: Any) -> Judge:
    """Measures features by neighbours and a linear probe, and whether projections have collapsed.

    "deviation" is the standard deviation of the test images' projections, mean over dimensions.
    """
    model = build_encoder(config)
    evaluator = ImageEvaluator(model, config)
    evaluator.check()

    def judge(variables: Any, seed: int) -> dict[str, float]:
        evaluator.seed, size = seed, config.evaluation.batch_size
        features = evaluator.features(variables)
        projector = ImageEmbedder(Projections(model), variables, size, evaluator.mesh)
        projections, _ = encode(projector, evaluator.test, batch_size=size)
        return {
            "knn": evaluator.knn(features),
            "linear_probe": evaluator.probe(features),
            "deviation": float(projections.std(axis=0).mean()),
        }

    return judge


def run(
    config: Any,
    run: RunDirectory,
    *,
    pairs: Iterable[tuple[str, str]] = (),
    judge_of: Callable[[Any], Judge] = of_images,
    kinds: Mapping[str, str] = KINDS,
) -> dict[str, float]:
    """Trains every variant with every seed, compares each with the base, draws.

    Args:
      config: The run's config.
      run: Its directory.
      pairs: Variants that are compared beside, see `compare`.
      judge_of: What measures the models of a config, made before they are trained.
      kinds: Accuracies among what is measured, by the names that the figure shows.

    Returns:
      Metrics, see `compare`.
    """
    recipe = find_experiment(config.recipe)
    check_names(config, (BASE, AGAIN, UNTRAINED))
    configs = {name: config_of(config, name) for name in (BASE, *config.variants, AGAIN)}
    groups = groups_of(config)
    for own in configs.values():
        check_ranges(own, getattr(recipe, "RANGES", {}))

    # A mistake in any variant is told before the first program trains.
    problems = {
        group: joined(recipe, [configs[name] for name in names], seeds_of(config, names))
        for group, names in groups.items()
    }
    found: dict[str, dict[str, np.ndarray]] = {}

    def judged(judge: Judge, state: Any, first: int, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        rows = [judge(unstack(state.variables, first + i), seed) for i, seed in enumerate(seeds)]
        return {key: np.array([row[key] for row in rows]) for key in rows[0]}

    def measure(group: str, inner: RunDirectory) -> tuple[dict[str, float], None]:
        names = groups[group]
        own = configs[names[0]]
        judge = judge_of(own)
        together = problems[group]
        # Each model is measured once, after the training, and not at its end as well.
        trained = train(own, inner, dataclasses.replace(together, evaluate=lambda state: {}))
        state, seeds = on_one_device(trained), seeds_of(config, names)
        for i, name in enumerate(names):
            found[name] = judged(judge, state, i * len(seeds), seeds)
        if BASE in names:
            start = on_one_device(first_state(own, together))
            found[UNTRAINED] = judged(judge, start, names.index(BASE) * len(seeds), seeds)
        means = {
            f"{key}_{name}": float(v.mean()) for name in names for key, v in found[name].items()
        }
        Progress().note(", ".join(f"{name} {value:.4f}" for name, value in means.items()))
        return means, None

    for_each(run, groups, measure)
    rows = {name: np.stack([found[name][kind] for kind in kinds.values()]) for name in configs}
    draw_accuracies(run.figure("accuracies.png"), rows, kinds)
    return compare(found, pairs, kinds.values())


def compare(
    found: Mapping[str, Mapping[str, np.ndarray]],
    pairs: Iterable[tuple[str, str]] = (),
    kinds: Iterable[str] = tuple(KINDS.values()),
) -> dict[str, float]:
    """Means of all variants, and by how much one is above another, seed by seed.

    Args:
      found: Values, one a seed, by variant and kind.
      pairs: Variants (one, other) that are compared beside the base and the untrained encoder,
        each of which is compared with every other.
      kinds: Kinds that are compared.

    Returns:
      `<kind>_<variant>`; `<kind>_over_<other>` of the base and `<kind>_<one>_over_<other>` of
      others; all with the ends of their intervals.
    """
    metrics: dict[str, float] = {}
    for name, own in found.items():
        for kind, values in own.items():
            metrics |= with_bounds(f"{kind}_{name}", t_interval(values))
    compared = [(one, other) for other in found if other != BASE for one in (BASE, UNTRAINED)]
    for one, other in (*compared, *pairs):
        infix = "" if one == BASE else f"_{one}"
        for kind in kinds:
            interval = t_interval(found[one][kind] - found[other][kind])
            metrics |= with_bounds(f"{kind}{infix}_over_{other}", interval)
    return metrics
