"""Clustering of many points: agreement with classes, energy, time against the number of points.

The optimiser of Ziko et al., arXiv:2106.09516, without support; with hard assignments and no graph
it is K-means; where a graph is asked for, the model is scored for several λ from the same start.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.evaluators import pixels
from experiments.common.timing import least_seconds
from experiments.fewshot import drawing
from rml import data, evaluation
from rml.errors import UserError, unknown
from rml.fewshot import clustering, largest_increase
from rml.ops.pairwise import squared_euclidean
from rml.training import Claim, Progress, RunDirectory, make_mesh
from rml.training.mesh import batch_sharding, check_divisible

SOURCE = "arXiv:2106.09516: point-wise updates scale to large problems; margins are ours"
CLAIMS = (
    Claim("The cost of an iteration, the graph given, grows linearly with points: slope of log "
          "time against log n of 1, within 0.2",
          "cost_slope_error", "<=", 0.2, f"{SOURCE}; worded anew after the first measurement",
          stated="2026-11-24", null="cost_slope_error_pairs", any_data=True,
          says="The time of an iteration grows with the number of points to the power of "
          "{cost_slope:.2f}, {mean:.2f} off linear"),
)  # fmt: skip
CAPTIONS = {
    "energy.png": "Energy against iterations.",
    "scores.png": "Agreement of clusters with classes against λ; 0 is (soft) K-means.",
    "time.png": "Time of an iteration, and of the distances of all pairs, against the number of "
    "points, with the fitted slopes.",
    "clusters.png": "Clusters and classes that fall into them, clusters by their largest class.",
}
PICTURE = "clusters.png"


def load_points(config: Any) -> tuple[jax.Array, jax.Array]:
    """Points [n, d] and classes [n]: images of `data` as vectors, or draws from a mixture."""
    options = config.points.to_dict()
    if (origin := options.pop("of")) == "mixture":
        return clustering.gaussian_mixture(jax.random.key(config.seed), **options)
    if origin != "pixels":
        raise unknown("points.of", origin, ("pixels", "mixture"))
    source = data.require_labels(data.load(**config.data.to_dict()), config.experiment)
    arrays = source.arrays()
    return pixels(arrays["image"]), jnp.asarray(arrays["label"])


def build_graph(config: Any, points: jax.Array) -> Any:
    """The graph of the nearest neighbours, or None where none is asked for."""
    options = config.graph.to_dict()
    if not options.pop("laplacian_weights") and options["neighbors"]:
        raise UserError("graph.laplacian_weights is empty, expected values of λ for the graph")
    return clustering.neighbor_graph(points, metric=config.cluster.metric, **options)


def check_sizes(config: Any, points: jax.Array) -> None:
    """Raises `UserError` unless all points, and each number that is timed, fit data and mesh."""
    rows, clusters = batch_sharding(make_mesh(config.mesh)), config.cluster.num_clusters
    for key, n in [("sizes", n) for n in (len(points), *config.timing.sizes)] + [
        ("pairs", n) for n in config.timing.pairs
    ]:
        if not clusters <= n <= len(points):
            raise UserError(
                f"timing.{key} has {n}, expected {clusters} clusters or more and at most the "
                f"{len(points)} points"
            )
        part = jax.ShapeDtypeStruct((n, points.shape[1]), points.dtype)
        check_divisible({"points": part}, {"points": rows})


def check_slopes(config: Any) -> None:
    """Raises `UserError` unless each slope has two numbers of points or more to be fitted to."""
    for key in ("sizes", "pairs"):
        given = tuple(config.timing[key])
        if len(set(given)) < 2:
            raise UserError(
                f"timing.{key} is {given}, expected two different numbers of points or more, to "
                "which a slope is fitted"
            )


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Clusters, scores, times subsets of the points, draws."""
    check_slopes(config)
    points, classes = load_points(config)
    check_sizes(config, points)
    graph = build_graph(config, points)
    given = config.cluster.to_dict() | {"mesh": make_mesh(config.mesh)}
    weights = (0.0, *config.graph.laplacian_weights) if graph is not None else (0.0,)
    metrics: dict[str, float] = {}
    courses, scores = {}, []
    for weight in weights:
        graphed = {"graph": graph if weight else None, "laplacian_weight": weight}
        started = time.perf_counter()
        found = clustering.cluster(points, key=jax.random.key(config.seed), **graphed, **given)
        iterations = int(jax.block_until_ready(found).iterations)
        took = time.perf_counter() - started
        courses[f"λ = {weight:g}"] = np.asarray(found.energies)[:iterations]
        scores.append(evaluation.clustering_scores(classes, found.labels))
        counted = {"seconds": took, "iterations": iterations, "inertia": float(found.inertia)}
        suffix = f"_weight_{weight:g}" if weight else ""
        metrics |= {f"{name}{suffix}": value for name, value in (scores[-1] | counted).items()}
    metrics["energy_increase"] = max(largest_increase(e[None]) for e in courses.values())
    seconds = measure_times(config, points)
    metrics |= {f"seconds_an_iteration_{n}": value for n, value in seconds.items()}
    pairs = time_pairs(config, points)
    times = {
        "measured": (list(seconds), list(seconds.values())),
        "all pairs": (list(pairs), list(pairs.values())),
    }
    slopes = figures.loglog(run.figure("time.png"), times, "points", "time of an iteration (s)")
    metrics["cost_slope"] = slopes["measured"]
    metrics["cost_slope_error"] = abs(slopes["measured"] - 1)
    metrics["cost_slope_error_pairs"] = abs(slopes["all pairs"] - 1)
    falls = {name: (np.arange(1, len(e) + 1), e / e[0]) for name, e in courses.items()}
    figures.curves(run.figure("energy.png"), falls, "iteration", "energy as a share of the first")
    if len(scores) > 1:
        lines = {n: (weights, [s[n.lower()] for s in scores]) for n in ("NMI", "ARI", "accuracy")}
        figures.curves(run.figure("scores.png"), lines, "λ", "agreement with classes")
    drawing.draw_clusters(run.figure, found.labels, classes)
    return metrics


def time_pairs(config: Any, points: jax.Array) -> dict[int, float]:
    """Seconds of the distances of all pairs, as methods take them that scale otherwise."""
    mean = jax.jit(lambda x: jnp.mean(squared_euclidean(x, x)))
    return {
        n: least_seconds(partial(mean, points[:n]), repeats=config.timing.repetitions)
        for n in config.timing.pairs
    }


def measure_times(config: Any, points: jax.Array) -> dict[int, float]:
    """Seconds of one iteration for growing numbers of points."""
    clusters, key = config.cluster.num_clusters, jax.random.key(config.seed + 1)
    options = config.cluster.to_dict() | config.timing.to_dict()
    options["start"] = clustering.random_rows(points, num_clusters=clusters, key=key)
    if config.graph.neighbors:
        options["laplacian_weight"] = config.graph.laplacian_weights[-1]
    seconds, mesh = {}, make_mesh(config.mesh)
    del options["pairs"]
    for n in options.pop("sizes"):
        graph = build_graph(config, points[:n])
        seconds[n] = clustering.iteration_seconds(points[:n], graph=graph, mesh=mesh, **options)
        Progress().note(f"{n:,} points: {seconds[n]:.4f} s an iteration")
    return seconds
