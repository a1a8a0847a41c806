"""Transductive few-shot learning as regularised clustering: the full model on an episode.

`rml.fewshot.solver` has the energy and its optimiser, `solve`.
"""

from typing import Any

from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar
from rml.fewshot.checks import require_episode
from rml.fewshot.gram import Distance, Graph, class_mix, episode_gram, neighbour_graph
from rml.fewshot.solver import Prototype, Solution, solve, solve_gram
from rml.ops.precision import full_precision

__all__ = ["Solution", "cluster_episode", "solve", "transductive_clustering"]


@full_precision
def cluster_episode(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    distance: Distance,
    shift: bool,
    graph: Graph | None = None,
    neighbors: int | None = None,
    prototype: Prototype = "mean",
    bandwidth: Scalar | None = None,
    **options: Any,
) -> Float[Array, "q c"]:
    """Assigns the queries by `solve_gram`, started from the support's class means.

    A graph is built where one is named, or where K-modes lacks its bandwidth.
    """
    require_episode(support, support_labels, query, num_classes)
    products = episode_gram(support, query, shift=shift, distance=distance)
    n, affinity = products.shape[0], None
    if graph is not None or (prototype == "mode" and bandwidth is None):
        affinity, length = neighbour_graph(products, neighbors=neighbors, graph=graph or "directed")
        bandwidth = length if bandwidth is None else bandwidth
    solution = solve_gram(
        products,
        class_mix(support_labels, num_classes=num_classes, rows=n).astype(products.dtype),
        points=n,
        support_labels=support_labels,
        affinity=None if graph is None else affinity,
        prototype=prototype,
        cosine=distance == "cosine",
        bandwidth=bandwidth,
        damped=graph == "symmetric",
        **options,
    )
    return solution.assignments.T[support.shape[0] :]


def transductive_clustering(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    laplacian_weight: Scalar = 0.05,
    neighbors: int | None = None,
    temperature: Scalar = 0.1,
    prototype: Prototype = "mean",
    distance: Distance = "squared_euclidean",
    bandwidth: Scalar | None = None,
    graph: Graph = "symmetric",
    shift: bool = True,
    steps: int = 20,
    inner_steps: int = 20,
    tolerance: float = 1e-5,
) -> Float[Array, "q c"]:
    """Clusters support and queries together: prototypes, Laplacian term, support constraints.

    Derivatives are of forward mode only, since the loop ends by convergence.

    Args:
      support: Support features, of about unit length for the defaults.
      support_labels: Their classes, to which they stay assigned.
      query: Query features.
      num_classes: Number of classes c.
      laplacian_weight: λ; best chosen on validation classes, as in the paper.
      neighbors: Edges of a point in the graph of support and queries; by default 3, or as many as
        there are other points.
      temperature: T of the entropy barrier; 1 in the papers' code, which computes prototypes
        from hard assignments instead.
      prototype: "mean" (K-means) or "mode" (K-modes).
      distance: "squared_euclidean" or "cosine".
      bandwidth: σ of K-modes; by default the root mean square length of the graph's edges.
      graph: "symmetric", or "directed" as in the papers' code. An edge that does not return is no
        term of any energy: E may then rise, and the end depends on the number of updates.
      shift: Move the queries onto the support's mean first, as the papers' code does.
      steps: The most rounds of prototypes and assignments.
      inner_steps: The most assignment updates in a round.
      tolerance: Relative change of E at which to stop.

    Returns:
      The queries' assignments.

    Raises:
      ValueError: If the arrays are not an episode, an option is unknown, `temperature` or
        `bandwidth` is not above 0, `laplacian_weight`, `steps` or `inner_steps` is below 0, or the
        episode has no more than `neighbors` points.

    Source: Ziko et al., arXiv:2106.09516 ("SLK" in its public code).
    """
    return cluster_episode(
        support, support_labels, query, num_classes=num_classes, distance=distance, shift=shift,
        graph=graph, neighbors=neighbors, prototype=prototype, bandwidth=bandwidth,
        laplacian_weight=laplacian_weight, temperature=temperature, steps=steps,
        inner_steps=inner_steps, tolerance=tolerance,
    )  # fmt: skip
