"""The graphs with which many points are clustered."""

from jaxtyping import Array, Float

from rml.errors import unknown
from rml.ops.neighbors import NeighborGraph, knn_graph, mutual, with_self_loops
from rml.ops.topk import Metric

KINDS = ("semidefinite", "mutual", "directed")


def neighbor_graph(
    x: Float[Array, "n d"],
    *,
    neighbors: int,
    kind: str,
    metric: Metric = "euclidean",
    approximate: bool = False,
) -> NeighborGraph | None:
    """Builds the graph of the nearest neighbours for the Laplacian term.

    Args:
      x: The points.
      neighbors: Neighbours of each point, itself not among them.
      kind: "semidefinite" (edges both ways, the diagonal as heavy as its row: the energy never
        increases), "mutual" (without that diagonal) or "directed".
      metric: "euclidean", "cosine" or "dot".
      approximate: Whether neighbours are searched by faiss, see `rml.ops.neighbors.knn_graph`.

    Returns:
      The graph; None for no neighbours.

    Raises:
      UserError: If the kind is unknown.
      ValueError: As `rml.ops.neighbors.knn_graph`.
    """
    if kind not in KINDS:
        raise unknown("graph.kind", kind, KINDS)
    if neighbors == 0:
        return None
    graph = knn_graph(x, k=neighbors, metric=metric, approximate=approximate)
    if kind == "directed":
        return graph
    return with_self_loops(mutual(graph)) if kind == "semidefinite" else mutual(graph)
