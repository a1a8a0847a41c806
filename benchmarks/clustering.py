"""K-means beside scikit-learn and faiss, and a million points alone.

python -m benchmarks.clustering [--json] [--quick]

100,000 points of 64 dimensions around 100 overlapping centres, 100 clusters, all from the same
start and for the same number of iterations, float32, two threads: the time of an iteration, from
the difference of two lengths so that what is done once falls away, in interleaved repeats, and
the inertia of each result, recomputed by one float64 function. Then a million points of 128
dimensions in 1,000 clusters, in a process of its own: seconds of an iteration and of the
k-means|| start, and the high-water mark of the whole process, the data included. Then the
exponent with which the time of an iteration grows with the number of points.
Ours runs over a mesh of two CPU devices, one for each thread: XLA gives the small steps of one
device to one thread. The peers use the fastest code that their BLAS has, see
`benchmarks.common.use_fast_blas`.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.common import Row, finish, peak_memory, print_table, use_fast_blas

THREADS = 2
use_fast_blas(THREADS)

import numpy as np  # noqa: E402  (after the settings that it reads)

SMALL = 100_000, 64, 100
LARGE = 1_000_000, 128, 1_000
SHORT, LONG = 2, 22  # iterations whose difference is timed


def points(n: int, d: int, k: int) -> np.ndarray:
    """Points around k overlapping centres."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), np.float32)
    centres = rng.standard_normal((k, d), np.float32)
    for first in range(0, n, 10_000):
        part = x[first : first + 10_000]
        part += centres[rng.integers(0, k, len(part))]
    return x


def inertia(x: np.ndarray, prototypes: np.ndarray) -> float:
    """Sum of squared distances to the nearest prototypes, in float64."""
    c = np.asarray(prototypes, np.float64)
    total = 0.0
    for first in range(0, len(x), 10_000):
        part = x[first : first + 10_000].astype(np.float64)
        squares = np.sum(part**2, 1) + np.min(np.sum(c**2, 1) - 2 * part @ c.T, axis=1)
        total += float(np.sum(squares))
    return total


def placed(x: np.ndarray) -> tuple[Any, Any]:
    """The points split over the mesh of all devices, and the mesh."""
    import jax

    from rml.training.mesh import batch_sharding, make_mesh

    mesh = make_mesh()
    return jax.device_put(x, batch_sharding(mesh)), mesh


def ours(x: np.ndarray, start: np.ndarray) -> Callable[[int], np.ndarray]:
    """Lloyd's iteration of this library."""
    import jax.numpy as jnp

    from rml.fewshot.clustering import cluster

    data, mesh = placed(x)
    first = jnp.asarray(start)

    def run(iterations: int) -> np.ndarray:
        found = cluster(
            data,
            num_clusters=len(start),
            start=first,
            max_iterations=iterations,
            tolerance=0.0,
            mesh=mesh,
        )
        assert int(found.iterations) == iterations
        return np.asarray(found.prototypes)

    return run


def scikit_learn(x: np.ndarray, start: np.ndarray) -> Callable[[int], np.ndarray]:
    """Lloyd's iteration of scikit-learn."""
    from sklearn.cluster import KMeans

    def run(iterations: int) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged: as asked
            model = KMeans(
                len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
            ).fit(x)
        assert model.n_iter_ == iterations
        return model.cluster_centers_

    return run


def faiss(x: np.ndarray, start: np.ndarray) -> Callable[[int], np.ndarray]:
    """K-means of faiss on all points."""
    import faiss

    faiss.omp_set_num_threads(THREADS)

    def run(iterations: int) -> np.ndarray:
        model = faiss.Kmeans(
            x.shape[1],
            len(start),
            niter=iterations,
            max_points_per_centroid=len(x),  # no subsampling
        )
        model.train(x, init_centroids=start)
        return np.asarray(model.centroids)

    return run


def iteration_seconds(runs: dict[str, Callable[[int], Any]], repeats: int) -> dict[str, float]:
    """Least seconds of an iteration: the least long run less the least short one."""
    best: dict[tuple[str, int], float] = {}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            for length in (SHORT, LONG):
                begin = time.perf_counter()
                run(length)
                seconds = time.perf_counter() - begin
                if repeat:  # the first compiles
                    best[name, length] = min(best.get((name, length), seconds), seconds)
    return {name: (best[name, LONG] - best[name, SHORT]) / (LONG - SHORT) for name in runs}


def compare(repeats: int) -> list[Row]:
    """An iteration, and what was reached, beside the peers."""
    import faiss as faiss_library
    import sklearn

    n, d, k = SMALL
    x = points(n, d, k)
    start = x[np.random.default_rng(1).choice(n, k, replace=False)]
    runs = {"ours": ours(x, start), "scikit": scikit_learn(x, start), "faiss": faiss(x, start)}
    seconds = iteration_seconds(runs, repeats)
    reached = {name: inertia(x, run(LONG)) for name, run in runs.items()}
    labels = {"scikit": f"scikit-learn {sklearn.__version__}", "faiss": faiss_library.__version__}
    labels["faiss"] = f"faiss {labels['faiss']}"
    case = f"n = {n:,}, d = {d}, K = {k}"
    rows = [
        Row(case, "ms an iteration", 1e3 * seconds["ours"], labels[p], 1e3 * seconds[p])
        for p in labels
    ]
    return rows + [
        Row(case, f"inertia, {LONG} iterations", reached["ours"], labels[p], reached[p])
        for p in labels
    ]


def slope(repeats: int) -> Row:
    """The exponent of n in the time of an iteration."""
    sizes = [100_000, 200_000, 400_000]
    _, d, k = SMALL
    x = points(sizes[-1], d, k)
    runs = {str(n): ours(x[:n], x[:k]) for n in sizes}
    seconds = iteration_seconds(runs, repeats)
    times = [seconds[str(n)] for n in sizes]
    for n, value in zip(sizes, times, strict=True):
        print(f"n = {n:,}, d = {d}, K = {k}: {1e3 * value:.1f} ms an iteration")
    exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
    return Row(f"n = 100,000 to 400,000, d = {d}, K = {k}", "exponent of n", exponent, "linear", 1)


def measure_large(iterations: int) -> None:
    """Prints what one run on a million points took; run in a process of its own."""
    import jax

    from rml.fewshot.clustering import cluster, kmeans_parallel

    n, d, k = LARGE
    x, mesh = placed(points(n, d, k))
    begin = time.perf_counter()
    start = kmeans_parallel(x, num_clusters=k, key=jax.random.key(0), mesh=mesh)
    jax.block_until_ready(start)
    drawn = time.perf_counter() - begin

    def run(length: int) -> tuple[float, Any]:
        options = {"max_iterations": length, "tolerance": 0.0, "mesh": mesh}
        begin = time.perf_counter()
        found = jax.block_until_ready(cluster(x, num_clusters=k, start=start, **options))
        return time.perf_counter() - begin, found

    # Another length is another program: compile both before the clock runs.
    for length in (1, 1 + iterations):
        run(length)
    short, long = run(1)[0], run(1 + iterations)
    print(
        json.dumps(
            {
                "start_s": drawn,
                "iteration_s": (long[0] - short) / iterations,
                "peak_gb": peak_memory() / 1e9,
                "energies": [float(e) for e in long[1].energies],
            }
        )
    )


def large(iterations: int) -> list[Row]:
    """A million points, beside the matrix of assignments that ours never holds."""
    command = [sys.executable, "-m", "benchmarks.clustering", "--large", str(iterations)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    n, d, k = LARGE
    case = f"n = {n:,}, d = {d}, K = {k}"
    print(
        f"{case}: {found['iteration_s']:.2f} s an iteration, k-means|| start {found['start_s']:.0f}"
        f" s with compilation, energies {found['energies'][0]:.5g} to {found['energies'][-1]:.5g}"
    )
    matrix = 4 * n * k / 1e9
    floor = matmul_seconds() * n / 10_000
    return [
        Row(case, "peak GB of the process", found["peak_gb"], "an n x K matrix alone", matrix),
        Row(case, "s an iteration", found["iteration_s"], "its matrix products alone", floor),
    ]


def matmul_seconds() -> float:
    """Least seconds of NumPy's product of the large prototypes with 10,000 points."""
    _, d, k = LARGE
    x, c = np.ones((d, 10_000), np.float32), np.ones((k, d), np.float32)
    best = np.inf
    for _ in range(20):
        begin = time.perf_counter()
        c @ x
        best = min(best, time.perf_counter() - begin)
    return float(best)


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="the comparison with peers only")
    parser.add_argument("--large", type=int, metavar="ITERATIONS", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    import jax

    from rml.training.processes import split_cpu

    split_cpu(THREADS)
    if args.large:
        measure_large(args.large)
        return

    try:
        rows = compare(repeats=2 if args.quick else 5)
    except ImportError as error:
        raise SystemExit(
            f"{error.name} is missing; install it with: pip install faiss-cpu"
        ) from None
    if not args.quick:
        rows += [*large(5), slope(3)]
    print_table(
        f"K-means, float32: jax {jax.__version__}, numpy {np.__version__}, {THREADS} threads, "
        f"{platform.machine()}",
        rows,
    )
    finish("clustering", rows, args.json)


if __name__ == "__main__":
    main()
