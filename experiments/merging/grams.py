"""RegMean on the bed: inner products of what layers read, and the merge of the best factor."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.merging.bed import Bed
from experiments.merging.fishers import draw_images
from experiments.merging.judging import Part, best
from experiments.merging.networks import mask_of, seen, spec
from rml import data
from rml.evaluation.costs import program_flops
from rml.merging import input_grams, regmean

BATCH = 32
"""Images of each task that are read at a time, at most."""


def grams_of(bed: Bed, sources: Sequence[data.ArraySource], *, examples: int) -> Any:
    """Inner products of what the layers of each expert read on its own images, stacked.

    Args:
      bed: The bed.
      sources: Images for each expert, whose labels are not used.
      examples: Number of images of each, which are drawn.
    """
    images = np.stack([draw_images(source, examples, bed.config.seed) for source in sources])
    size = math.gcd(examples, BATCH)
    batches = jnp.asarray(images.reshape(len(sources), -1, size, *images.shape[2:]))
    return _grams(bed.module, bed.experts, batches)


def grams_flops(bed: Bed, *, examples: int) -> float:
    """Operations of the matrix products that inner products of so many images of each task take."""
    return program_flops(
        functools.partial(_grams, bed.module), bed.experts,
        spec(bed.config, len(bed.tasks), 1, examples),
    )  # fmt: skip


def regmeaned(config: Any, bed: Bed, grams: Any, validation: Part) -> Any:
    """The RegMean of the best factor α on validation images, of as many as others have tries.

    They are 0, 1/n and so on to 1 - 1/n: without the factor, at 1, sums may be singular.
    """
    tries = config.search.tries
    merge = functools.partial(_merged, bed.base, bed.experts, grams)
    return best(bed, validation, (np.arange(tries) / tries).tolist(), merge)[0]


def crossed(grams: Any) -> Any:
    """Inner products of another expert's inputs in the place of each one's own."""
    return jax.tree.map(lambda gram: jnp.roll(gram, 1, axis=0), grams)


@functools.partial(jax.jit, static_argnames="module")
def _grams(module: Any, experts: Any, images: Array) -> Any:
    def of_expert(params: Any, own: Array) -> Any:
        return input_grams(module, {"params": params}, seen(own), mask=mask_of(own))

    return jax.vmap(of_expert)(experts, images)


@jax.jit
def _merged(base: Any, experts: Any, grams: Any, alpha: Any) -> Any:
    return regmean(base, experts, grams=grams, alpha=alpha)
