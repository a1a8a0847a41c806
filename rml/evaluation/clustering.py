"""Agreement of a clustering with classes; computed on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

# scikit-learn takes as long to import as JAX, and only these functions need it.


def clustering_accuracy(labels: Int[Array, " n"], clusters: Int[Array, " n"]) -> float:
    """Computes accuracy under the best one-to-one match of clusters to classes (Hungarian method).

    Args:
      labels: True classes, any integers.
      clusters: Cluster of each row, any integers; a cluster beyond the number of classes stays
        unmatched and counts as wrong.

    Returns:
      A number between 0 and 1.

    Raises:
      ValueError: If there are no rows or the lengths differ.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    _check(labels, clusters)
    table = contingency_matrix(np.asarray(labels), np.asarray(clusters))
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())


def clustering_scores(labels: Int[Array, " n"], clusters: Int[Array, " n"]) -> dict[str, float]:
    """Computes scores of a clustering, none of which depends on how clusters are numbered.

    Args:
      labels: True classes, any integers.
      clusters: Cluster of each row, any integers.

    Returns:
      `nmi` (normalised by the arithmetic mean), `ari` (adjusted Rand index) and `accuracy`.

    Raises:
      ValueError: If there are no rows or the lengths differ.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    _check(labels, clusters)
    true, found = np.asarray(labels), np.asarray(clusters)
    return {
        "nmi": float(normalized_mutual_info_score(true, found)),
        "ari": float(adjusted_rand_score(true, found)),
        "accuracy": clustering_accuracy(labels, clusters),
    }


class VMeasure(NamedTuple):
    """Agreement of a clustering with classes, in shares of an entropy.

    Attributes:
      homogeneity: 1 if each cluster has rows of one class only.
      completeness: 1 if each class is in one cluster only.
      v_measure: Their weighted harmonic mean.
    """

    homogeneity: float
    completeness: float
    v_measure: float


def v_measure(
    labels: Int[Array, " n"], clusters: Int[Array, " n"], *, beta: float = 1.0
) -> VMeasure:
    """Computes homogeneity and completeness of a clustering, and V-measure, their harmonic mean.

    Args:
      labels: True classes, any integers.
      clusters: Cluster of each row, any integers.
      beta: Weight of completeness against homogeneity; at 1 the V-measure is the `nmi` of
        `clustering_scores`.

    Returns:
      The three numbers, of scikit-learn.

    Raises:
      ValueError: If there are no rows or the lengths differ.

    Source: Rosenberg and Hirschberg 2007, V-Measure.
    """
    from sklearn.metrics import homogeneity_completeness_v_measure

    _check(labels, clusters)
    given = np.asarray(labels), np.asarray(clusters)
    return VMeasure(*map(float, homogeneity_completeness_v_measure(*given, beta=beta)))


def _check(labels: Array, clusters: Array) -> None:
    if labels.shape != clusters.shape or labels.size == 0:
        raise ValueError(
            f"labels and clusters must be two non-empty arrays of one length, got shapes "
            f"{labels.shape} and {clusters.shape}"
        )
