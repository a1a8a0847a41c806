"""Fitting random-feature attention by ridge regression, beside PyTorch written directly.

python -m benchmarks.attention [--json] [--quick] [--large [HEADS]]

16 keys of 16 coordinates, n = 5,000 examples and M = 4,000 heads, that is 68,000 features (1,000
and 1,000 with --quick); float32, two threads. Both form the Gram matrix of the examples, the
smaller of the two systems, from the same weights and solve by Cholesky; PyTorch holds all features,
ours streams blocks of heads. The solutions must agree. Times are the least of interleaved repeats.
Peak memory is that of a fresh process: its high-water mark less what it held after imports,
compilation and inputs.

With --large ours alone fits n = 10,000 examples with 100,000 heads (or HEADS), which draw their
weights block by block, and reports the high-water mark of the whole process. Heads are streamed, so
that mark is the same for any number of them; only the time grows.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import (
    Row,
    best_of_each,
    finish,
    in_fresh_process,
    peak_memory,
    print_extra_memory,
    print_table,
    products,
)

THREADS = 2
D, KEYS, BLOCK, PENALTY = 16, 16, 100, 1e-2
LARGE_N, LARGE_HEADS = 10_000, 100_000

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))


def inputs(n: int, heads: int) -> tuple[Any, Any, Any, Any]:
    """Queries and keys on the sphere, weights, and averages of squares to fit."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, KEYS + 1, D), np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    weights = rng.standard_normal((heads, D + 1, D + 1), np.float32) / 2
    return x[:, 0], x[:, 1:], weights, (x[:, 1:, :1] ** 2).mean(1)


def ours(n: int, heads: int) -> Callable[[], Any]:
    """Ridge regression of this library, heads streamed in blocks."""
    import jax

    from rml.attention.random_feature_attention import rfa_features
    from rml.attention.ridge import solve_ridge, streamed_gram

    query, keys, weights, y = (jax.device_put(x) for x in inputs(n, heads))
    blocks = weights.reshape(-1, BLOCK, D + 1, D + 1)

    def fit(query: jax.Array, keys: jax.Array, blocks: jax.Array, y: jax.Array) -> jax.Array:
        gram = streamed_gram(lambda w, x: rfa_features(x[0], x[1], w), blocks, (query, keys))
        return solve_ridge(gram, y, PENALTY)

    step = jax.jit(fit).lower(query, keys, blocks, y).compile()
    return lambda: jax.block_until_ready(step(query, keys, blocks, y))


def flops(n: int, heads: int) -> float:
    """FLOPs of a fit: scores and sums of heads, a triangle of the Gram matrix, its factor."""
    scores = 2 * n * heads * (D + 1) * (D + 1 + KEYS)
    return scores + 2 * n * heads * KEYS * (D + 1) + n * n * heads * (D + 1) + n**3 / 3


def direct_torch(n: int, heads: int) -> Callable[[], Any]:
    """Ridge regression as one writes it in PyTorch, all features at once."""
    import torch

    torch.set_num_threads(THREADS)
    query, keys, weights, y = (torch.tensor(x) for x in inputs(n, heads))

    def fit() -> Any:
        ones = torch.ones(n, 1)
        q = torch.cat([query, ones], 1)
        k = torch.cat([keys, ones[:, None].expand(-1, KEYS, -1)], 2)
        scores = torch.relu(torch.einsum("nd,mde,nke->nmk", q, weights, k))
        features = torch.einsum("nmk,nke->nme", scores, k).reshape(n, -1) / (KEYS * heads**0.5)
        gram = features @ features.T + PENALTY * torch.eye(n)
        return torch.cholesky_solve(y, torch.linalg.cholesky(gram))

    return fit


def large(heads: int) -> list[Row]:
    """Times a fit of many heads in this process and reads its peak memory."""
    import jax

    from rml.attention.random_feature_attention import rfa_features, rfa_weights
    from rml.attention.ridge import solve_ridge, streamed_gram

    query, keys, _, y = (jax.device_put(x) for x in inputs(LARGE_N, 0))

    def block_features(key: jax.Array, x: tuple[jax.Array, jax.Array]) -> jax.Array:
        return rfa_features(x[0], x[1], rfa_weights(key, BLOCK, D))

    def fit(blocks: jax.Array, query: jax.Array, keys: jax.Array, y: jax.Array) -> jax.Array:
        return solve_ridge(streamed_gram(block_features, blocks, (query, keys)), y, PENALTY)

    blocks = jax.random.split(jax.random.key(0), heads // BLOCK)
    step = jax.jit(fit).lower(blocks, query, keys, y).compile()
    start = time.perf_counter()
    solution = jax.block_until_ready(step(blocks, query, keys, y))
    seconds = time.perf_counter() - start
    if not bool(jax.numpy.isfinite(solution).all()):
        raise RuntimeError("the solution is not finite")
    case = f"fit, n = {LARGE_N:,}, M = {heads:,}, {seconds:.0f} s"
    features = LARGE_N * heads * (D + 1) * 4 / 2**20
    return [Row(case, "peak MB of the process", peak_memory() / 2**20, "its features", features)]


CASES = {f.__name__: f for f in (ours, direct_torch)}


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--large", nargs="?", type=int, const=LARGE_HEADS, metavar="HEADS",
                        help="ours alone, many heads")  # fmt: skip
    parser.add_argument("--memory", nargs=3, metavar=("CASE", "N", "M"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory:
        name, n, heads = args.memory
        build = CASES[name]
        print_extra_memory(partial(build, 64, BLOCK), partial(build, int(n), int(heads)))
        return
    if args.large is not None:
        if args.large < BLOCK or args.large % BLOCK:
            parser.error(f"--large expects a multiple of {BLOCK}, got {args.large}")
        rows = large(args.large)
        print_table("Random-feature attention, heads streamed, float32", rows)
        finish("attention", rows, args.json)
        return

    import jax
    import numpy as np
    import torch

    n, heads = (1000, 1000) if args.quick else (5000, 4000)
    case, peer = f"fit, n = {n:,}, M = {heads:,}", f"torch {torch.__version__}"
    memory = {name: in_fresh_process("benchmarks.attention", name, n, heads) for name in CASES}
    steps = {name: build(n, heads) for name, build in CASES.items()}
    a, b = (np.asarray(step()) for step in steps.values())
    difference = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if not difference < 1e-2:
        raise RuntimeError(f"the solutions differ by {difference:.2g} of their norm")
    floor = products(flops(n, heads))
    seconds = best_of_each({**steps, "floor": floor.run}, 3 if args.quick else 2)
    rows = [
        Row(case, "s", seconds["ours"], peer, seconds["direct_torch"]),
        Row(case, "s", seconds["ours"], floor.name, floor.share * seconds["floor"]),
        Row(case, "extra peak MB", memory["ours"], peer, memory["direct_torch"]),
    ]
    print_table(
        f"Random-feature attention, float32, solutions within {difference:.1g}: jax "
        f"{jax.__version__}, torch {torch.__version__} with {THREADS} threads, "
        f"{platform.machine()}",
        rows,
    )
    finish("attention", rows, args.json)


if __name__ == "__main__":
    main()
