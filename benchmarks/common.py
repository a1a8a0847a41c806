"""What every benchmark shares: timing, the table, and the last line that programs read."""

import argparse
import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import console, table

CPU = Path("/proc/cpuinfo")


def use_fast_blas(threads: int) -> None:
    """Has OpenBLAS use that many threads and its fastest code; to be called before NumPy is loaded.

    Settings that hold it back are lifted. A CPU newer than a library's own copy of OpenBLAS gets
    code without vectors from it, unless it is told what the CPU has.
    """
    os.environ.pop("OPENBLAS_L2_SIZE", None)
    os.environ.pop("OPENBLAS_CORETYPE", None)
    has = CPU.read_text().split() if CPU.exists() else []
    if "avx2" in has:
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX" if "avx512vl" in has else "Haswell"
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)


SIDE = 1024
"""Rows and columns of the matrices that `products` multiplies."""
READ = 64 * 2**20
"""Bytes that `reading` reads at a time, more than caches hold."""


@dataclasses.dataclass(frozen=True)
class Floor:
    """What takes the least time that the arithmetic or the memory of a program could take.

    Attributes:
      run: Call to time, of whole products or whole arrays.
      share: What one program has of it: the floor is `share` times the time of `run`.
      name: Name of the peer in a row.
    """

    run: Callable[[], Any]
    share: float
    name: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: ours and a peer on the same work.

    Attributes:
      case: the work, such as its shapes.
      metric: what was measured, with its unit.
      ours: our value.
      peer: the peer's name and version.
      peer_value: the peer's value.
      lower_is_better: true for times and errors.
    """

    case: str
    metric: str
    ours: float
    peer: str
    peer_value: float
    lower_is_better: bool = True

    @property
    def ratio(self) -> float:
        """How many times better ours is; above 1 is in our favour."""
        best, worst = self.ours, self.peer_value
        if not self.lower_is_better:
            best, worst = worst, best
        return worst / best if best else math.inf


def options(description: str | None) -> argparse.Namespace:
    """The flags of every benchmark: `json` and `quick`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="less work, rougher numbers")
    return parser.parse_args()


def best_of(fn: Callable[[], Any], repeats: int) -> float:
    """Least seconds of `repeats` calls of `fn`, after one that compiles; `fn` must block."""
    return best_of_each({"": fn}, repeats)[""]


def best_of_each(fns: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """`best_of` for several functions, called in turn so that all see the same machine load.

    Two calls make a turn, since the first finds caches and threads as another library left them:
    it takes longer, whichever function it is of.
    """
    for fn in fns.values():
        fn()
    best = dict.fromkeys(fns, math.inf)
    for turn in range(0, repeats, 2):
        for name, fn in fns.items():
            for _ in range(min(2, repeats - turn)):
                start = time.perf_counter()
                fn()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def jax_step(loss: Callable[..., Any], arrays: Sequence[Any]) -> Callable[[], Any]:
    """Compiles value and gradients of `loss(*arrays)` in JAX; a call returns them."""
    import jax

    given = [jax.device_put(x) for x in arrays]
    step = jax.jit(jax.value_and_grad(loss, tuple(range(len(given))))).lower(*given).compile()
    return lambda: jax.block_until_ready(step(*given))


def torch_step(
    loss: Callable[..., Any], arrays: Sequence[Any], threads: int
) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    """Prepares value and gradients of `loss(*arrays)` in PyTorch; a call returns them."""
    import torch

    torch.set_num_threads(threads)
    given = [torch.tensor(x, requires_grad=True) for x in arrays]

    def step() -> tuple[Any, tuple[Any, ...]]:
        for x in given:
            x.grad = None
        value = loss(*given)
        value.backward()
        return value.detach(), tuple(x.grad for x in given)

    return step


STRIPS = (256, 512, 1024, 2048)
"""Rows of a strip of the products alone, of which the fastest counts."""


def three_products(q: Any, k: Any) -> Callable[[], Any]:
    """The products of logits q kᵀ and of both their gradients, and nothing else."""
    strips = sorted({min(len(q), strip) for strip in STRIPS})
    ways = {f"strips of {strip}": _in_strips(q, k, strip) for strip in strips}
    seconds = best_of_each(ways, 3)
    return ways[min(seconds, key=seconds.__getitem__)]


def _in_strips(q: Any, k: Any, strip: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    q, k = jax.device_put(q), jax.device_put(k)

    def products(total: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        s = q @ k.T
        # A transpose that is laid out first, as the library does, costs less than one inside.
        return total + jax.lax.optimization_barrier(q.T) @ s, s @ k

    @jax.jit
    def step(q: jax.Array) -> Any:
        return jax.lax.scan(products, jnp.zeros_like(k.T), q.reshape(-1, strip, q.shape[1]))

    return lambda: jax.block_until_ready(step(q))


def products(flops: float) -> Floor:
    """The floor of a program that multiplies: square float32 products of as many FLOPs."""
    import jax
    import jax.numpy as jnp

    count = max(1, math.ceil(flops / (2 * SIDE**3)))
    square = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    product = jax.jit(jnp.matmul)

    def run() -> None:
        for _ in range(count):
            found = product(square, square)
        found.block_until_ready()

    run()
    return Floor(run, flops / (count * 2 * SIDE**3), "floor: products of as many FLOPs")


def reading(size: float) -> Floor:
    """The floor of a program that reads memory: sums of float32 arrays of as many bytes."""
    import jax
    import jax.numpy as jnp

    count = max(1, math.ceil(size / READ))
    arrays = [jax.random.normal(jax.random.key(i), (READ // 4096, 1024)) for i in range(2)]
    total = jax.jit(jnp.sum)

    def run() -> None:
        for i in range(count):
            found = total(arrays[i % 2])  # in turns, so that no cache holds what is read next
        found.block_until_ready()

    run()
    return Floor(run, size / (count * READ), "floor: reading as many bytes")


def peak_memory() -> int:
    """High-water mark of this process's resident memory in bytes.

    Linux's `ru_maxrss` starts from the parent's, whatever the process itself does.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def print_extra_memory(
    small: Callable[[], Callable[[], Any]], build: Callable[[], Callable[[], Any]]
) -> None:
    """Prints the extra peak memory, in MB, of one call; run in a process of its own.

    Args:
      small: Builds a call that starts the libraries' threads and allocators.
      build: Builds the call that is measured, with its inputs.
    """
    import psutil

    small()()
    step = build()
    before = psutil.Process().memory_info().rss
    step()
    print(f"{(peak_memory() - before) / 2**20:.1f}")


def in_fresh_process(module: str, *args: Any) -> float:
    """The number that ends what `python -m module --memory args` prints."""
    command = [sys.executable, "-m", module, "--memory", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Prints `rows` under a title that names versions and threads."""
    view = table.Table(title=title)
    for name in ("case", "metric", "ours", "peer", "its value", "ratio"):
        number = name in ("ours", "its value", "ratio")
        view.add_column(name, justify="right" if number else "left", no_wrap=number)
    for row in rows:
        values = f"{row.ours:.4g}", row.peer, f"{row.peer_value:.4g}", f"{row.ratio:.2f}"
        view.add_row(row.case, row.metric, *values)
    screen = console.Console()
    screen.width = max(screen.width, 120)  # a pipe reports 80 columns, too few for the cases
    screen.print(view)


def finish(name: str, rows: Sequence[Row], as_json: bool, accelerator: str = "") -> None:
    """Ends a benchmark: with `as_json`, prints one last line of JSON.

    Args:
      name: Its name.
      rows: What it measured.
      as_json: Whether the line is asked for.
      accelerator: What it ran on beside the processor.
    """
    if as_json:
        fields = ("case", "metric", "ours", "peer", "peer_value", "ratio")
        values = [{field: getattr(row, field) for field in fields} for row in rows]
        print(json.dumps({"benchmark": name, "accelerator": accelerator, "rows": values}))
