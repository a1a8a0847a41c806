"""Clustering of a million points on one machine, or of more over a mesh."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from rml.errors import UserError, unknown
from rml.evaluation.checks import require_finite
from rml.fewshot.clustering.assign import ROWS, WHOLE, over_rows
from rml.fewshot.clustering.lloyd import Solution, lloyd
from rml.fewshot.clustering.sparse_bound import sparse_bound
from rml.fewshot.clustering.starts import kmeans_parallel, kmeans_plus_plus, random_rows
from rml.ops.neighbors import NeighborGraph
from rml.ops.similarity import normalize
from rml.training.mesh import BATCH_AXES, batch_sharding, check_divisible
from rml.training.processes import local_copy

STARTS = ("k-means++", "k-means||", "random")
METRICS = ("euclidean", "cosine")
ASSIGNMENT_UPDATES = 5
"""Updates of all assignments between two of the prototypes, where nothing else is said."""


class Clustering(NamedTuple):
    """A clustering of n points.

    Attributes:
      labels: The cluster of each point, that of the largest membership.
      prototypes: One prototype for each cluster.
      energies: Energy after the assignments of each iteration, NaN beyond the last.
      iterations: Iterations used.
      inertia: Sum of squared distances of the points to the prototypes of their labels.
      clusters: The s clusters that a point may belong to, largest membership first.
      memberships: Its memberships in them; 1 in the only one where assignments are hard.
    """

    labels: Int[Array, " n"]
    prototypes: Float[Array, "k d"]
    energies: Float[Array, " t"]
    iterations: Int[Array, ""]
    inertia: Float[Array, ""]
    clusters: Int[Array, "n s"]
    memberships: Float[Array, "n s"]

    @classmethod
    def of(cls, found: Solution) -> "Clustering":
        """Makes the clustering that an optimiser found."""
        return cls(labels=found.clusters[:, 0], **found._asdict())


def cluster(
    x: Float[Array, "n d"],
    *,
    num_clusters: int,
    key: Key[Array, ""] | None = None,
    start: str | Float[Array, "k d"] = "k-means++",
    metric: str = "euclidean",
    graph: NeighborGraph | None = None,
    laplacian_weight: float | Float[Array, ""] = 0.0,
    temperature: float = 0.0,
    support: int = 1,
    assignment_updates: int | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    empty: str = "farthest",
    block: int | None = None,
    mesh: Mesh | None = None,
) -> Clustering:
    """Clusters points by prototypes, with the Laplacian term of a graph where one is given.

    Without graph and temperature this is K-means by Lloyd's iteration. Otherwise each point holds
    memberships in at most `support` clusters, found by the bound optimiser of `sparse_bound`,
    whose energy never increases where the graph is symmetric and positive semidefinite. No array
    of n x k numbers exists in either.

    Args:
      x: The points.
      num_clusters: Number of clusters k, at most n.
      key: Key of the start; not needed where prototypes are given.
      start: "k-means++", "k-means||" (few passes, for many clusters), "random" (distinct rows),
        or the first prototypes.
      metric: "euclidean", or "cosine": points and prototypes have unit length (spherical
        K-means), where a squared distance is twice one less the cosine.
      graph: Affinities between points, from `rml.ops.neighbors.knn_graph`. A directed graph is
        taken as it is; the energy may then rise.
      laplacian_weight: Weight λ of the Laplacian term, which needs a graph.
      temperature: Weight τ of the entropy barrier; 0 makes assignments hard.
      support: Clusters s that one point may belong to; k makes the optimiser the dense one.
      assignment_updates: Updates of all assignments between two updates of the prototypes, with
        graph or temperature alone; 5 by default.
      max_iterations: Iterations at most.
      tolerance: Without graph and temperature, stop when the squared movement of all prototypes
        is at most this times the mean variance of a feature, or no label changes, as
        scikit-learn does. Otherwise stop when the energy falls by at most this share of itself.
      empty: What becomes of an empty cluster of K-means: "farthest" moves the farthest point to
        it, "keep" leaves its prototype where it was. The bound optimiser keeps it.
      block: Points handled at a time; intermediates hold k * block numbers, and of soft
        assignments support * block * d. Automatic by default.
      mesh: Mesh over whose batch axes the points are sharded and the prototypes are reduced. Of
        several processes each gives all points and gets the whole clustering.

    Returns:
      The clustering. With fewer distinct points than clusters, some clusters stay empty.

    Raises:
      UserError: If there are fewer points than clusters, values that are not finite, shapes that
        do not fit each other or the mesh, or an option without meaning.

    Source: Ziko et al. 2021, Transductive Few-Shot Learning: Clustering is All You Need?
      (arXiv 2106.09516), without support; the limit to s clusters is ours.
    """
    _check(x, num_clusters, start, graph, temperature, support, empty, max_iterations, block, mesh)
    _check_bound(graph, laplacian_weight, temperature, assignment_updates)
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    spherical = metric == "cosine"
    if spherical:
        x = normalize(x)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if mesh is not None:
        x, graph = jax.device_put((x, graph), batch_sharding(mesh))
    if not isinstance(start, str):
        prototypes = jnp.asarray(normalize(start) if spherical else start, dtype)
    elif key is None:
        raise UserError(f"start {start!r} draws, so it needs a key")
    elif start == "k-means||":
        prototypes = kmeans_parallel(
            x, num_clusters=num_clusters, key=key, block=block, mesh=mesh
        ).astype(dtype)
    else:
        draw = kmeans_plus_plus if start == "k-means++" else random_rows
        prototypes = draw(x, num_clusters=num_clusters, key=key).astype(dtype)
    soft = graph is not None or temperature > 0
    found = _solve(
        x,
        prototypes,
        graph,
        jnp.asarray(laplacian_weight, dtype),
        jnp.asarray(temperature, dtype),
        soft=soft,
        support=support,
        assignment_updates=assignment_updates or ASSIGNMENT_UPDATES,
        max_iterations=max_iterations,
        tolerance=tolerance,
        reseed=empty == "farthest",
        block=block,
        spherical=spherical,
        mesh=mesh,
    )
    return local_copy(Clustering.of(found))


@partial(
    jax.jit,
    static_argnames=(
        "soft",
        "support",
        "assignment_updates",
        "max_iterations",
        "tolerance",
        "reseed",
        "block",
        "spherical",
        "mesh",
    ),
)
def _solve(
    x: Array,
    prototypes: Array,
    graph: NeighborGraph | None,
    laplacian_weight: Array,
    temperature: Array,
    *,
    soft: bool,
    support: int,
    assignment_updates: int,
    reseed: bool,
    mesh: Mesh | None,
    **options: Any,
) -> Solution:
    axes = None if mesh is None else BATCH_AXES
    specs: tuple = (ROWS, WHOLE)
    out = Solution(ROWS, ROWS, WHOLE, WHOLE, WHOLE, WHOLE)
    if not soft:
        run = partial(lloyd, reseed=reseed, axis_name=axes, **options)
        return over_rows(run, mesh, specs, out)(x, prototypes)

    def bound(x: Array, prototypes: Array, graph: Any, weight: Array, tau: Array) -> Solution:
        return sparse_bound(
            x,
            prototypes,
            graph,
            laplacian_weight=weight,
            temperature=tau,
            support=support,
            assignment_updates=assignment_updates,
            axis_name=axes,
            **options,
        )

    specs += (None if graph is None else ROWS, WHOLE, WHOLE)
    return over_rows(bound, mesh, specs, out)(x, prototypes, graph, laplacian_weight, temperature)


def _check(
    x: Array,
    k: int,
    start: Any,
    graph: NeighborGraph | None,
    temperature: float,
    support: int,
    empty: str,
    max_iterations: int,
    block: int | None,
    mesh: Mesh | None,
) -> None:
    n = x.shape[0]
    if not 1 <= k <= n:
        raise UserError(f"num_clusters must be between 1 and the {n} points, got {k}")
    if isinstance(start, str):
        if start not in STARTS:
            raise unknown("start", start, STARTS)
    elif start.shape != (k, x.shape[1]):
        raise UserError(
            f"start must hold {k} prototypes of {x.shape[1]} features, got shape {start.shape}"
        )
    else:
        require_finite("start", start)
    if empty not in ("farthest", "keep"):
        raise unknown("empty", empty, ("farthest", "keep"))
    if not temperature >= 0:
        raise UserError(f"temperature must be at least 0, got {temperature}")
    if not 1 <= support <= k:
        raise UserError(f"support must be between 1 and the {k} clusters, got {support}")
    if support > 1 and temperature == 0:
        raise UserError(f"support {support} needs a temperature above 0: assignments are hard at 0")
    if graph is not None and graph.indices.shape[0] != n:
        raise UserError(
            f"graph must have a row for each of {n} points, got shape {graph.indices.shape}"
        )
    for name, value in (("max_iterations", max_iterations), ("block", block)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if mesh is not None:
        check_divisible({"x": x}, {"x": batch_sharding(mesh)})
    require_finite("x", x)


def _check_bound(
    graph: NeighborGraph | None,
    laplacian_weight: float | Array,
    temperature: float,
    assignment_updates: int | None,
) -> None:
    """Refuses options of the bound optimiser that would change nothing or have no meaning."""
    known = not isinstance(laplacian_weight, jax.core.Tracer)
    if graph is None and known and laplacian_weight != 0:
        raise UserError(f"laplacian_weight {laplacian_weight} needs a graph, got none")
    if known and not laplacian_weight >= 0:
        raise UserError(f"laplacian_weight must be at least 0, got {laplacian_weight}")
    if assignment_updates is None:
        return
    if graph is None and temperature == 0:
        raise UserError(
            f"assignment_updates {assignment_updates} needs a graph or a temperature above 0: "
            "K-means assigns once"
        )
    if assignment_updates < 1:
        raise UserError(f"assignment_updates must be at least 1, got {assignment_updates}")
