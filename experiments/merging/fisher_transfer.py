"""A target with few labels, merged with experts on other tasks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.comparison import for_each
from experiments.merging.bed import Bed, ones_like, repeated, stack, take
from experiments.merging.finetuning import features, finetuned
from experiments.merging.fishers import fisher_flops, fisher_of, shuffled
from experiments.merging.judging import Part, Reading, judged, read, search_fisher
from experiments.merging.networks import spec
from experiments.merging.tasks import few_of_each
from rml import data
from rml.evaluation.costs import program_flops
from rml.merging import floored_share, grid_weights
from rml.training import Progress, RunDirectory

WAYS = ("alone", "base", "average", "fisher", "shuffled", "donor_tuned")


def transfer(
    config: Any, bed: Bed, fishers: Any, run: RunDirectory
) -> tuple[dict[str, list[Reading]], dict[str, float]]:
    """Readings of each target's test images by each way, and what merging costs.

    A target is fine-tuned from the base on `shots` images a class. It is merged with each expert of
    the bed on another task, weights and donor chosen on the target's validation images. Beside it:
    the target alone, a merge with the base in the place of a donor, averages, and fine-tuning from
    the donor that Fisher merging chose.

    Args:
      config: The run's config.
      bed: The bed.
      fishers: Fishers of the bed's experts, stacked.
      run: The run's directory.

    Returns:
      By way the reading of each target; costs, and the share of floored entries of the targets'
      Fishers.
    """
    options, names = config.transfer, list(bed.tasks)
    targets = _trained(config, bed, run, "targets", repeated(bed.base, len(options.targets)))
    given = {"fisher": fishers, "shuffled": shuffled(fishers, jax.random.key(config.seed))}
    given["average"] = ones_like(fishers)
    found: dict[str, list[Reading]] = {way: [] for way in WAYS}
    donors, floored = [], []
    for i, name in enumerate(options.targets):
        alone, target = bed.alone(name), take(targets, i)
        validation, test = judged(alone, "validation"), judged(alone, "test")
        others = [j for j, other in enumerate(names) if other != name]
        few = few_of_each(bed.tasks[name].train, options.shots, config.seed)
        options_few = fewer(config, few)
        own, of_base = (
            fisher_of(bed, params, alone.heads[0], few, **options_few)
            for params in (target, bed.base)
        )
        floored.append(float(floored_share(own)))
        found["alone"].append(read(alone, test, target))
        params, _ = _best(config, alone, validation, target, own, bed.base, of_base)
        found["base"].append(read(alone, test, params))
        for way, each in given.items():
            mine = targets_fisher(way, own, config.seed)
            tried = [
                _best(config, alone, validation, target, mine,
                      *(take(tree, j) for tree in (bed.experts, each)))
                for j in others
            ]  # fmt: skip
            top = int(np.argmax([score for _, score in tried]))
            found[way].append(read(alone, test, tried[top][0]))
            if way == "fisher":
                donors.append(others[top])
                Progress().note(f"{name}: the donor is {names[others[top]]}")
    starts = take(bed.experts, jnp.asarray(donors))
    tuned = _trained(config, bed, run, "donors_tuned", starts)
    for i, name in enumerate(options.targets):
        alone = bed.alone(name)
        found["donor_tuned"].append(read(alone, judged(alone, "test"), take(tuned, i)))
    return found, costs(config, bed) | {"floored_few": float(np.mean(floored))}


def targets_fisher(way: str, own: Any, seed: int) -> Any:
    """Makes the target's Fisher of a way as it makes those of donors.

    Args:
      way: "average" weighs all entries alike, "shuffled" has them exchanged within each leaf, and
        "fisher" as they are.
      own: The target's Fisher.
      seed: Seed of the exchange, which is another one than that of donors.
    """
    if way == "average":
        return ones_like(own)
    if way == "shuffled":
        key = jax.random.fold_in(jax.random.key(seed), 1)
        return take(shuffled(stack([own]), key), 0)
    return own


def _trained(config: Any, bed: Bed, run: RunDirectory, folder: str, starts: Any) -> Any:
    """Models of all targets after fine-tuning on few images, stacked."""
    options, names = config.transfer, list(bed.tasks)
    own = bed.config.copy_and_resolve_references()
    own.train.steps = own.train.checkpoint_every = options.steps
    own.train.batch_size = options.batch_size
    few = [
        few_of_each(bed.tasks[name].train, options.shots, config.seed) for name in options.targets
    ]
    held = [bed.tasks[name].validation for name in options.targets]
    heads = bed.heads[jnp.asarray([names.index(name) for name in options.targets])]

    def train(_: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        return {}, finetuned(own, inner, few, held, starts=starts, base=bed.base, heads=heads)

    return for_each(run, [folder], train)[folder][1]


def _best(
    config: Any, alone: Bed, validation: Part, target: Any, own: Any, donor: Any, fisher: Any
) -> tuple[Any, float]:
    """The merge of a target and a donor of the best weights, and its validation score."""
    params, scores = search_fisher(
        alone.module, stack([target, donor]), stack([own, fisher]),
        grid_weights(config.transfer.points), alone.heads, validation,
        alone.config.head.scale, favour_first=True,
    )  # fmt: skip
    return params, float(scores.max())


def fewer(config: Any, few: data.ArraySource) -> dict[str, Any]:
    """Options of a Fisher on few images, none of which is repeated."""
    return config.fisher.to_dict() | {"examples": min(config.fisher.examples, len(few))}


def costs(config: Any, bed: Bed) -> dict[str, float]:
    """Operations of merging a target with one donor, over those of fine-tuning the donor further.

    The donor's Fisher is at hand, as beside a checkpoint, so that the target's alone is counted.
    What the search over weights costs on the validation images is given separately, for one donor;
    where the donor is chosen too it costs that as often as there are donors.
    """
    images = jnp.zeros_like(spec(bed.config, 1))
    forward = program_flops(lambda p, x: features(bed.module, p, x), bed.base, images)
    training = 3 * forward * config.transfer.steps * config.transfer.batch_size
    shots, seed = config.transfer.shots, config.seed
    few = [few_of_each(bed.tasks[name].train, shots, seed) for name in config.transfer.targets]
    held = np.mean([len(bed.alone(t).images("validation").label) for t in config.transfer.targets])
    counted = {
        end: np.mean([fisher_flops(bed, **fewer(config, own) | more) for own in few]) / training
        for end, more in (("", {}), ("_exact", {"classes": "all"}))
    }
    return {f"cost_ratio{end}": float(ratio) for end, ratio in counted.items()} | {
        "cost_ratio_search": float(forward * config.transfer.points * held / training)
    }
