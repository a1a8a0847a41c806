"""Contrastive losses, value and gradient, beside dense PyTorch and dense JAX.

python -m benchmarks.contrastive [--json] [--quick]

InfoNCE of B queries and B keys of 256 dimensions, B = 1,024 to 65,536 (4,096 with --quick), and
NT-Xent of B pairs; float32, two threads. Times are the least of interleaved repeats. Peak memory
is that of a fresh process: its high-water mark less what it held after imports, compilation and
inputs. The floor is the three matrix products of value and gradient alone, as XLA computes them a
strip of rows at a time, in the layout and of those strips with which they are fastest. NT-Xent,
whose matrix is symmetric, may do with less. At 65,536 the dense matrix takes 16 GiB and its
gradient as much again, so ours stands alone there.
pytorch-metric-learning joins where it is installed.
"""

import argparse
import importlib.util
import math
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import (
    Row,
    best_of_each,
    finish,
    in_fresh_process,
    jax_step,
    print_extra_memory,
    print_table,
    three_products,
    torch_step,
)

THREADS = 2
DIMENSION = 256
TEMPERATURE = 0.1
DENSE_LIMIT = 16384  # the largest batch of which a dense peer's matrices fit a small machine

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))


def _inputs(size: int) -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    pair = rng.standard_normal((2, size, DIMENSION), np.float32)
    return pair / np.linalg.norm(pair, axis=-1, keepdims=True)


def _jax(loss: Callable, size: int) -> Callable[[], Any]:
    return jax_step(loss, _inputs(size))


def _torch(loss: Callable, size: int) -> Callable[[], Any]:
    return torch_step(loss, _inputs(size), THREADS)


def ours(size: int) -> Callable[[], Any]:
    """InfoNCE of this library."""
    from rml.losses.infonce import info_nce

    return _jax(lambda q, k: info_nce(q, k, temperature=TEMPERATURE), size)


def dense_jax(size: int) -> Callable[[], Any]:
    """InfoNCE as one writes it in JAX."""
    import jax
    import jax.numpy as jnp

    def loss(q: jax.Array, k: jax.Array) -> jax.Array:
        s = q @ k.T / TEMPERATURE
        return jnp.mean(jax.nn.logsumexp(s, axis=1) - jnp.diagonal(s))

    return _jax(loss, size)


def dense_torch(size: int) -> Callable[[], Any]:
    """InfoNCE as one writes it in PyTorch."""
    import torch

    own = torch.arange(size)
    return _torch(lambda q, k: torch.nn.functional.cross_entropy(q @ k.T / TEMPERATURE, own), size)


def ours_ntxent(size: int) -> Callable[[], Any]:
    """NT-Xent of this library, on size // 2 pairs."""
    from rml.losses.ntxent import nt_xent

    return _jax(lambda a, b: nt_xent(a, b, temperature=TEMPERATURE), size // 2)


def dense_torch_ntxent(size: int) -> Callable[[], Any]:
    """NT-Xent as one writes it in PyTorch, on size // 2 pairs."""
    import torch

    functional = torch.nn.functional
    partner = torch.arange(size).roll(size // 2)
    diagonal = torch.eye(size, dtype=torch.bool)

    def loss(a: Any, b: Any) -> Any:
        z = functional.normalize(torch.cat([a, b]))
        s = (z @ z.T / TEMPERATURE).masked_fill(diagonal, -math.inf)
        return functional.cross_entropy(s, partner)

    return _torch(loss, size // 2)


def metric_learning_ntxent(size: int) -> Callable[[], Any]:
    """NT-Xent of pytorch-metric-learning, on size // 2 pairs.

    By its SupConLoss, which is the same where a class has two rows and works on the matrix; its
    NTXentLoss compares all positive with all negative pairs, a billion numbers at 1,024 rows.
    """
    import torch
    from pytorch_metric_learning.losses import SupConLoss

    loss = SupConLoss(temperature=TEMPERATURE)
    labels = torch.arange(size // 2).repeat(2)
    return _torch(lambda a, b: loss(torch.cat([a, b]), labels), size // 2)


def floor(size: int) -> Callable[[], Any]:
    """The three products of logits and both gradients, and nothing else."""
    return three_products(*_inputs(size))


CASES = {
    f.__name__: f
    for f in (
        floor,
        ours,
        dense_jax,
        dense_torch,
        ours_ntxent,
        dense_torch_ntxent,
        metric_learning_ntxent,
    )
}


def compare(size: int, own: str, peers: dict[str, str], repeats: int, memory: bool) -> list[Row]:
    """Times, and optionally memory, of one loss beside its peers at one batch size."""
    import jax

    names = [own, *peers]
    print(f"measuring {', '.join(names)} at {size:,}", file=sys.stderr, flush=True)
    seconds = best_of_each({name: CASES[name](size) for name in names}, repeats)
    jax.clear_caches()
    loss = "NT-Xent" if "ntxent" in own else "InfoNCE"
    case = f"{loss}, {size:,} x {size:,}"
    rows = [
        Row(case, "ms", 1e3 * seconds[own], label, 1e3 * seconds[peer])
        for peer, label in peers.items()
    ]
    if memory:
        kept = [name for name in names if name != "floor"]
        used = {name: in_fresh_process("benchmarks.contrastive", name, size) for name in kept}
        rows += [
            Row(case, "extra peak MB", used[own], peers[peer], used[peer]) for peer in kept[1:]
        ]
    return rows


def alone(size: int) -> Row:
    """Ours where the dense matrix cannot be held, beside the size that matrix would have."""
    print(f"measuring ours at {size:,}", file=sys.stderr, flush=True)
    seconds = best_of_each({"ours": ours(size)}, 1)["ours"]
    case = f"InfoNCE, {size:,} x {size:,}, in {seconds:.0f} s"
    matrix = 4 * size * size / 2**20
    used = in_fresh_process("benchmarks.contrastive", "ours", size)
    return Row(case, "extra peak MB", used, "one dense matrix", matrix)


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="small batches only")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory:
        name, size = args.memory
        print_extra_memory(partial(CASES[name], 64), partial(CASES[name], int(size)))
        return

    import jax
    import torch

    infonce = {
        "dense_torch": f"torch {torch.__version__}",
        "dense_jax": f"dense jax {jax.__version__}",
    }
    infonce["floor"] = "floor: three products"
    ntxent = {"dense_torch_ntxent": f"torch {torch.__version__}", "floor": "floor: three products"}
    if importlib.util.find_spec("pytorch_metric_learning"):
        ntxent["metric_learning_ntxent"] = "pytorch-metric-learning"
    rows = []
    for size in (256, 1024, 4096) if args.quick else (256, 512, 1024, 4096, DENSE_LIMIT):
        repeats = {256: 100, 512: 50, 1024: 20, 4096: 5}.get(size, 2)
        rows += compare(size, "ours", infonce, repeats, memory=size > 1024)
        rows += compare(size, "ours_ntxent", ntxent, repeats, memory=size > 1024)
    if not args.quick:
        rows.append(alone(65536))
    print_table(
        f"Contrastive losses, value and gradient, float32, d = {DIMENSION}: jax {jax.__version__}, "
        f"torch {torch.__version__} with {THREADS} threads, {platform.machine()}",
        rows,
    )
    finish("contrastive", rows, args.json)


if __name__ == "__main__":
    main()
