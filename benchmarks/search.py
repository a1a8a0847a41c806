"""Exact inner-product search beside faiss's flat index.

python -m benchmarks.search [--json] [--quick]

The k = 10 and 100 best of 100,000 unit vectors of 384 dimensions for 1, 100 and 1,000 queries
(--quick: 1 and 100), float32, two threads. Both find the same rows, which is checked first, up to
rows whose scores differ by rounding. Times are the least of interleaved repeats. Extra memory is
that of one search in a fresh process: its high-water mark less what it held after imports,
compilation and laying out the corpus, of which each holds one copy; it needs Linux. Pages that
were freed but not given back hide some of it, more or fewer in each process, so that of three
processes the largest counts.
Ours runs over a mesh of two CPU devices, one for each thread: XLA gives the sorting of one device
to one thread. faiss uses the fastest code that its BLAS has: settings that hold it back are lifted,
and a CPU newer than its BLAS knows is named to it by its vectors. The floor is the matrix product
of the same queries and rows alone, over the same mesh in blocks that a search takes.
"""

import argparse
import ctypes
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Row,
    best_of_each,
    finish,
    in_fresh_process,
    print_extra_memory,
    print_table,
    use_fast_blas,
)

THREADS = 2
use_fast_blas(THREADS)

import numpy as np  # noqa: E402  (after the settings that it reads)

SIZE, DIMENSION = 100_000, 384
BLOCKS, QUERIES = 4, 250  # of a device's rows, and queries of one of the floor's products
PROCESSES = 3
ROUNDING = 1e-5  # of scores of unit vectors


def vectors(n: int, seed: int) -> np.ndarray:
    """Unit vectors."""
    x = np.random.default_rng(seed).standard_normal((n, DIMENSION), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def forget_peak() -> None:
    """Lowers the process's high-water mark to what it uses: laying out a corpus takes copies."""
    ctypes.CDLL(None).malloc_trim(0)  # freed pages would hide what is taken next
    Path("/proc/self/clear_refs").write_text("5")


def ours(n: int, m: int, k: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Search of this library."""
    import jax
    import jax.numpy as jnp

    from rml.retrieval import build_index, search_index
    from rml.training.mesh import make_mesh

    index = build_index(jnp.asarray(vectors(n, 0)), mesh=make_mesh())
    queries = jnp.asarray(vectors(m, 1))

    find = jax.jit(partial(search_index, k=k)).lower(queries, index).compile()

    def run() -> tuple[np.ndarray, np.ndarray]:
        scores, rows = find(queries, index)
        return np.asarray(scores), np.asarray(rows)

    forget_peak()
    return run


def product(n: int, m: int, k: int) -> Callable[[], np.ndarray]:
    """Matrix products of `ours` alone."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from rml.retrieval import build_index
    from rml.training.mesh import BATCH_AXES, make_mesh

    del k
    index = build_index(jnp.asarray(vectors(n, 0)), mesh=make_mesh())
    queries = jnp.asarray(vectors(m, 1)).reshape(max(1, m // QUERIES), -1, DIMENSION)

    def of_block(block: jax.Array) -> jax.Array:
        # Behind a barrier all of a product is computed, of which one number is kept.
        return jax.lax.map(lambda few: jax.lax.optimization_barrier(few @ block.T)[0, 0], queries)

    def of_device(rows: jax.Array) -> jax.Array:
        return jax.lax.map(of_block, rows.reshape(BLOCKS, -1, DIMENSION))

    split = PartitionSpec(BATCH_AXES)
    multiply = jax.jit(
        jax.shard_map(of_device, mesh=index.mesh, in_specs=split, out_specs=split, check_vma=False)
    )
    return lambda: np.asarray(multiply(index.vectors))


def faiss(n: int, m: int, k: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """The flat index of faiss."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors(n, 0))
    queries = vectors(m, 1)
    forget_peak()
    return lambda: index.search(queries, k)


CASES: dict[str, Callable[[int, int, int], Callable[[], Any]]] = {
    "ours": ours,
    "faiss": faiss,
    "floor": product,
}


def check_equal(
    found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]
) -> None:
    """Raises `AssertionError` unless scores agree, and rows wherever scores are apart."""
    np.testing.assert_allclose(found[0], expected[0], atol=ROUNDING)
    scores = expected[0]
    near = np.abs(np.diff(scores, axis=1)) < ROUNDING
    edge = np.zeros((len(scores), 1), bool)
    close = np.concatenate([near, ~edge], 1) | np.concatenate([edge, near], 1)
    np.testing.assert_array_equal(found[1][~close], expected[1][~close])


def compare(m: int, k: int, repeats: int) -> list[Row]:
    """Time and extra memory of one search of each."""
    import faiss as library

    runs = {name: build(SIZE, m, k) for name, build in CASES.items()}
    check_equal(runs["ours"](), runs["faiss"]())
    seconds = best_of_each(runs, repeats)
    del runs
    memory = {name: in_fresh_process("benchmarks.search", name, m, k) for name in ("ours", "faiss")}
    case, peer = f"{m:,} of {SIZE:,}, k = {k}", f"faiss {library.__version__}"
    return [
        Row(case, "ms a search", 1e3 * seconds["ours"], peer, 1e3 * seconds["faiss"]),
        Row(case, "ms a search", 1e3 * seconds["ours"], "floor: its product",
            1e3 * seconds["floor"]),
        Row(case, "extra MB", memory["ours"], peer, memory["faiss"]),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="few queries only")
    parser.add_argument(
        "--memory", nargs=3, metavar=("CASE", "QUERIES", "K"), help=argparse.SUPPRESS
    )
    args = parser.parse_args(argv)

    import jax

    from rml.training.processes import split_cpu

    split_cpu(THREADS)
    if args.memory:
        name, m, k = args.memory[0], *map(int, args.memory[1:])
        print_extra_memory(partial(CASES[name], 1000, m, k), partial(CASES[name], SIZE, m, k))
        return

    try:
        import faiss as library
    except ImportError:
        raise SystemExit("faiss is missing; install it with: pip install faiss-cpu") from None
    rows = []
    for m, repeats in ((1, 30), (100, 10)) if args.quick else ((1, 100), (100, 20), (1000, 7)):
        for k in (10, 100):
            rows += compare(m, k, repeats)
    print_table(
        f"Exact search, float32, d = {DIMENSION}: jax {jax.__version__}, faiss "
        f"{library.__version__}, {THREADS} threads, {platform.machine()}",
        rows,
    )
    finish("search", rows, args.json)


if __name__ == "__main__":
    main()
