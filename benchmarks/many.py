"""Ten seeds of SimCLR on digits, one program a core, beside ten launches of the recipe in a row.

`python -m benchmarks.many [--json] [--quick]`. Either side starts its own processes, trains,
evaluates and measures all metrics of every seed. Ours is a process a core, bound to it, and in each
its share of the seeds is one program. A launch has all cores; it also draws its figures, as the
user's does. All ten are launched, half of them before ours; with `--quick` two are, and their time
is taken for ten. Both sides find the programs that an untimed run of each compiled before. Beside
them stand one core's training steps alone, in turns in one process, and the floor: matrix products
of as many FLOPs.
"""

import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import Row, best_of_each, finish, options, print_table, products
from experiments.common.many import SEED, many, pretrain_many, replaced
from experiments.contrastive import simclr
from experiments.cpu import cores, use_huge_pages
from experiments.spawn import bind, shares_of_cores
from experiments.startup import keep_compiled
from rml.training import CompiledTask, RunDirectory, Task, make_mesh

CONFIG = "configs/contrastive/simclr_digits.py"
SEEDS = tuple(range(10))


def shares() -> list[tuple[int, ...]]:
    """The seeds of each of our processes, of which there is one a core."""
    return [part for core in range(cores()) if (part := SEEDS[core :: cores()])]


def read_config() -> Any:
    """The config that either side trains."""
    return runpy.run_path(CONFIG)["get_config"]()


def train_share(folder: Path, seeds: Sequence[int]) -> None:
    """One of our processes: leaves the metrics of its seeds in the folder."""
    config = read_config()
    run = RunDirectory(folder / "run", config.to_dict())
    found = dict(zip(seeds, pretrain_many(simclr.task, config, run, seeds), strict=True))
    (folder / "metrics.json").write_text(json.dumps(found))


def ours(
    folder: Path, module: str = "benchmarks.many"
) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of our processes, each `module --train FOLDER SEEDS`, and their metrics by seed."""
    begin = time.perf_counter()
    processes = []
    bound = shares_of_cores(len(shares()))
    for own, (seeds, core) in enumerate(zip(shares(), bound, strict=True)):
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--train", folder / str(own), *map(str, seeds)],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        bind(process, core)
        processes.append(process)
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError("a process of ours failed, see above")
    seconds = time.perf_counter() - begin
    files = [folder / str(own) / "metrics.json" for own in range(len(processes))]
    return seconds, {
        key: own for file in files for key, own in json.loads(file.read_text()).items()
    }


def both_sides(
    launch: Callable[[int, Path], Any], seeds: Sequence[int], module: str = "benchmarks.many"
) -> tuple[list[Any], float, dict[str, dict[str, float]]]:
    """What launches of seeds give, half before ours and half after, and what `ours` gives.

    Each side runs once before, untimed, so that both find their programs compiled.
    """
    half = len(seeds) // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch(seeds[0], folder / "before")
        ours(folder / "before", module)
        launched = [launch(seed, folder) for seed in seeds[:half]]
        found = ours(folder, module)
        launched += [launch(seed, folder) for seed in seeds[half:]]
    return launched, *found


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
    """A task's compiled step on one batch that is on the device already."""

    def __init__(self, task: Task):
        """Compiles it."""
        self.compiled = CompiledTask(task, make_mesh({"data": 1}, jax.devices()[:1]))
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
    """One step of a core's seeds beside a step of each, and beside the floor."""
    config = read_config()
    seeds = shares()[0]
    if own := shares_of_cores(len(shares()))[0]:
        os.sched_setaffinity(0, own)  # before XLA starts a thread a core
    single = Steps(simclr.task(config))
    together = Steps(many(simclr.task, [replaced(config, {SEED: seed}) for seed in seeds]))
    number = len(seeds)
    floor = products(number * single.flops)
    best = best_of_each(
        {"one": lambda: single.take(number), "all": lambda: together.take(1), "floor": floor.run},
        repeats,
    )
    milliseconds = {name: 1e3 * seconds for name, seconds in best.items()}
    case = f"one step of {number} seeds"
    return [
        Row(case, "ms", milliseconds["all"], f"{number} single steps", milliseconds["one"]),
        Row(case, "ms", milliseconds["all"], floor.name, floor.share * milliseconds["floor"]),
    ]  # fmt: skip


def main() -> None:
    """Measures both sides and prints the table."""
    if sys.argv[1:2] == ["--train"]:
        keep_compiled()  # as a launch does
        train_share(Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]])
        return
    args = options(__doc__)
    seeds = SEEDS[:2] if args.quick else SEEDS
    count = len(shares())
    launched, seconds, metrics = both_sides(launch, seeds)
    each = statistics.mean(own for own, _ in launched)
    counted = f"{len(seeds)} launches" + (f" x {len(SEEDS) // len(seeds)}" if args.quick else "")
    quality = [
        Row(
            f"{key} of seeds {seeds[0]} to {seeds[-1]}", "mean",
            statistics.mean(metrics[str(seed)][key] for seed in seeds),
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
        f"Many runs at once: jax {jax.__version__}, ours in {count} processes of a core each", rows,
    )  # fmt: skip
    finish("many", rows, args.json)


if __name__ == "__main__":
    use_huge_pages("benchmarks.many")  # as a launch does
    main()
