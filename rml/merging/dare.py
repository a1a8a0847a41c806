"""DARE: entries of task vectors dropped at random, the rest rescaled."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Key, PyTree

from rml.errors import UserError
from rml.merging.averages import of_floats, task_arithmetic
from rml.ops import trees


@of_floats
def dare(
    base: PyTree,
    experts: PyTree,
    *,
    key: Key[Array, ""],
    rate: ArrayLike = 0.5,
    scale: ArrayLike = 0.3,
) -> PyTree:
    """Drops entries of task vectors at random, rescales the others, and adds the vectors.

    Args:
      base: Parameters θ_0 of the common base.
      experts: Parameters of n experts, stacked on a leading axis.
      key: Key of the draw; every leaf and expert draws its own entries.
      rate: Share of entries that are dropped, at least 0 and below 1.
      scale: Factor of the sum of vectors, as in `task_arithmetic`.

    Returns:
      Parameters of one model.

    Raises:
      ValueError: `scale` is not finite.
      UserError: Experts are not stacked, see `rml.ops.trees.check_stacked`, or as `check_rate` or
        `check_integers`.

    Source: Yu et al., Language Models are Super Mario, arXiv:2311.03099, Section 3.
    """
    trees.check_stacked(base, "experts", experts)
    vectors = drop_and_rescale(trees.task_vectors(base, experts), key=key, rate=rate)
    thinned = jax.tree.map(lambda own, start: trees.wide(start) + own, vectors, base)
    merged = task_arithmetic(jax.tree.map(trees.wide, base), thinned, scale=scale)
    return jax.tree.map(lambda own, start: own.astype(start.dtype), merged, base)


def drop_and_rescale(vectors: PyTree, *, key: Key[Array, ""], rate: ArrayLike) -> PyTree:
    """Keeps each entry with probability 1 - p, divided by it: its expectation stays.

    Args:
      vectors: Arrays of any shapes.
      key: Key of the draw, split over the leaves in their order.
      rate: Probability p of an entry to be dropped, at least 0 and below 1.

    Returns:
      Arrays of the same shapes.

    Raises:
      UserError: As `check_rate`.
    """
    check_rate(rate)
    leaves, structure = jax.tree.flatten(vectors)
    keys = jax.random.split(key, len(leaves))
    kept = 1 - jnp.asarray(rate)
    drawn = [
        jnp.where(jax.random.bernoulli(one, kept, own.shape), own / kept, 0)
        for one, own in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def check_rate(rate: ArrayLike) -> None:
    """Raises `UserError` for a rate of dropping outside [0, 1); a traced one is not looked at."""
    if not isinstance(rate, jax.core.Tracer) and not 0 <= float(np.asarray(rate)) < 1:
        raise UserError(f"rate is {rate}, expected a number in [0, 1)")
