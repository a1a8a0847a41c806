"""The time that an iteration of clustering takes."""

import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from rml.fewshot.clustering.cluster import cluster


def iteration_seconds(
    x: Float[Array, "n d"],
    *,
    start: Float[Array, "k d"],
    iterations: int,
    repetitions: int,
    **options: Any,
) -> float:
    """Measures the seconds of one iteration, compilation left out.

    Every iteration does the same work. They end early where nothing changes any more.

    Args:
      x: The points.
      start: Where the prototypes start.
      iterations: Iterations of a timed run.
      repetitions: Number of timed runs, of which the fastest counts.
      **options: Options of `cluster`; the number of clusters, the iterations and the tolerance are
        set here.

    Returns:
      Seconds.
    """
    fixed = {"num_clusters": len(start), "max_iterations": iterations, "tolerance": 0.0}
    options |= {"start": start, **fixed}
    x, best = jax.block_until_ready(x), np.inf
    for _ in range(repetitions + 1):  # the first compiles
        began = time.perf_counter()
        found = jax.block_until_ready(cluster(x, **options))
        best = min(best, time.perf_counter() - began)
    # The last assignment, by the returned prototypes, is a pass like the others of Lloyd's. Beside
    # the several passes of an iteration with a graph or soft assignments it is little.
    lloyd = options.get("graph") is None and not options.get("temperature")
    return best / (int(found.iterations) + lloyd)
