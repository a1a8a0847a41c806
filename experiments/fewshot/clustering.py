"""Clustering of many points: agreement with classes, energy, time against the number of points.

The optimiser of Ziko et al., arXiv:2106.09516, without support; with hard assignments and no graph
it is K-means; where a graph is asked for, the model is scored for several λ from the same start.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from experiments import figures
from experiments.fewshot.drawing import canvas
from experiments.fewshot.trajectory import largest_increase
from rml import data, evaluation
from rml.data import augment
from rml.errors import UserError, unknown
from rml.fewshot.clustering import cluster, random_rows
from rml.ops.neighbors import NeighborGraph, knn_graph, mutual, with_self_loops
from rml.training import Claim, Progress, RunDirectory, make_mesh
from rml.training.mesh import batch_sharding, check_divisible

SOURCE = "arXiv:2106.09516: point-wise updates scale to large problems; margins are ours"
CLAIMS = (
    Claim("The energy never increases: largest relative increase of an iteration",
          "energy_increase", "<=", 1e-5, SOURCE),
    Claim("Cost grows linearly with points: slope of log time against log n at least 0.8",
          "cost_slope", ">=", 0.8, SOURCE),
    Claim("Cost grows linearly with points: slope of log time against log n at most 1.2",
          "cost_slope", "<=", 1.2, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "energy.png": "Energy against iterations.",
    "scores.png": "Agreement of clusters with classes against λ; 0 is (soft) K-means.",
    "time.png": "Time of an iteration against the number of points, with the fitted slope.",
    "clusters.png": "Clusters and classes that fall into them, clusters by their largest class.",
}
ORIGINS = ("pixels", "mixture")
GRAPHS = ("semidefinite", "mutual", "directed")
LABELS = {"nmi": "NMI", "ari": "ARI", "accuracy": "accuracy"}


def load_points(config: Any) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Points and classes: images as vectors, or draws from a Gaussian mixture.

    Args:
      config: `points.of` is "pixels" (of `data`) or "mixture" (`points.number` draws in
        `points.dimension` dimensions around `points.components` centres of deviation
        `points.spread`, with unit deviation).

    Returns:
      Points [n, d] and classes [n].

    Raises:
      UserError: An unknown origin, or data that cannot be read.
    """
    options = config.points
    if options.of == "pixels":
        source = data.load(config.data.name, config.data.split, data_dir=config.data.data_dir)
        arrays = source.arrays()
        images = augment.to_float(jnp.asarray(arrays["image"]))
        return images.reshape(len(images), -1), jnp.asarray(arrays["label"])
    if options.of == "mixture":
        return draw_mixture(jax.random.key(config.seed), options)
    raise unknown("points.of", options.of, ORIGINS)


def draw_mixture(key: Any, options: Any) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Draws of a Gaussian mixture and the components that they come from."""
    centres_key, label_key, noise_key = jax.random.split(key, 3)

    @jax.jit
    def draw() -> Any:
        shape = options.components, options.dimension
        centres = options.spread * jax.random.normal(centres_key, shape)
        labels = jax.random.randint(label_key, (options.number,), 0, options.components)
        noise = jax.random.normal(noise_key, (options.number, options.dimension))
        return centres[labels] + noise, labels

    return draw()


def build_graph(config: Any, points: Array) -> NeighborGraph | None:
    """The graph of the nearest neighbours, if one is asked for.

    Args:
      config: `graph.kind` is "semidefinite" (edges both ways, the diagonal as heavy as its row: the
        energy never increases), "mutual" (without that diagonal) or "directed".
      points: The points.

    Raises:
      UserError: An unknown kind, or no λ.
    """
    options = config.graph
    if options.kind not in GRAPHS:
        raise unknown("graph.kind", options.kind, GRAPHS)
    if options.neighbors == 0:
        return None
    if not options.laplacian_weights:
        raise UserError("graph.laplacian_weights is empty, expected values of λ for the graph")
    metric = config.cluster.metric
    graph = knn_graph(points, k=options.neighbors, metric=metric, approximate=options.approximate)
    if options.kind == "directed":
        return graph
    graph = mutual(graph)
    return with_self_loops(graph) if options.kind == "semidefinite" else graph


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Clusters, scores, times subsets of the points, draws."""
    points, classes = load_points(config)
    mesh, key = make_mesh(config.mesh), jax.random.key(config.seed)
    check_sizes(config, points, mesh)
    options = config.cluster.to_dict()
    graph = build_graph(config, points)
    weights = (0.0, *config.graph.laplacian_weights) if graph is not None else (0.0,)
    metrics: dict[str, float] = {"energy_increase": -np.inf}
    courses, scores = {}, []
    for weight in weights:
        started = time.perf_counter()
        found = cluster(
            points, key=key, graph=graph if weight else None, laplacian_weight=weight, mesh=mesh,
            **options,
        )  # fmt: skip
        iterations = int(jax.block_until_ready(found).iterations)
        took = time.perf_counter() - started
        energies = np.asarray(found.energies)[:iterations]
        rise = largest_increase(energies[None]) if iterations > 1 else 0.0
        metrics["energy_increase"] = max(rise, metrics["energy_increase"])
        labels = np.asarray(found.labels)
        scores.append(evaluation.clustering_scores(classes, found.labels))
        courses[f"λ = {weight:g}"] = np.arange(1, iterations + 1), energies / energies[0]
        measured = scores[-1] | {
            "seconds": took, "iterations": iterations, "inertia": float(found.inertia)
        }  # fmt: skip
        suffix = f"_weight_{weight:g}" if weight else ""
        metrics |= {f"{name}{suffix}": value for name, value in measured.items()}
    seconds = measure_times(config, points)
    slope, offset = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)
    metrics["cost_slope"] = float(slope)
    metrics |= {f"seconds_an_iteration_{n}": value for n, value in seconds.items()}
    figures.curves(run.figure("energy.png"), courses, "iteration", "energy as a share of the first")
    if len(scores) > 1:
        curves = {
            label: (np.array(weights), [one[name] for one in scores])
            for name, label in LABELS.items()
        }
        figures.curves(run.figure("scores.png"), curves, "λ", "agreement with classes")
    draw_times(run, seconds, float(slope), float(offset))
    draw_clusters(run, np.asarray(classes), labels)
    return metrics


def check_sizes(config: Any, points: Array, mesh: Mesh) -> None:
    """Raises `UserError` unless all points, and each number that is timed, fit data and mesh."""
    rows = batch_sharding(mesh)
    for n in (len(points), *config.timing.sizes):
        if not config.cluster.num_clusters <= n <= len(points):
            raise UserError(
                f"timing.sizes has {n}, expected {config.cluster.num_clusters} clusters or more "
                f"and at most the {len(points)} points"
            )
        part = jax.ShapeDtypeStruct((n, points.shape[1]), points.dtype)
        check_divisible({"points": part}, {"points": rows})


def measure_times(config: Any, points: Array) -> dict[int, float]:
    """Seconds of one iteration for growing numbers of points, the best of some repetitions.

    Compilation is left out. Every iteration does the same work: prototypes of an earlier start
    are moved `timing.iterations` times without a test for convergence ending it.
    """
    timing, mesh = config.timing, make_mesh(config.mesh)
    clusters = config.cluster.num_clusters
    options = config.cluster.to_dict() | {"tolerance": 0.0, "max_iterations": timing.iterations}
    weights = config.graph.laplacian_weights
    options["laplacian_weight"] = weights[-1] if config.graph.neighbors else 0.0
    start = random_rows(points, num_clusters=clusters, key=jax.random.key(config.seed + 1))
    seconds = {}
    for n in timing.sizes:
        part = jax.block_until_ready(points[:n])
        graph = build_graph(config, part)
        best = np.inf
        for _ in range(timing.repetitions + 1):
            began = time.perf_counter()
            found = cluster(part, graph=graph, mesh=mesh, **options | {"start": start})
            jax.block_until_ready(found)
            if (took := time.perf_counter() - began) < best:
                best = took
        # The last assignment, by the returned prototypes, is a pass like the others.
        seconds[n] = best / (int(found.iterations) + 1)
        Progress().note(f"{n:,} points: {seconds[n]:.4f} s an iteration")
    return seconds


def draw_times(run: RunDirectory, seconds: dict[int, float], slope: float, offset: float) -> None:
    """Figure of time against points on logarithmic axes."""
    n, t = np.array(list(seconds)), np.array(list(seconds.values()))
    with canvas(run.figure("time.png"), (figures.COLUMN, 0.68 * figures.COLUMN)) as figure:
        axes = figure.add_subplot()
        axes.loglog(n, t, "o", color=figures.PALETTE[0], label="measured")
        axes.loglog(n, np.exp(offset) * n**slope, "--", color="#333333", label=f"slope {slope:.2f}")
        axes.set_xticks(n, [f"{one:,}" for one in n])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("points")
        axes.set_ylabel("time of an iteration (s)")
        axes.grid(visible=True, which="both")
        axes.legend()


def draw_clusters(run: RunDirectory, classes: np.ndarray, labels: np.ndarray) -> None:
    """Figure of how classes fall into clusters, 25 at most of each."""
    table = np.zeros((labels.max() + 1, classes.max() + 1))
    np.add.at(table, (labels, classes), 1)
    table = table[np.lexsort((-table.max(axis=1), table.argmax(axis=1)))][:25, :25]
    figures.heatmap(
        run.figure("clusters.png"), table.T, xlabel="cluster", ylabel="class",
        value_label="points",
    )  # fmt: skip
