"""Methods of merging on the eight tasks of a bed, their options chosen on validation images."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.merging.bed import Bed, ones_like, subtract, take
from experiments.merging.finetuning import scores
from experiments.merging.grams import grams_of, regmeaned
from experiments.merging.judging import (
    Part,
    Reading,
    best,
    candidates,
    of_hits,
    read,
    search_fisher,
    search_scale,
)
from experiments.merging.tasks import Images
from rml.merging import learn_coefficients, merge, prediction_entropy
from rml.ops import trees
from rml.training import Progress

SCALED = ("task_arithmetic", "ties", "dare")
WEIGHTED = "weighted_average"


def scaled(config: Any, bed: Bed, name: str, validation: Part) -> tuple[Any, float]:
    """The best multiple, on validation images, of a method's vector, and the multiple."""
    options: dict[str, Any] = dict(config.methods[name])
    low, high = options.pop("scales")
    if name == "dare":
        options["key"] = jax.random.key(config.seed)
    full = merge(name, bed.base, bed.experts, scale=1.0, **options)
    vector = subtract(full, bed.base)
    scales = jnp.linspace(low, high, config.search.tries)
    found, values = search_scale(
        bed.module, bed.base, vector, scales, bed.heads, validation, bed.config.head.scale
    )
    return found, float(values[-1])


def weighted(
    config: Any, bed: Bed, experts: Any, fishers: Any, validation: Part, *,
    favour_first: bool = False,
) -> Any:  # fmt: skip
    """The Fisher merge of the best weights on validation images; without Fishers an average."""
    count = jax.tree.leaves(experts)[0].shape[0]
    given = ones_like(experts) if fishers is None else fishers
    found, _ = search_fisher(
        bed.module, experts, given, candidates(config.seed, count, config.search.tries), bed.heads,
        validation, bed.config.head.scale, favour_first=favour_first,
    )  # fmt: skip
    return found


def equally(bed: Bed, experts: Any, fishers: Any) -> Any:
    """The Fisher merge of equal weights, which favours no model."""
    return merge("fisher", bed.base, experts, fishers=fishers, favour_first=False)


def adamerged(
    config: Any, bed: Bed, validation: Part, *, unlabelled: Images | None = None,
    vectors: Any = None, by_block: bool = True,
) -> Any:  # fmt: skip
    """AdaMerging on images without labels; those of validation images choose start and rate.

    Args:
      config: The run's config.
      bed: The bed.
      validation: Images that start and rate are chosen on.
      unlabelled: Images that coefficients are learned from; the validation images if not given.
      vectors: Task vectors; those of the bed's experts if not given.
      by_block: Whether each block of a vector has a coefficient, or each vector one.
    """
    options = config.methods.adamerging
    images = validation.images if unlabelled is None else unlabelled
    batches = drawn_batches(config, images, options)
    own = subtract(bed.experts, bed.base) if vectors is None else vectors

    def learn(tried: tuple[float, float]) -> Any:
        return _adamerged(
            bed.module, bed.base, own, bed.heads, batches, bed.config.head.scale, *tried,
            by_block=by_block,
        )  # fmt: skip

    return best(bed, validation, tries_of(options), learn)[0]


def tries_of(options: Any) -> list[tuple[float, float]]:
    """The starts and rates of AdaMerging's coefficients that validation images choose from.

    The paper starts at 0.3, task arithmetic's scale on its models.
    """
    return list(itertools.product(options.starts, options.learning_rates))


def choices(config: Any) -> dict[str, int]:
    """How many options validation images choose from, by method of `baselines`."""
    single = dict.fromkeys((*SCALED, WEIGHTED, "regmean"), config.search.tries)
    return single | {"adamerging": len(tries_of(config.methods.adamerging))}


def drawn_batches(config: Any, images: Images, options: Any, *, seed: int = 0) -> Images:
    """Batches with equally many images of each task, stacked on a leading axis of steps.

    Args:
      config: The run's config, of which the seed is read.
      images: Images that are drawn from, with repetition.
      options: `batch_size`, images of each task in a batch, and `steps`.
      seed: Which of several draws it is.
    """
    rng, task = np.random.default_rng([config.seed, seed]), np.asarray(images.task)
    members = [np.flatnonzero(task == i) for i in np.unique(task)]
    rows = np.stack([
        np.concatenate([rng.choice(own, options.batch_size) for own in members])
        for _ in range(options.steps)
    ])  # fmt: skip
    return jax.tree.map(lambda x: x[jnp.asarray(rows)], images)


def ensembled(bed: Bed, models: Any, part: Part) -> Reading:
    """The mean of several models' probabilities, each image by the head of its own task."""
    count = jax.tree.leaves(models)[0].shape[0]
    total: Any = 0.0
    for i in range(count):
        own = scores(bed.module, take(models, i), bed.heads, part.images,
                     bed.config.head.scale)  # fmt: skip
        total = total + jax.nn.softmax(own)
    found = np.asarray(jnp.argmax(total, axis=-1) == part.images.label)
    return of_hits(part, found)


def on_their_own(part: Part, singles: Sequence[Reading]) -> Reading:
    """The reading of all experts, each on the images of its own task."""
    task = np.asarray(part.images.task)
    right = np.zeros(len(task), bool)
    for i, one in enumerate(singles):
        right[task == i] = one.normalised[task == i] > 0
    return of_hits(part, right)


def baselines(config: Any, bed: Bed, validation: Part, test: Part) -> dict[str, Reading]:
    """Readings of test images by all methods but Fisher merging.

    "single" is the expert that is best on validation images of all tasks.
    """
    progress = Progress()
    models = [take(bed.experts, i) for i in range(len(bed.tasks))]
    singles = [read(bed, test, own) for own in models]
    known = [read(bed, validation, own).normalised.mean() for own in models]
    found = {
        "base": read(bed, test, bed.base),
        "single": singles[int(np.argmax(known))],
        "average": read(bed, test, merge("average", bed.base, bed.experts)),
        "experts": on_their_own(test, singles),
    }
    for name in SCALED:
        params, scale = scaled(config, bed, name, validation)
        found[name] = read(bed, test, params)
        progress.note(f"{name}: scale {scale:.2f}")
    found[WEIGHTED] = read(bed, test, weighted(config, bed, bed.experts, None, validation))
    train = [own.train for own in bed.tasks.values()]
    grams = grams_of(bed, train, examples=config.fisher.examples)
    found["regmean"] = read(bed, test, regmeaned(config, bed, grams, validation))
    found["adamerging"] = read(bed, test, adamerged(config, bed, validation))
    found["ensemble"] = ensembled(bed, bed.experts, test)
    return found


@functools.partial(jax.jit, static_argnames=("module", "by_block"))
def _adamerged(
    module: Any, base: Any, vectors: Any, heads: Array, batches: Images, scale: Any, start: Any,
    rate: Any, *, by_block: bool,
) -> Any:  # fmt: skip
    objective = mean_entropy(module, heads, scale)
    found = learn_coefficients(
        objective, base, vectors, batches, by_block=by_block, start=start, learning_rate=rate
    )
    return trees.combine(base, vectors, found.params)


def mean_entropy(module: Any, heads: Array, scale: Any) -> Callable[[Any, Images], Array]:
    """The mean entropy of a model's predictions, as a function of parameters and images."""

    def objective(params: Any, batch: Images) -> Array:
        return jnp.mean(prediction_entropy(scores(module, params, heads, batch, scale)))

    return objective
