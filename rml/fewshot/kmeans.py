"""K-means with the support's labels, soft and hard."""

from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar
from rml.fewshot.gram import Distance
from rml.fewshot.transductive_clustering import cluster_episode


def soft_kmeans(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    temperature: Scalar = 0.1,
    distance: Distance = "squared_euclidean",
    shift: bool = True,
    steps: int = 20,
    tolerance: float = 1e-5,
) -> Float[Array, "q c"]:
    """Runs soft K-means from the support's class means: the full model without Laplacian term.

    Derivatives are of forward mode only, since the loop ends by convergence.

    Args:
      support: Support features, of about unit length for the defaults.
      support_labels: Their classes, to which they stay assigned.
      query: Query features.
      num_classes: Number of classes c.
      temperature: T of the entropy barrier, which divides the distances.
      distance: "squared_euclidean" or "cosine".
      shift: Move the queries onto the support's mean first, as the papers' code does.
      steps: The most rounds.
      tolerance: Relative change of the energy at which to stop.

    Returns:
      The queries' assignments.

    Raises:
      ValueError: If the arrays are not an episode, `distance` is unknown, `temperature` is not
        above 0, or `steps` is below 0.

    Source: Ziko et al., arXiv:2106.09516, the non-regularised case.
    """
    return cluster_episode(
        support, support_labels, query, num_classes=num_classes, distance=distance, shift=shift,
        temperature=temperature, steps=steps, tolerance=tolerance,
    )  # fmt: skip


def hard_kmeans(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    distance: Distance = "squared_euclidean",
    shift: bool = True,
    steps: int = 20,
) -> Float[Array, "q c"]:
    """Runs Lloyd's K-means from the support's class means, the support held at its labels.

    Derivatives are zero, since assignments are constant but for jumps.

    Args:
      support: Support features.
      support_labels: Their classes, to which they stay assigned.
      query: Query features.
      num_classes: Number of classes c.
      distance: "squared_euclidean" or "cosine".
      shift: Move the queries onto the support's mean first, as the papers' code does.
      steps: The most rounds; stops earlier when no assignment changes.

    Returns:
      One-hot assignments of the queries.

    Raises:
      ValueError: If the arrays are not an episode, `distance` is unknown, or `steps` is below 0.

    Source: Ziko et al., arXiv:2106.09516, "K-means" in its tables.
    """
    return cluster_episode(
        support, support_labels, query, num_classes=num_classes, distance=distance, shift=shift,
        hard=True, steps=steps,
    )  # fmt: skip
