"""Masks of a bed's task vectors, learned from unlabelled images, and their comparisons."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import entr

from experiments.merging.bed import Bed, subtract, take
from experiments.merging.finetuning import scores
from experiments.merging.judging import Part, best
from experiments.merging.ranking import adamerged, drawn_batches, mean_entropy
from experiments.merging.tasks import Images
from rml.merging import draw_mask, expected_mask, learn_mask, mask_logits, mask_vectors
from rml.ops import trees

GIVEN = ("scale", "temperature", "inner_rate")
"""Options of `learn_mask` that a config has."""
probabilities = jax.jit(expected_mask)
"""A mask of logits, in one program."""
behind = jax.jit(mask_vectors)
"""Vectors behind a mask, in one program."""


class Mask(NamedTuple):
    """A learned mask.

    Attributes:
      logits: Its logits.
      losses: Mean entropy in nats at every step.
      rate: The learning rate that was chosen.
      model: What the mask makes of the bed's vectors, by which the rate was chosen.
    """

    logits: Any
    losses: np.ndarray
    rate: float
    model: Any = None


def learned(
    config: Any, bed: Bed, unlabelled: Images, validation: Part, *, bilevel: bool = False,
    sampled: bool = True, by_block: bool = True, **changes: Any,
) -> Mask:  # fmt: skip
    """The mask whose learning rate is best on validation images, by the models that it serves.

    Those are task arithmetic behind the mask, and AdaMerging where it was learned beside such
    coefficients.

    Args:
      config: The run's config.
      bed: The bed.
      unlabelled: Images that the mask is learned from.
      validation: Images that the rate is chosen on.
      bilevel: Whether coefficients take a step ahead of the mask.
      sampled: Whether masks are drawn.
      by_block: Whether each block of a vector has a coefficient, or each vector one.
      **changes: Options of `learn_mask` that are not as the config has them.
    """
    options = config.mask
    given = {k: options[k] for k in GIVEN} | {"clip": False} | changes
    batches = drawn_batches(config, unlabelled, options)
    ahead = drawn_batches(config, unlabelled, options, seed=1) if bilevel else None
    vectors = subtract(bed.experts, bed.base)

    def learn(rate: float) -> tuple[Any, Mask]:
        found = _learned(
            bed.module, bed.base, vectors, bed.heads, batches, ahead, bed.config.head.scale,
            given, rate, jax.random.key(config.seed), sampled=sampled, by_block=by_block,
        )  # fmt: skip
        mask = probabilities(found.logits)
        if bilevel:
            merged = adamerged(
                config, bed, validation, unlabelled=unlabelled, vectors=behind(vectors, mask),
                by_block=by_block,
            )  # fmt: skip
        else:
            merged = masked_arithmetic(config, bed, mask, scale=given["scale"])
        return merged, Mask(found.logits, np.asarray(found.losses), rate, merged)

    return best(bed, validation, options.learning_rates, learn)[1][1]


def course(config: Any, bed: Bed, unlabelled: Images, mask: Mask) -> dict[int, Any]:
    """Models merged behind the drawn mask after a quarter of its steps, after two, three and all.

    Each is learned anew on the first batches alone: draws are by the number of the step, so that
    it is what the mask was there.
    """
    options = config.mask
    given = {key: options[key] for key in GIVEN}
    batches, steps = drawn_batches(config, unlabelled, options), len(mask.losses)
    vectors = subtract(bed.experts, bed.base)
    found = {}
    for quarter in range(1, 4):
        count = -(-quarter * steps // 4)
        own = _learned(
            bed.module, bed.base, vectors, bed.heads, trees.take_tree(batches, slice(count)), None,
            bed.config.head.scale, given, mask.rate, jax.random.key(config.seed), sampled=True,
        )  # fmt: skip
        found[count] = masked_arithmetic(config, bed, probabilities(own.logits))
    return found | {steps: masked_arithmetic(config, bed, probabilities(mask.logits))}


def marginals(bed: Bed, part: Part, params: Any) -> float:
    """Entropy of the mean prediction over its most, log C, a mean over tasks: 0 is one class alone.

    A model whose entropy was minimised may have come to name one class for every image.
    """
    predicted = scores(bed.module, params, bed.heads, part.images, bed.config.head.scale)
    present = np.asarray(jnp.any(bed.heads != 0, axis=-1))
    return share_of_most(
        np.asarray(jax.nn.softmax(predicted)), np.asarray(part.images.task), present
    )


def share_of_most(
    odds: Float[np.ndarray, "n c"], task: Int[np.ndarray, " n"], present: Bool[np.ndarray, "t c"]
) -> float:
    """The mean over tasks of the entropy of mean probabilities over log C.

    Args:
      odds: Probabilities of each image.
      task: Its task.
      present: Which classes each task has.
    """
    means = np.stack([odds[task == own].mean(0) for own in range(len(present))])
    entropy = entr(means.astype(np.float64)).sum(1)
    return float(np.mean(entropy / np.log(present.sum(1))))


def masked_arithmetic(config: Any, bed: Bed, mask: Any, *, scale: float | None = None) -> Any:
    """Task arithmetic with masked and rescaled vectors, at the scale of the config or another."""
    chosen = config.mask.scale if scale is None else scale
    return _arithmetic(bed.base, bed.experts, mask, chosen)


def masked_experts(bed: Bed, mask: Any) -> list[Any]:
    """Each expert with its vector masked and rescaled."""
    whole = _masked(bed.base, bed.experts, mask)
    return [take(whole, i) for i in range(len(bed.tasks))]


def draws(config: Any, logits: Any) -> list[Any]:
    """Relaxed masks that are drawn anew, as the public code evaluates with one of them."""
    keys = jax.random.split(jax.random.key(config.seed + 1), config.mask.draws)
    return [_drawn(key, logits, config.mask.temperature) for key in keys]


def random_mask(config: Any, bed: Bed) -> Any:
    """A mask of fair coins, fixed: what is kept is chosen by nothing."""
    return _coins(jax.random.key(config.seed + 2), bed.base)


@jax.jit
def _coins(key: Array, base: Any) -> Any:
    leaves, structure = jax.tree.flatten(mask_logits(base))
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.bernoulli(key, 0.5, leaf.shape).astype(leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def without(bed: Bed, unseen: tuple[str, ...]) -> Bed:
    """The bed without some of its experts and tasks."""
    kept = [i for i, name in enumerate(bed.tasks) if name not in unseen]
    rows = jnp.asarray(kept)
    names = list(bed.tasks)
    return bed._replace(
        experts=take(bed.experts, rows), heads=bed.heads[rows],
        tasks={names[i]: bed.tasks[names[i]] for i in kept},
    )  # fmt: skip


def of_tasks(part: Part, places: list[int]) -> Part:
    """The images of some tasks, numbered anew, which count as before to one another."""
    task = np.asarray(part.images.task)
    rows = np.flatnonzero(np.isin(task, places))
    number = np.full(task.max() + 1, -1)
    number[places] = np.arange(len(places))
    images = Images(
        part.images.image[rows], part.images.label[rows], jnp.asarray(number[task[rows]])
    )
    return Part(images, part.weights[rows] * len(part.experts) / len(places), part.experts[places])


@jax.jit
def _drawn(key: Array, logits: Any, temperature: Any) -> Any:
    return draw_mask(key, logits, temperature=temperature)


@jax.jit
def _masked(base: Any, experts: Any, mask: Any) -> Any:
    return jax.tree.map(jnp.add, base, mask_vectors(trees.task_vectors(base, experts), mask))


@jax.jit
def _arithmetic(base: Any, experts: Any, mask: Any, scale: Any) -> Any:
    vectors = mask_vectors(trees.task_vectors(base, experts), mask)
    count = jax.tree.leaves(experts)[0].shape[0]
    return trees.combine(base, vectors, jnp.full(count, scale))


@functools.partial(jax.jit, static_argnames=("module", "sampled", "by_block"))
def _learned(
    module: Any, base: Any, vectors: Any, heads: Array, batches: Images, ahead: Images | None,
    scale: Any, options: Any, rate: Any, key: Array, *, sampled: bool, by_block: bool = True,
) -> Any:  # fmt: skip
    return learn_mask(
        mean_entropy(module, heads, scale), base, vectors, batches, key=key, inner_batches=ahead,
        learning_rate=rate, sampled=sampled, by_block=by_block, **options,
    )  # fmt: skip
