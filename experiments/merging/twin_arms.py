"""What stands beside twin-merging on all tasks of a bed: merged models, experts, other weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.merging.bed import Bed, take
from experiments.merging.finetuning import features
from experiments.merging.judging import Part
from experiments.merging.ranking import adamerged, scaled
from experiments.merging.tasks import Images
from experiments.merging.twin_multitask import multitask
from experiments.merging.twin_parts import Merged, best_static, of_static, of_weights, parts_of
from rml.merging import merge
from rml.training import RunDirectory


def of_models(
    config: Any, run: RunDirectory, whole: Merged, validation: Part, images: Images
) -> dict[str, Array]:
    """Features of images by single models, each with the same parameters for all of them."""
    bed = whole.bed
    models = {
        "base": bed.base,
        "average": merge("average", bed.base, bed.experts),
        "tuned": whole.tuned,
        "ties": scaled(config, bed, "ties", validation)[0],
        "dare": scaled(config, bed, "dare", validation)[0],
        "adamerging": adamerged(config, bed, validation),
        "multitask": multitask(bed, run),
    }
    return {name: features(bed.module, own, images.image) for name, own in models.items()}


def of_mixtures(
    config: Any, whole: Merged, validation: Part, images: Images, weights: Array
) -> dict[str, Array]:
    """Features of images by exclusive vectors, their compression or their weights changed.

    Args:
      config: The run's config.
      whole: Twin-merged experts of all tasks.
      validation: Images that static weights are chosen on.
      images: Images whose features are found.
      weights: The router's weights for each.
    """
    bed, twin, count = whole.bed, whole.twin, len(whole.bed.tasks)
    true = jax.nn.one_hot(images.task, count)
    order = np.random.default_rng(config.seed).permutation(len(weights))
    fraction, nothing = config.twin.fraction, jnp.zeros_like(weights)
    unbiased = parts_of(bed, whole.tuned, fraction=fraction, excluded=("bias",))
    found = {
        "twin": of_weights(bed, twin, weights, images),
        "shuffled": of_weights(bed, twin, weights[order], images),
        "oracle": of_weights(bed, twin, true, images),
        "top": of_weights(bed, twin, jax.nn.one_hot(weights.argmax(-1), count), images),
        "uniform": of_static(bed, twin, jnp.full(count, 1 / count), images),
        "static": of_static(bed, twin, best_static(config, bed, twin, validation), images),
        # As in the public code biases are those of the true task's expert, in the second alone.
        "biases": of_weights(bed, unbiased, weights, images, true),
        "tuned_biases": of_weights(bed, unbiased, nothing, images, true),
    }
    each = of_experts(bed, images)
    found["experts"] = _of_each(each, images.task)
    found["hard"] = _of_each(each, weights.argmax(-1))
    return found


def of_experts(bed: Bed, images: Images) -> Array:
    """Features of images by every expert, [experts, images, d]."""
    return jnp.stack([
        features(bed.module, take(bed.experts, i), images.image) for i in range(len(bed.tasks))
    ])  # fmt: skip


def _of_each(features: Array, places: Array) -> Array:
    """Of the features by every expert those of one for each image."""
    return features[places, jnp.arange(len(places))]
