"""Tasks added to a model, and taken away, by learned coefficients of their vectors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.merging.atlas_learning import (
    Batch,
    cross_entropy,
    scaled_vectors,
)
from experiments.merging.bed import Bed, subtract
from experiments.merging.finetuning import hits, scores
from experiments.merging.fishers import shuffled
from experiments.merging.judging import Part, Reading, best, read
from experiments.merging.ranking import adamerged, drawn_batches, scaled
from experiments.merging.tasks import Images, joined
from rml.merging import block_slopes, merge, select_blocks
from rml.ops import trees
from rml.training import Progress


def addition(
    config: Any, bed: Bed, learned: Part, chosen: Part, test: Part
) -> tuple[dict[str, Reading], dict[str, Any]]:
    """Readings of test images of all tasks by each way, and coefficients by way.

    Coefficients are learned from one half of the validation images and their labels. Rates, and
    scales of the ways beside them, are chosen on the other half.
    """
    options, scale = config.addition, bed.config.head.scale
    batches = drawn_batches(config, learned.images, options)
    given = Batch(batches, jnp.ones(batches.label.shape))
    vectors = subtract(bed.experts, bed.base)
    seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: options.looked_at], given)
    slopes = _slopes(bed.module, bed.base, vectors, bed.heads, seen, scale)
    count = sum(own.size for own in jax.tree.leaves(slopes))
    kept = select_blocks(slopes, budget=int(options.budget * count))
    moved = exchanged(config, bed)
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "atlas": (vectors, {}), "isotropic": (vectors, {"by_block": False}),
        "selected": (vectors, {"kept": kept}), "shuffled": (moved, {}),
    }  # fmt: skip
    params: dict[str, Any] = {"base": bed.base, "average": merge("average", bed.base, bed.experts)}
    coefficients: dict[str, Any] = {}
    for way, (own, more) in ways.items():
        learn = functools.partial(
            scaled_vectors, bed.module, bed.base, own, bed.heads, given, scale,
            decay=config.decay, **more,
        )  # fmt: skip
        params[way], (_, coefficients[way]) = best(bed, chosen, options.rates, learn)
    for way in ("task_arithmetic", "ties"):
        params[way], coefficients[way] = scaled(config, bed, way, chosen)
    params["adamerging"] = adamerged(config, bed, chosen, unlabelled=learned.images)
    found = {way: read(bed, test, own) for way, own in params.items()}
    for way, one in found.items():
        Progress().note(f"{way}: {100 * one.normalised.mean():.1f}% normalised")
    return found, coefficients


def exchanged(config: Any, bed: Bed) -> Any:
    """Task vectors whose entries changed places within each leaf, for a null."""
    return shuffled(subtract(bed.experts, bed.base), jax.random.key(config.seed))


def changed(bed: Bed, part: Part, coefficients: Any, *, vectors: Any = None) -> float:
    """The share of answers that change when the other tasks' vectors are added to a task's own.

    Args:
      bed: The bed.
      part: Images that are named.
      coefficients: Coefficients of all vectors.
      vectors: Task vectors; those of the bed's experts if not given.

    Source: the disentanglement error of Ortiz-Jimenez et al., arXiv:2305.12827, Section 3.
    """
    vectors = subtract(bed.experts, bed.base) if vectors is None else vectors
    count = len(bed.tasks)
    task, shares = np.asarray(part.images.task), []
    whole = _named(bed, part, _combined(bed.base, vectors, coefficients, jnp.ones(count)))
    for i in range(count):
        alone = _combined(bed.base, vectors, coefficients, jax.nn.one_hot(i, count))
        shares.append((_named(bed, part, alone) != whole)[task == i].mean())
    return float(np.mean(shares))


def negation(config: Any, bed: Bed, test: Part) -> dict[str, list[np.ndarray]]:
    """What each target's accuracy loses, by image, where the other tasks keep most of theirs.

    A target's vector is subtracted. Coefficients of blocks are learned to raise the loss on the
    target's training images and to lower it on those of the other tasks, the control. Of multiples
    of what was learned, or of more multiples of the plain vector, the one is taken that is worst on
    the target's validation images among those that keep a share of the base's accuracy on the
    control's.
    """
    options, names = config.negation, list(bed.tasks)
    images = joined(bed.tasks, "train", options.most, config.seed)
    held = joined(bed.tasks, "validation", options.most, config.seed)
    base = _right(bed, bed.base, test.images)
    found: dict[str, list[np.ndarray]] = {"atlas": [], "isotropic": [], "shuffled": []}
    for name in options.targets:
        at = names.index(name)
        batches = _against(config, images, at)
        vector = jax.tree.map(
            lambda own, start, at=at: own[at : at + 1] - start, bed.experts, bed.base
        )
        moved = shuffled(vector, jax.random.key(config.seed))
        mine = np.asarray(test.images.task) == at
        for way in found:
            own = moved if way == "shuffled" else vector
            models = [_combined(bed.base, own, -jnp.ones(1), jnp.ones(1))]
            tries = options.multiples
            if way != "isotropic":
                tries = config.search.tries // len(options.rates)
                models = [_against_loss(config, bed, own, batches, one) for one in options.rates]
            multiples = np.linspace(0, options.farthest, 1 + tries, dtype=np.float32)[1:]
            params = _worst(config, bed, models, multiples, held, at)
            found[way].append((base.astype(float) - _right(bed, params, test.images))[mine])
    return found


def _against_loss(config: Any, bed: Bed, vector: Any, batches: Batch, rate: float) -> Any:
    """The model with coefficients of one vector's blocks that the negated loss taught."""
    return scaled_vectors(
        bed.module, bed.base, vector, bed.heads, batches, bed.config.head.scale, rate, config.decay
    )[0]


def _worst(
    config: Any, bed: Bed, models: list[Any], multiples: np.ndarray, held: Images, at: int
) -> Any:
    """The multiple of a model's way from the base that is worst on a task and keeps the others."""
    mine = np.asarray(held.task) == at
    right, kept = _right(bed, bed.base, held), bed.base
    least, lowest = config.negation.control * right[~mine].mean(), right[mine].mean()
    for model in models:
        for multiple in multiples:
            params = _along(bed.base, model, multiple)
            right = _right(bed, params, held)
            if right[~mine].mean() >= least and right[mine].mean() < lowest:
                kept, lowest = params, right[mine].mean()
    return kept


def _against(config: Any, images: Images, at: int) -> Batch:
    """Batches of which half are a target's images, which count below 0, and half all others'."""
    options, rng = config.negation, np.random.default_rng([config.seed, 4])
    task = np.asarray(images.task)
    half = options.batch_size // 2
    rows = np.concatenate([
        rng.choice(np.flatnonzero(own), (options.steps, half)) for own in (task == at, task != at)
    ], axis=1)  # fmt: skip
    signs = np.broadcast_to(np.repeat([-1.0, 1.0], half), rows.shape)
    return Batch(jax.tree.map(lambda x: x[rows], images), jnp.asarray(signs, jnp.float32))


def _named(bed: Bed, part: Part, params: Any) -> np.ndarray:
    found = scores(bed.module, params, bed.heads, part.images, bed.config.head.scale)
    return np.asarray(jnp.argmax(found, axis=-1))


def _right(bed: Bed, params: Any, images: Images) -> np.ndarray:
    return np.asarray(hits(bed.module, params, bed.heads, images, bed.config.head.scale))


@functools.partial(jax.jit, static_argnames="module")
def _slopes(
    module: Any, base: Any, vectors: Any, heads: Array, batch: Batch, temperature: Any
) -> Any:
    objective = cross_entropy(module, heads, temperature)
    return block_slopes(lambda params: objective(params, batch), base, vectors)


@jax.jit
def _combined(base: Any, vectors: Any, coefficients: Any, taken: Array) -> Any:
    def of_leaf(own: Array) -> Array:
        return own * taken.reshape(-1, *(1,) * (own.ndim - 1))

    return trees.combine(base, vectors, jax.tree.map(of_leaf, coefficients))


@jax.jit
def _along(base: Any, model: Any, multiple: Array) -> Any:
    return jax.tree.map(lambda start, end: start + multiple * (end - start), base, model)
