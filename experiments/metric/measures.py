"""How well classes that were never trained on are told apart, alone and beside trained ones."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rml.errors import UserError
from rml.metric import cosine_logits
from rml.ops import normalize


class Novel(NamedTuple):
    """Accuracies by class vectors, a draw of support examples each.

    Attributes:
      disjoint: Accuracies of novel examples among novel classes.
      new: Accuracies of novel examples among trained and novel classes.
      old: Accuracies of examples of trained classes among both.
      harmonic: Harmonic means of `new` and `old`.
    """

    disjoint: Float[Array, " e"]
    new: Float[Array, " e"]
    old: Float[Array, " e"]
    harmonic: Float[Array, " e"]


@partial(jax.jit, static_argnames=("classes", "draws"))
def novel_accuracies(
    key: Key[Array, ""],
    vectors: Float[Array, "k d"],
    old: Float[Array, "m d"],
    old_labels: Int[Array, " m"],
    novel: Float[Array, "n d"],
    novel_labels: Int[Array, " n"],
    shots: Int[Array, " c"],
    *,
    classes: int,
    draws: int,
) -> Novel:
    """Measures accuracies when novel classes get a vector each from drawn examples.

    Examples that are drawn are not classified.

    Args:
      key: Key of the draws.
      vectors: Vectors of the trained classes.
      old: Embeddings of examples of trained classes.
      old_labels: Their classes.
      novel: Embeddings of examples of novel classes.
      novel_labels: Their classes, from 0.
      shots: Number of examples that make the vector of each novel class.
      classes: Number c of novel classes.
      draws: Number of draws.

    Returns:
      Accuracies of each draw.
    """
    own = cosine_logits(old, vectors)
    own_right, own_best = jnp.argmax(own, axis=1) == old_labels, jnp.max(own, axis=1)
    other_best = jnp.max(cosine_logits(novel, vectors), axis=1)
    rows = normalize(novel)

    def of_draw(key: Array) -> Novel:
        # Sorted by class, then by random numbers: the place within the class is a random rank.
        order = jnp.lexsort((jax.random.uniform(key, novel_labels.shape), novel_labels))
        sizes = jnp.bincount(novel_labels, length=classes)
        place = jnp.arange(len(order)) - jnp.take(jnp.cumsum(sizes) - sizes, novel_labels[order])
        rank = jnp.zeros_like(place).at[order].set(place)
        support = rank < shots[novel_labels]
        means = jax.ops.segment_sum(rows * support[:, None], novel_labels, classes)
        among = cosine_logits(novel, means)
        right, best = jnp.argmax(among, axis=1) == novel_labels, jnp.max(among, axis=1)
        queries = ~support

        def share(found: Array) -> Array:
            return jnp.sum(found & queries) / jnp.sum(queries)

        new = share(right & (best > other_best))
        kept = own_best > jnp.max(cosine_logits(old, means), axis=1)
        remaining = jnp.mean(own_right & kept)
        harmonic = 2 * new * remaining / jnp.maximum(new + remaining, 1e-9)
        return Novel(share(right), new, remaining, harmonic)

    return jax.lax.map(of_draw, jax.random.split(key, draws))


def numbers_of_shots(shots: Sequence[int], labels: Any, classes: int) -> dict[str, np.ndarray]:
    """Names numbers of support examples: each of some, and half of every class's examples.

    Args:
      shots: Numbers of examples.
      labels: Classes of the examples there are.
      classes: Number of classes.

    Returns:
      By name, such as "5shot" and "half", a number of each class.

    Raises:
      UserError: A class would have no example left to classify, or none to make its vector of.
    """
    sizes = np.bincount(np.asarray(labels), minlength=classes)
    for one in (*shots, 1):
        if one >= sizes.min():
            raise UserError(
                f"evaluation.shots has {one}, expected fewer than the {sizes.min()} examples of "
                "the smallest class, of which some are classified"
            )
    return {f"{one}shot": np.full(classes, one) for one in shots} | {"half": sizes // 2}


def described(place: str, found: Novel) -> dict[str, float]:
    """Means over draws by name, `<place>_<accuracy>`."""
    return {f"{place}_{name}": float(jnp.mean(each)) for name, each in found._asdict().items()}
