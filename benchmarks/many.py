"""Ten seeds of SimCLR on digits as one program, beside ten launches of the recipe in a row.

`python -m benchmarks.many [--json] [--quick]`. Either side starts its own processes, trains,
evaluates and measures all metrics of every seed. A launch also draws its figures, as the user's
does. All ten are launched, half of them before ours; with `--quick` two are, and their time is
taken for ten. Beside them stand the training steps alone, in turns in one process, and the floor:
matrix products of as many FLOPs.
"""

import json
import math
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import Row, best_of_each, finish, options, print_table
from experiments.common.many import SEED, many, pretrain_many, replaced
from experiments.contrastive import simclr
from rml.training import CompiledTask, RunDirectory, Task, make_mesh
from rml.training.processes import split_cpu

CONFIG = "configs/contrastive/simclr_digits.py"
SEEDS = tuple(range(10))
SIDE = 1024
"""Rows and columns of the floor's matrices."""


def devices() -> int:
    """Devices that our side splits the CPU into: one a core, as many as divide the seeds."""
    return math.gcd(len(SEEDS), os.cpu_count() or 1)


def read_config() -> Any:
    """The config that either side trains."""
    return runpy.run_path(CONFIG)["get_config"]()


def train_all(folder: Path) -> None:
    """Our side, in a process of its own: leaves the metrics of every seed in the folder."""
    config = read_config()
    run = RunDirectory(folder / "run", config.to_dict())
    metrics = list(pretrain_many(simclr.task, config, run, SEEDS))
    (folder / "metrics.json").write_text(json.dumps(metrics))


def ours(folder: Path) -> tuple[float, list[dict[str, float]]]:
    """Seconds of our process, and its metrics seed by seed."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "benchmarks.many", "--train", folder],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    seconds = time.perf_counter() - begin
    return seconds, json.loads((folder / "metrics.json").read_text())


def launch(seed: int, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of one launch of the recipe, and its metrics."""
    directory = folder / f"seed{seed}"
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "experiments.run", f"--config={CONFIG}", f"--config.seed={seed}",
         f"--workdir={directory}"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    return seconds, json.loads((directory / "summary.json").read_text())["metrics"]


class Steps:
    """A task's compiled step on one batch that is on the devices already."""

    def __init__(self, task: Task, count: int):
        """Compiles for `count` devices."""
        self.compiled = CompiledTask(task, make_mesh({"data": count}, jax.devices()[:count]))
        self.state = self.compiled.init()
        self.batch = jax.device_put(next(iter(task.batches())), self.compiled.batch_shardings)

    def take(self, steps: int) -> None:
        """Takes steps and waits for the last."""
        for _ in range(steps):
            self.state, metrics = self.compiled.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    @property
    def flops(self) -> float:
        """FLOPs of one step, as XLA counts them."""
        analysis: Any = self.compiled.step.cost_analysis()
        return analysis["flops"]


def measure_steps(repeats: int) -> list[Row]:
    """One step of all seeds beside a step of each, and beside the floor."""
    config = read_config()
    single = Steps(simclr.task(config), 1)
    together = Steps(
        many(simclr.task, [replaced(config, {SEED: seed}) for seed in SEEDS]), devices()
    )
    number = len(SEEDS)
    products = math.ceil(number * single.flops / (2 * SIDE**3))
    square = jnp.ones((SIDE, SIDE))
    product = jax.jit(jnp.matmul)

    def floor() -> None:
        for _ in range(products):
            found = product(square, square)
        found.block_until_ready()

    best = best_of_each(
        {"one": lambda: single.take(number), "all": lambda: together.take(1), "floor": floor},
        repeats,
    )
    share = number * single.flops / (products * 2 * SIDE**3)
    milliseconds = {name: 1e3 * seconds for name, seconds in best.items()}
    case = f"one step of {number} seeds"
    return [
        Row(case, "ms", milliseconds["all"], f"{number} single steps", milliseconds["one"]),
        Row(case, "ms", milliseconds["all"], "floor: products of as many FLOPs",
            share * milliseconds["floor"]),
    ]  # fmt: skip


def main() -> None:
    """Measures both sides and prints the table."""
    split_cpu(devices())
    if sys.argv[1:2] == ["--train"]:
        train_all(Path(sys.argv[2]))
        return
    args = options(__doc__)
    seeds = SEEDS[:2] if args.quick else SEEDS
    half = len(seeds) // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launched = [launch(seed, folder) for seed in seeds[:half]]
        seconds, metrics = ours(folder)
        launched += [launch(seed, folder) for seed in seeds[half:]]
    each = statistics.mean(own for own, _ in launched)
    counted = f"{len(seeds)} launches" + (f" x {len(SEEDS) // len(seeds)}" if args.quick else "")
    quality = [
        Row(
            f"{key} of seeds {seeds[0]} to {seeds[-1]}", "mean",
            statistics.mean(metrics[seed][key] for seed in seeds),
            counted, statistics.mean(own[key] for _, own in launched), lower_is_better=False,
        )
        for key in ("knn", "linear_probe")
    ]  # fmt: skip
    rows = [
        Row(f"{len(SEEDS)} seeds, all of it", "s", seconds, counted, len(SEEDS) * each),
        *measure_steps(3 if args.quick else 10),
        *quality,
    ]
    print_table(
        f"Many runs at once: jax {jax.__version__}, {os.cpu_count()} cores, ours on {devices()} of "
        f"{jax.device_count()} devices", rows,
    )  # fmt: skip
    finish("many", rows, args.json)


if __name__ == "__main__":
    main()
