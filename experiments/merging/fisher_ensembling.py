"""Models fine-tuned on one task several times, merged in the place of an ensemble."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.comparison import for_each
from experiments.merging.bed import Bed, repeated, take
from experiments.merging.finetuning import finetuned
from experiments.merging.fishers import fishers_of, shuffled
from experiments.merging.judging import Part, Reading, judged, read
from experiments.merging.ranking import ensembled, equally, weighted
from rml.merging import merge
from rml.training import RunDirectory


def ensembling(config: Any, bed: Bed, run: RunDirectory) -> dict[str, Reading]:
    """Readings of test images of one task by single models, their averages and their ensemble.

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
    return found | {"ensemble": ensembled(alone, models, test)}


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
