"""Fisher information of the bed's models, and a null without its places."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.merging.bed import Bed, stack, take
from experiments.merging.finetuning import logits
from experiments.merging.networks import seen, spec
from rml import data
from rml.evaluation.costs import program_flops
from rml.merging import diagonal_fisher


def fisher_of(
    bed: Bed, params: Any, head: Array, source: data.ArraySource, *, examples: int, classes: Any,
    seed: int = 0,
) -> Any:  # fmt: skip
    """The diagonal Fisher of a model on images that are drawn; labels are not used.

    Args:
      bed: The bed.
      params: Parameters of the model.
      head: Frozen head of its task.
      source: Images; where they are fewer they are repeated, so that one program serves all.
      examples: Number of images.
      classes: Classes that the expectation is over, as `diagonal_fisher` takes them.
      seed: Seed of the classes that are drawn, if any are.
    """
    own = jnp.asarray(draw_images(source, examples, bed.config.seed))
    key = jax.random.key(seed)
    return _fisher(bed.module, params, head, own, key, bed.config.head.scale, classes)


def draw_images(source: data.ArraySource, examples: int, seed: int) -> np.ndarray:
    """Images drawn from a source; where they are fewer they are repeated."""
    images = source.arrays()["image"]
    return images[np.resize(np.random.default_rng(seed).permutation(len(images)), examples)]


def fishers_of(
    bed: Bed, models: Any, heads: Array, sources: list[data.ArraySource], **options: Any
) -> Any:
    """Fishers of several models, each on its own images, stacked.

    Args:
      bed: The bed.
      models: Parameters, stacked.
      heads: A frozen head for each.
      sources: Images for each.
      **options: What else `fisher_of` takes.
    """
    found = [
        fisher_of(bed, take(models, i), heads[i], source, seed=i, **options)
        for i, source in enumerate(sources)
    ]
    return stack(found)


@jax.jit
def shuffled(fishers: Any, key: Array) -> Any:
    """Stacked Fishers whose entries are exchanged within each leaf: sizes stay, places do not."""
    leaves, structure = jax.tree.flatten(fishers)
    keys = jax.random.split(key, len(leaves))
    moved = []
    for one, leaf in zip(keys, leaves, strict=True):
        flat = leaf.reshape(leaf.shape[0], -1)
        moved.append(
            jax.random.permutation(one, flat, axis=1, independent=True).reshape(leaf.shape)
        )
    return jax.tree.unflatten(structure, moved)


@functools.partial(jax.jit, static_argnames=("module", "classes"))
def _fisher(
    module: Any, params: Any, head: Array, images: Array, key: Array, scale: Any, classes: Any
) -> Any:
    def log_probs(params: Any, image: Array) -> Array:
        found = module.apply({"params": params}, seen(image)[None])
        return jax.nn.log_softmax(logits(found, head, scale))[0]

    return diagonal_fisher(log_probs, params, images, classes=classes, key=key)


def fisher_flops(bed: Bed, *, examples: int, classes: Any) -> float:
    """Operations of matrix products that a Fisher of so many examples takes."""
    images = jnp.zeros_like(spec(bed.config, examples))

    def call(params: Any, head: Array, images: Array, key: Array) -> Any:
        return _fisher(bed.module, params, head, images, key, bed.config.head.scale, classes)

    return program_flops(call, bed.base, bed.heads[0], images, jax.random.key(0))
