"""K-modes with the support's labels: prototypes are modes of a Gaussian kernel density."""

from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar
from rml.fewshot.gram import Distance
from rml.fewshot.transductive_clustering import cluster_episode


def k_modes(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    bandwidth: Scalar | None = None,
    neighbors: int | None = None,
    temperature: Scalar = 0.1,
    distance: Distance = "squared_euclidean",
    shift: bool = True,
    steps: int = 20,
    tolerance: float = 1e-5,
) -> Float[Array, "q c"]:
    """Assigns queries to the modes that mean-shift steps find from the support's class means.

    Derivatives are of forward mode only, since the loop ends by convergence.

    Args:
      support: Support features.
      support_labels: Their classes, to which they stay assigned.
      query: Query features.
      num_classes: Number of classes c.
      bandwidth: σ of the Gaussian kernel; by default the root mean square distance of the points
        to their neighbours (the papers' code estimates it from a kNN graph as well).
      neighbors: Neighbours by which the bandwidth is estimated; by default 3, or as many as there
        are other points.
      temperature: T of the entropy barrier, which divides the kernel values.
      distance: "squared_euclidean", or "cosine" for unit features and modes.
      shift: Move the queries onto the support's mean first, as the papers' code does.
      steps: The most rounds, one mean-shift step in each.
      tolerance: Relative change of the energy at which to stop.

    Returns:
      The queries' assignments.

    Raises:
      ValueError: If the arrays are not an episode, `distance` is unknown, `temperature` or
        `bandwidth` is not above 0, `steps` is below 0, or the episode has no more than `neighbors`
        points.

    Source: Ziko et al., arXiv:2106.09516, "K-modes" in its tables; model of arXiv:1810.13044.
    """
    return cluster_episode(
        support, support_labels, query, num_classes=num_classes, distance=distance, shift=shift,
        neighbors=neighbors, bandwidth=bandwidth, prototype="mode", temperature=temperature,
        steps=steps, tolerance=tolerance,
    )  # fmt: skip
