"""Clustering of many points: agreement with classes, energy, time against the number of points.

The optimiser of Ziko et al., arXiv:2106.09516, without support; with hard assignments and no graph
it is K-means.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments import figures
from experiments.fewshot.drawing import canvas
from experiments.fewshot.trajectory import largest_increase
from rml import data, evaluation
from rml.data import augment
from rml.errors import unknown
from rml.fewshot.clustering import cluster, random_rows
from rml.training import Claim, Progress, RunDirectory

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
    "energy.png": "Energy (sum of squared distances) against iterations.",
    "time.png": "Time of an iteration against the number of points, with the fitted slope.",
    "clusters.png": "Clusters and classes that fall into them, clusters by their largest class.",
}
ORIGINS = ("pixels", "mixture")


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


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Clusters, scores, times subsets of the points, draws."""
    points, classes = load_points(config)
    options = config.cluster.to_dict()
    started = time.perf_counter()
    found = jax.block_until_ready(cluster(points, key=jax.random.key(config.seed), **options))
    metrics = {"seconds_cluster": time.perf_counter() - started}
    iterations = int(found.iterations)
    energies = np.asarray(found.energies)[:iterations]
    metrics |= evaluation.clustering_scores(classes, found.labels)
    metrics["iterations"], metrics["inertia"] = iterations, float(found.inertia)
    metrics["energy_increase"] = largest_increase(energies[None]) if iterations > 1 else 0.0
    seconds = measure_times(config, points)
    slope, offset = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)
    metrics["cost_slope"] = float(slope)
    metrics |= {f"seconds_an_iteration_{n}": value for n, value in seconds.items()}
    steps = np.arange(1, iterations + 1)
    figures.curves(
        run.figure("energy.png"), {"K-means": (steps, energies)}, "iteration",
        "energy (sum of squared distances)",
    )  # fmt: skip
    draw_times(run, seconds, float(slope), float(offset))
    draw_clusters(run, np.asarray(classes), np.asarray(found.labels))
    return metrics


def measure_times(config: Any, points: Array) -> dict[int, float]:
    """Seconds of one iteration for growing numbers of points, the best of some repetitions.

    Compilation is left out. Every iteration does the same work: prototypes of an earlier start
    are moved `timing.iterations` times without a test for convergence ending it.
    """
    timing = config.timing
    clusters = config.cluster.num_clusters
    start = random_rows(points, num_clusters=clusters, key=jax.random.key(config.seed + 1))
    seconds = {}
    for n in timing.sizes:
        part = jax.block_until_ready(points[:n])
        best = np.inf
        for _ in range(timing.repetitions + 1):
            began = time.perf_counter()
            found = cluster(
                part, num_clusters=clusters, start=start, tolerance=0.0,
                max_iterations=timing.iterations,
            )  # fmt: skip
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
