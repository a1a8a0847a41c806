"""The ways of merging that are ranked on one bed, and what each takes until its model is there."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging.atlas_learning import Batch, scaled_vectors
from experiments.merging.bed import Bed, subtract
from experiments.merging.concrete_masks import learned
from experiments.merging.fishers import fisher_flops, fishers_of
from experiments.merging.grams import crossed, grams_flops, grams_of, regmeaned
from experiments.merging.judging import Part, Reading, best, halves
from experiments.merging.networks import PADDING, of_texts, reads_texts, seen, spec
from experiments.merging.ranking import adamerged, drawn_batches, scaled, tries_of, weighted
from experiments.merging.tasks import Images, joined
from experiments.merging.twin_parts import by_task_heads, bytes_of, merged, of_weights
from rml.evaluation.costs import program_flops
from rml.merging import merge
from rml.models import Router
from rml.ops import trees

BEHIND = {"concrete": "arithmetic"}
"""By way the one whose scale it takes, the cost of whose search is its own too."""


def ways(config: Any, bed: Bed, validation: Part) -> dict[str, tuple[Callable[[], Any], float]]:
    """Each way to one model, and how many passes of one image it takes forward.

    A step of learning counts three passes of each of its images. Fishers, and inner products of
    RegMean, count by their operations.
    """
    count = len(bed.tasks)
    search = config.search.tries * len(validation.weights)
    train = [own.train for own in bed.tasks.values()]
    forward = forward_flops(config, bed)
    slopes = count * fisher_flops(bed, **config.fisher.to_dict()) / forward
    products = grams_flops(bed, examples=config.fisher.examples) / forward

    @functools.cache
    def arithmetic() -> tuple[Any, float]:
        return scaled(config, bed, "task_arithmetic", validation)

    def rates(options: Any, tried: Any, judged_on: float) -> float:
        return len(tried) * (3 * options.steps * options.batch_size * count + judged_on)

    def fisher() -> Any:
        own = fishers_of(bed, bed.experts, bed.heads, train, **config.fisher.to_dict())
        return weighted(config, bed, bed.experts, own, validation)

    @functools.cache
    def grams() -> Any:
        return grams_of(bed, train, examples=config.fisher.examples)

    def dropped(factor: float) -> Any:
        return merge("dare", bed.base, bed.experts, scale=factor * arithmetic()[1],
                     rate=config.dropped.rate, key=jax.random.key(config.seed))  # fmt: skip

    masks, adamerging, atlas = config.mask, config.methods.adamerging, config.addition
    whole = len(validation.weights)
    coefficients = rates(adamerging, tries_of(adamerging), whole)
    # Coefficients that take a step ahead of a mask are learned by as many passes as the mask, and
    # AdaMerging behind it says which rate is best.
    ahead = 2 * rates(masks, masks.learning_rates, 0) + len(masks.learning_rates) * coefficients
    return {
        "average": (lambda: merge("average", bed.base, bed.experts), 0.0),
        "weights": (lambda: weighted(config, bed, bed.experts, None, validation), search),
        "fisher": (fisher, search + slopes),
        "regmean": (lambda: regmeaned(config, bed, grams(), validation), search + products),
        "crossed": (lambda: regmeaned(config, bed, crossed(grams()), validation), search),
        "arithmetic": (lambda: arithmetic()[0], search),
        "ties": (lambda: scaled(config, bed, "ties", validation)[0], search),
        "dare": (lambda: scaled(config, bed, "dare", validation)[0], search),
        "dropped": (lambda: dropped(1.0), 0.0),
        "unscaled": (lambda: dropped(1 - config.dropped.rate), 0.0),
        "concrete": (lambda: concrete(config, bed, validation, arithmetic()[1]),
                     search + rates(masks, masks.learning_rates, whole)),
        "adamerging": (lambda: adamerged(config, bed, validation), coefficients),
        "masked": (lambda: masked(config, bed, validation), ahead),
        "leap": (lambda: masked(config, bed, validation, inner_rate=1.0, clip=True), ahead),
        "noise": (lambda: adamerged(config, bed, validation, unlabelled=noise(config, validation)),
                  coefficients),
        "atlas": (lambda: labelled(config, bed, validation), rates(atlas, atlas.rates, whole / 2)),
    }  # fmt: skip


def concrete(config: Any, bed: Bed, validation: Part, scale: float) -> Any:
    """Task arithmetic at a scale, behind a mask learned from validation images without labels."""
    return learned(config, bed, validation.images, validation, scale=scale).model


def masked(config: Any, bed: Bed, validation: Part, **changes: Any) -> Any:
    """AdaMerging of vectors behind a mask that is learned with coefficients one step ahead.

    Args:
      config: The run's config.
      bed: The bed.
      validation: Images that are learned from, and whose labels choose rates.
      **changes: Options of `learn_mask`; the paper's coefficients take a step of size 1.
    """
    return learned(config, bed, validation.images, validation, bilevel=True, **changes).model


def twin(
    config: Any, bed: Bed, validation: Part, test: Part
) -> tuple[Reading, float, float, float]:  # fmt: skip
    """Twin-merging, whose router is learned from training images without their labels.

    Returns:
      The reading of test images, seconds, operations and bytes.
    """
    start = time.perf_counter()
    found = merged(config, bed, validation, list(range(len(bed.tasks))))
    jax.block_until_ready((found.twin, found.learned))
    seconds = time.perf_counter() - start
    router, variables = config.router, found.learned.variables
    images, whole = len(joined(bed.tasks, "train", router.most).task), len(validation.weights)
    size = min(router.batch_size, images)
    of_router = program_flops(
        Router(len(bed.tasks)).apply,
        variables,
        jax.ShapeDtypeStruct((1, bed.heads.shape[-1]), float),
    )
    flops = forward_flops(config, bed) * (config.search.tries * whole + images + whole)
    flops += of_router * router.epochs * (3 * (images // size * size) + whole)
    weights = found.weights(test.images)
    reading = by_task_heads(bed, test, of_weights(bed, found.twin, weights, test.images))
    return reading, seconds, flops, bytes_of(found.twin) + trees.count_bytes(variables)


def labelled(config: Any, bed: Bed, validation: Part) -> Any:
    """Coefficients of blocks learned from half of the validation images and their labels.

    The rate is chosen on the other half.
    """
    first, second = halves(validation)
    batches = drawn_batches(config, first.images, config.addition)
    given = Batch(batches, jnp.ones(batches.label.shape))
    vectors = subtract(bed.experts, bed.base)

    def learn(rate: float) -> Any:
        return scaled_vectors(bed.module, bed.base, vectors, bed.heads, given,
                              bed.config.head.scale, rate, decay=config.decay)  # fmt: skip

    return best(bed, second, config.addition.rates, learn)[0]


def noise(config: Any, part: Part) -> Images:
    """Images of which every pixel is drawn at random, or texts of such tokens, in a part's places.

    Texts have as many tokens as those in whose places they are.
    """
    rng, real = np.random.default_rng([config.seed, 5]), part.images.image
    if reads_texts(config):
        vocabulary = of_texts(config.model.name).tokenizer.get_vocab_size()
        tokens = rng.integers(1, vocabulary, real.shape, np.int32)
        drawn = np.where(np.asarray(real) != PADDING, tokens, PADDING)
    else:
        drawn = rng.integers(0, 256, real.shape, np.uint8)
    return part.images._replace(image=jnp.asarray(drawn))


def forward_flops(config: Any, bed: Bed) -> float:
    """Operations of the matrix products of one image's forward pass."""
    return program_flops(
        lambda params, inputs: bed.module.apply({"params": params}, seen(inputs)), bed.base,
        spec(config, 1),
    )  # fmt: skip
