"""What gates say: how sparse and binary they are, which classes they relate."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.hydra.feature_filter import gate_penalty
from rml.ops.precision import full_precision
from rml.ops.shapes import check_indices, check_shapes
from rml.ops.similarity import wide

Matrix = Array | np.ndarray


def gate_sparsity(gates: Float[Array, "n d"], *, threshold: float = 0.5) -> Float[Array, ""]:
    """Computes the share of gates that are closed.

    Args:
      gates: Gates in [0, 1].
      threshold: A gate below it is closed.

    Returns:
      0 where all gates are open, 1 where all are closed.
    """
    return jnp.mean(gates < threshold)


def gate_binariness(gates: Float[Array, "n d"]) -> Float[Array, ""]:
    """Computes the mean of (2 g - 1)²: 1 where all gates are 0 or 1, 0 where all are 1/2."""
    return 1 - gate_penalty(gates)


def gate_statistics(gates: Float[Array, "*n d"]) -> dict[str, Float[Array, ""]]:
    """Computes `gate_sparsity` and `gate_binariness` under these names, to be logged.

    Args:
      gates: Gates in [0, 1], such as those of every pair of classes.

    Returns:
      The two numbers.
    """
    rows = gates.reshape(-1, gates.shape[-1])
    return {"gate_sparsity": gate_sparsity(rows), "gate_binariness": gate_binariness(rows)}


def pair_statistics(gates: Callable[[Array, Array], Array], classes: int) -> dict[str, Array]:
    """Computes `gate_statistics` of every ordered pair of classes, those of one first class a step.

    Memory grows with the number of classes, not with that of pairs.

    Args:
      gates: Gates [n, d] in [0, 1] of first and second classes, [n] each.
      classes: Number of classes C.

    Returns:
      The two numbers.
    """
    second = jnp.arange(classes)
    rows = jax.lax.map(
        lambda first: gate_statistics(gates(jnp.full_like(second, first), second)), second
    )
    return jax.tree.map(jnp.mean, rows)


def all_pairs(classes: int) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Lists every ordered pair of classes, row by row, for a few hundred classes at most.

    Args:
      classes: Number of classes C.

    Returns:
      First and second class of the C² pairs.
    """
    first, second = jnp.divmod(jnp.arange(classes * classes), classes)
    return first, second


@jax.jit  # a loop outside of a program would be compiled at every call
def gate_overlap(gates: Float[Array, "c d"]) -> Float[Array, "c c"]:
    """Computes Σ min(g_i, g_j) / Σ max(g_i, g_j), the Jaccard similarity of open gates.

    Args:
      gates: Gates of each class with itself.

    Returns:
      A symmetric matrix in [0, 1] with ones on its diagonal, but 0 for a class that opens no gate.
    """
    # a + b = min + max and |a - b| = max - min; a row at a time, not all C x C x d differences.
    total = jnp.sum(gates, 1)
    apart = jax.lax.map(lambda gate: jnp.sum(jnp.abs(gate - gates), 1), gates)
    both = total[:, None] + total[None]
    return (both - apart) / jnp.maximum(both + apart, 1e-12)


def shared_openness(gates: Float[Array, "c c d"]) -> Float[Array, "c c"]:
    """Computes how many gates a pair opens beside how many its two classes open alone.

    Args:
      gates: Gates of every pair of classes.

    Returns:
      Σ g_ij / sqrt(Σ g_ii Σ g_jj), symmetric with ones on its diagonal, but 0 for a class that
      opens no gate.
    """
    opened = jnp.sum(gates, -1)
    alone = jnp.maximum(jnp.diagonal(opened), 1e-12)
    some = alone > 1e-12
    # A pair may open gates that a class of it does not open alone.
    shared = opened / jnp.sqrt(alone[:, None] * alone[None])
    return jnp.where(some[:, None] & some[None], shared, 0)


@full_precision
def confusion_similarity(
    probabilities: Float[Array, "n c"], labels: Int[Array, " n"]
) -> Float[Array, "c c"]:
    """Computes how much a classifier takes classes for one another.

    Args:
      probabilities: Predicted probabilities of each example.
      labels: Classes of the examples.

    Returns:
      The mean probability of class j for examples of class i, made symmetric by its mean with the
      transpose, in float32 or wider.

    Raises:
      ValueError: Shapes do not fit or, outside `jit`, a label is out of range.
    """
    check_shapes(probabilities=(probabilities, "n c"), labels=(labels, "n"))
    classes = probabilities.shape[1]
    check_indices("labels", labels, classes)
    (probabilities,) = wide(probabilities)  # bfloat16 counts to 256
    one_hot = (labels[:, None] == jnp.arange(classes)).astype(probabilities.dtype)
    mean = one_hot.T @ probabilities / jnp.maximum(jnp.sum(one_hot, 0), 1)[:, None]
    return (mean + mean.T) / 2


def relation_correlation(one: Float[Matrix, "c c"], other: Float[Matrix, "c c"]) -> float:
    """Computes whether two similarities of classes rank the pairs of two classes alike.

    Args:
      one: A symmetric similarity of classes.
      other: Another one of the same classes.

    Returns:
      Spearman's correlation over the pairs i < j.

    Raises:
      ValueError: They are not of the same classes.
    """
    from scipy.stats import spearmanr

    check_shapes(one=(one, "c c"), other=(other, "c c"))
    pairs = np.triu_indices(len(one), 1)
    return float(spearmanr(np.asarray(one)[pairs], np.asarray(other)[pairs])[0])


class RankTest(NamedTuple):
    """Whether classes of one group are more alike than others, and the same of a null.

    Attributes:
      correlation: Spearman's correlation of the similarity with being of one group, over pairs.
      p: Share of permuted taxonomies that correlate at least as much, the true one counted among
        them: the p-value of a permutation test over classes.
      null_correlation: The correlation of one more permuted taxonomy.
      null_p: Its p-value.
    """

    correlation: float
    p: float
    null_correlation: float
    null_p: float


def taxonomy_test(
    similarity: Float[Matrix, "c c"], groups: Sequence[str], *, permutations: int, seed: int
) -> RankTest:
    """Tests whether a similarity of classes ranks pairs of one group above other pairs.

    Pairs that share a class are not independent. The test therefore permutes which class is in
    which group, and never pairs (Mantel 1967, The detection of disease clustering).

    Args:
      similarity: A symmetric similarity of classes; its diagonal is not read.
      groups: Group of each class, two different ones at least, one of them with two classes.
      permutations: Number of permuted taxonomies.
      seed: Seed of the permutations.

    Returns:
      The test, and what it says of a permuted taxonomy.

    Raises:
      ValueError: The groups are not one a class, or no two pairs differ in being of one group.
    """
    from scipy.stats import rankdata

    classes = len(similarity)
    if len(groups) != classes:
        raise ValueError(f"{len(groups)} groups of {classes} classes, expected one a class")
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    member = np.eye(number.max() + 1)[number]
    pairs = np.triu_indices(classes, 1)
    together = (member @ member.T)[pairs]
    if not together.size or together.min() == together.max():
        raise ValueError("groups have no pair of classes within one, or no pair across two")
    ranks = np.zeros((classes, classes))
    ranks[pairs] = rankdata(np.asarray(similarity)[pairs])
    ranks[pairs] -= ranks[pairs].mean()
    # Of permuted groups as many pairs are together: their mean and variance stay as they are.
    scale = np.sqrt(np.sum(ranks**2) * np.sum((together - together.mean()) ** 2))
    ranks += ranks.T

    def correlation(order: Int[np.ndarray, " c"]) -> float:
        own = member[order]
        return float(np.sum(own * (ranks @ own)) / 2 / max(scale, 1e-12))

    rng = np.random.default_rng(seed)
    found, null, *drawn = (
        correlation(order)
        for order in (
            np.arange(classes), *(rng.permutation(classes) for _ in range(permutations + 1))
        )
    )  # fmt: skip
    reached = np.asarray(drawn) + 1e-12  # equal correlations may differ by rounding

    def p_value(value: float) -> float:
        return float((1 + np.sum(reached >= value)) / (1 + permutations))

    return RankTest(found, p_value(found), null, p_value(null))
