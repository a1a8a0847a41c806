"""Models fine-tuned on one task several times, merged in the place of an ensemble."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.comparison import for_each
from experiments.merging.bed import Bed, repeated, take
from experiments.merging.finetuning import features, finetuned
from experiments.merging.fishers import fishers_of, shuffled
from experiments.merging.judging import Part, Reading, judged, read
from experiments.merging.networks import spec
from experiments.merging.ranking import ensembled, equally, weighted
from rml.evaluation.costs import program_flops
from rml.merging import floored_share, merge
from rml.training import RunDirectory


def ensembling(
    config: Any, bed: Bed, run: RunDirectory
) -> tuple[dict[str, Reading], dict[str, float]]:
    """Readings of test images of one task by single models, their averages and their ensemble.

    Beside them the operations of one model over those of the ensemble, and the share of floored
    entries of the Fishers.

    All start from the base, with another order and other augmentations. Weights are chosen on
    validation images, the greedy soup (Wortsman et al., arXiv:2203.05482) likewise.
    """
    options = config.ensembling
    count, task, alone = options.models, bed.tasks[options.task], bed.alone(options.task)
    heads = repeated(alone.heads[0], count)
    own = bed.config.copy_and_resolve_references()
    own.train.steps = own.train.checkpoint_every = options.steps

    def train(_: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        return {}, finetuned(
            own, inner, [task.train] * count, [task.validation] * count,
            starts=repeated(bed.base, count), base=bed.base, heads=heads,
        )  # fmt: skip

    models = for_each(run, ["ensembling"], train)["ensembling"][1]
    validation, test = judged(alone, "validation"), judged(alone, "test")
    fishers = fishers_of(alone, models, heads, [task.train] * count, **config.fisher)
    scores = [
        float(read(alone, validation, take(models, i)).normalised.mean()) for i in range(count)
    ]
    moved = shuffled(fishers, jax.random.key(config.seed))
    merged = {
        "single": take(models, int(np.argmax(scores))),
        "average": merge("average", bed.base, models),
        "greedy": _greedy(alone, models, np.argsort(scores)[::-1], validation),
        "weighted_average": weighted(config, alone, models, None, validation),
        "fisher": weighted(config, alone, models, fishers, validation, favour_first=True),
        "shuffled": weighted(config, alone, models, moved, validation, favour_first=True),
        "fisher_equal": equally(alone, models, fishers),
        "shuffled_equal": equally(alone, models, moved),
    }
    found = {name: read(alone, test, params) for name, params in merged.items()}
    metrics = {
        "ensembling_flops_share": flops_share(bed, models),
        "floored_ensembling": float(floored_share(fishers)),
    }
    return found | {"ensemble": ensembled(alone, models, test)}, metrics


def flops_share(bed: Bed, models: Any) -> float:
    """Operations of one model on an image over those of several stacked ones."""
    count = jax.tree.leaves(models)[0].shape[0]
    image = jnp.zeros_like(spec(bed.config, 1))

    def counted(number: int) -> float:
        return program_flops(
            lambda own, x: [features(bed.module, take(own, i), x) for i in range(number)],
            models, image,
        )  # fmt: skip

    return counted(1) / counted(count)


def _greedy(bed: Bed, models: Any, order: np.ndarray, validation: Part) -> Any:
    """The average of those models that, best first, do not lower validation accuracy."""
    weights, best, kept = np.zeros(len(order), np.float32), -np.inf, bed.base
    for i in order:
        weights[i] = 1
        tried = merge("weighted_average", bed.base, models, weights=jnp.asarray(weights))
        score = float(read(bed, validation, tried).normalised.mean())
        if score >= best:
            best, kept = score, tried
        else:
            weights[i] = 0
    return kept
