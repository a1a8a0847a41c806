"""Costs of twin-merging: bytes against accuracy, what rank keeps of vectors, time of a batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.timing import least_seconds
from experiments.merging.bed import Bed
from experiments.merging.judging import Part, Reading
from experiments.merging.networks import seen
from experiments.merging.twin_parts import (
    Merged,
    by_task_heads,
    bytes_of,
    of_weights,
    parts_of,
)
from rml.evaluation import program_flops
from rml.merging import Twin, modularise, twin_apply, twin_params
from rml.ops import trees

Curve = dict[float, Reading]
"""Readings by copies of one model that the parts take."""


def of_sizes(config: Any, whole: Merged, part: Part, weights: Array) -> dict[str, Curve]:
    """Readings of images by vectors of several sizes, each way of making them small."""
    bed, found = whole.bed, {}
    for name, compress, shared in (
        ("to the shared expert", "svd", whole.tuned), ("to the base", "svd", bed.base),
        ("largest entries", "magnitude", whole.tuned), ("dropped entries", "drop", whole.tuned),
    ):  # fmt: skip
        curve = {}
        for fraction in config.twin.fractions:
            twin = parts_of(
                bed, shared, compress=compress, fraction=fraction, seed=config.seed
            )  # fmt: skip
            copies = bytes_of(twin, sparse=compress != "svd") / trees.count_bytes(bed.base)
            curve[copies] = by_task_heads(bed, part, of_weights(bed, twin, weights, part.images))
        found[name] = curve
    return found


def energies(config: Any, whole: Merged) -> dict[str, float]:
    """Share of the energy of vectors that their rank keeps, by what they are taken from.

    They are taken from the shared expert, from the base, and from the base with noise that is as
    large as the shared expert's change in every block.
    """
    bed, key = whole.bed, jax.random.key(config.seed)
    moved = jax.tree.map(jnp.subtract, whole.tuned, bed.base)
    leaves, structure = jax.tree.flatten(bed.base)
    drawn = [
        jax.random.normal(jax.random.fold_in(key, i), leaf.shape) for i, leaf in enumerate(leaves)
    ]
    noise = jax.tree.unflatten(structure, drawn)
    shares = jax.tree.map(lambda a, b: (a / b)[None], trees.norms(moved), trees.norms(noise))
    other = trees.combine(bed.base, trees.stack_trees([noise]), shares)
    origins = {"twin": whole.tuned, "task_vectors": bed.base, "random": other}
    found = {
        name: float(_energy(bed.base, bed.experts, own, fraction=config.twin.fraction))
        for name, own in origins.items()
    }
    over = {
        f"energy{end}_over_task_vectors": found[name] - found["task_vectors"]
        for end, name in (("", "twin"), ("_random", "random"))
    }
    return {f"energy_{name}": value for name, value in found.items()} | over


def of_time(config: Any, whole: Merged, part: Part, weights: Array) -> dict[str, float]:
    """Least seconds of a mixed batch over those of one model, and the same of operations."""
    module, options = whole.bed.module, config.timing
    rows = np.random.default_rng(config.seed).permutation(len(weights))[: options.batch_size]
    images, own = seen(part.images.image[rows]), weights[rows]

    def composed(twin: Twin, weights: Array, images: Array) -> Array:
        def of_image(own: Array, image: Array) -> Array:
            params = twin_params(twin.shared, twin.exclusive, own)
            return module.apply({"params": params}, image[None])[0]

        return jax.vmap(of_image)(weights, images)

    calls = {
        "one": lambda twin, weights, images: module.apply({"params": twin.shared}, images),
        "factored": lambda twin, weights, images: twin_apply(
            module, twin.shared, twin.exclusive, weights, images
        ),
        "composed": composed,
    }
    given = (whole.twin, own, images)
    seconds = {
        name: least_seconds(functools.partial(jax.jit(call), *given), repeats=options.repeats)
        for name, call in calls.items()
    }
    flops = {name: program_flops(call, *given) for name, call in calls.items()}
    return {
        "time_ratio": seconds["factored"] / seconds["one"],
        "time_ratio_composed": seconds["composed"] / seconds["one"],
        "flops_ratio": flops["factored"] / flops["one"],
        "flops_ratio_composed": flops["composed"] / flops["one"],
    }


def of_memory(bed: Bed, twin: Twin) -> dict[str, float]:
    """Copies of one model that the parts take, and that the experts take."""
    one = trees.count_bytes(bed.base)
    return {
        "copies": bytes_of(twin) / one, "copies_experts": trees.count_bytes(bed.experts) / one,
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames="fraction")
def _energy(base: Any, experts: Any, origin: Any, *, fraction: float) -> Array:
    """The mean share over matrices of all experts; the right factors' rows are orthonormal."""
    reduced = modularise(base, experts, shared=origin, fraction=fraction).exclusive
    vectors, shares = trees.task_vectors(origin, experts), []

    def of_leaf(whole: Array, part: Any) -> None:
        if isinstance(part, trees.LowRank):
            total = jnp.sum(jnp.square(whole.reshape(*part.left.shape[:-2], -1)), axis=-1)
            kept = jnp.sum(jnp.square(part.left), axis=(-2, -1))
            shares.append(jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), 1).ravel())

    jax.tree.map(of_leaf, vectors, reduced)
    return jnp.mean(jnp.concatenate(shares))
