"""Measures the claims of systems in full and writes what was measured into `results/`.

`python -m experiments.claims [--only=simclr,supcon] [--seeds=3] [--jobs=2]` runs every config of
every built system whose data is on this machine, once a seed, through the launcher, in
`runs/claims/<system>/<config>/seed<n>`. Stopped and started again, it continues; a complete run is
not run again. With `--config=FILE` it measures this config of the one system that `--only` names.

`python -m experiments.claims --collect=DIR --only=SYSTEM --config=FILE [--commit=HASH]` runs
nothing and writes the result of the complete runs in `DIR/seed*`, made on this machine.
"""

import argparse
import collections
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments import record
from experiments.registry import read_config
from experiments.report.markup import duration
from experiments.results import config_hash, reason_to_keep
from experiments.systems import System, read_systems
from rml.data.errors import DataError
from rml.errors import UserError, unknown
from rml.training.rundir import write_json

PATHS = ("npz", "folder", "beir", "texts")
"""Kinds of data that are read from a path, as in `npz:PATH`."""


class Run(NamedTuple):
    """One config of one system with one seed."""

    key: str
    config: str
    config_hash: str
    seed: int
    directory: Path

    @property
    def of(self) -> tuple[str, str]:
        """What the runs of one result share."""
        return self.key, self.config

    @property
    def name(self) -> str:
        """What is printed of it."""
        return f"{self.key}, {Path(self.config).stem}, seed {self.seed}"

    def summary(self) -> dict[str, Any] | None:
        """Its summary, None before it is complete."""
        file = self.directory / "summary.json"
        return json.loads(file.read_text()) if file.exists() else None


def main(argv: Sequence[str] | None = None) -> int:
    """Measures or collects; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.claims", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--only", default="", help="keys of systems, with commas between; all built ones if empty")
    add("--seeds", type=int, default=3, help="seeds a config, from 0 (default 3)")
    add("--jobs", type=int, default=1, help="runs at once (default 1)")
    add("--config", default="", help="the one config to measure or collect, of one system")
    add("--runs", type=Path, default=Path("runs/claims"), help="where the runs are")
    add("--results", type=Path, default=Path("results"), help="where results are written")
    add("--collect", type=Path, help="write the result of complete runs in here, run nothing")
    add("--commit", default="", help="commit of collected runs that do not name theirs")
    options = parser.parse_args(argv)
    try:
        systems = chosen_systems(options.only, options.config)
        if options.collect is not None:
            return collect(systems, options)
        for name in ("seeds", "jobs"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name} is {getattr(options, name)}, expected at least 1")
        return measure(systems, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues")
        return 130


def interrupt(signum: int, _: FrameType | None) -> NoReturn:
    """Treats SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def chosen_systems(only: str, config: str) -> list[System]:
    """The built systems that are asked for.

    Raises:
      UserError: A key names no built system, or a config is given for more than one.
    """
    built = {key: system for key, system in read_systems().items() if system.built}
    keys = [key.strip() for key in only.split(",") if key.strip()]
    for key in keys:
        if key not in built:
            raise unknown("key of a built system", key, built)
    if config and len(keys) != 1:
        raise UserError(f"--config={config} needs the one system that it belongs to, as --only=KEY")
    return [built[key] for key in keys or built]


def collect(systems: Sequence[System], options: argparse.Namespace) -> int:
    """Writes the result of runs that are there."""
    if not options.config:
        raise UserError("--collect needs the config of the runs, as --config=FILE")
    read_config(options.config)  # a result names a file that exists
    found = sorted(options.collect.glob("seed*"))
    complete = [directory for directory in found if (directory / "summary.json").exists()]
    if not complete:
        raise UserError(f"{options.collect} has no complete run in a folder seed<n>")
    for directory in found:
        if directory not in complete:
            print(f"{directory} is not complete and left out")
    result = record.make_result(systems[0].key, options.config, complete, commit=options.commit)
    print(record.write_result(result, complete[0] / "figures", options.results))
    return 0


def measure(systems: Sequence[System], options: argparse.Namespace) -> int:
    """Runs what is missing and writes results as soon as a config's last run has ended."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    runs = list(plan(systems, options, console))
    groups: dict[tuple[str, str], list[Run]] = collections.defaultdict(list)
    for run in runs:
        groups[run.of].append(run)
    problems: dict[Run, str] = {}

    def ended(run: Run, problem: str) -> None:
        if problem:
            console.print(f"FAILED {run.name}: {problem}")
        problems[run] = problem
        group = groups[run.of]
        # Without the seeds that failed a mean would flatter.
        if any(problems.get(one, "not yet") for one in group):
            return
        try:
            result = record.make_result(run.key, run.config, [one.directory for one in group])
            figures = group[0].directory / "figures"
            console.print(record.write_result(result, figures, options.results))
        except UserError as error:
            problems[run] = f"no result: {error}"
            console.print(f"FAILED {run.name}: {problems[run]}")

    launch_all(runs, options.jobs, console, ended)
    failed = [f"{run.name}: {problem}" for run, problem in problems.items() if problem]
    if failed:
        console.print(f"{len(failed)} of {len(runs)} runs failed:", *failed, sep="\n  ")
    return int(bool(failed))


def plan(systems: Sequence[System], options: argparse.Namespace, console: Console) -> Iterator[Run]:
    """All runs that are to be complete; of configs that are not measured it prints why."""
    for system in systems:
        for file in [options.config] if options.config else system.configs:
            config = read_config(file)
            stem = Path(file).stem
            # As a run's config.json holds it.
            run_hash = config_hash(json.loads(json.dumps(config.to_dict())))
            kept = reason_to_keep(
                options.results / system.key / f"{stem}.json", run_hash, options.seeds
            )
            if reason := why_not(file, config) or kept:
                console.print(f"skipped {system.key}, {stem}: {reason}")
                continue
            for seed in range(options.seeds):
                directory = options.runs / system.key / stem / f"seed{seed}"
                yield Run(system.key, file, run_hash, seed, directory)


def why_not(file: str, config: ConfigDict) -> str | None:
    """Why a config is not measured on this machine; None where it is."""
    if "pods" in Path(file).parts:
        return "made for a pod"
    data = config.get("data") or {}
    name = str(data.get("name") or "")
    kind, _, path = name.partition(":")
    if kind in PATHS:
        return None if Path(path).expanduser().exists() else f"{path} is not on this machine"
    import tensorflow_datasets as tfds

    from rml.data import builders
    from rml.data.tfds_source import default_data_dir, open_builder

    base = kind.partition("/")[0]
    if base in {*builders.OURS, *builders.TEXTS} or base not in tfds.list_builders(
        with_community_datasets=False
    ):
        return None  # carried by a package, or made by the experiment
    try:
        open_builder(name, Path(data.get("data_dir") or default_data_dir()).expanduser())
    except DataError as error:
        return str(error).partition(". ")[0]
    return None


def launch_all(
    runs: Sequence[Run], jobs: int, console: Console, ended: Callable[[Run, str], None]
) -> None:
    """Makes runs complete and prints how it goes; where it is interrupted they save their state.

    Args:
      runs: Runs, in the order in which they start.
      jobs: Number of runs at once.
      console: Where progress is printed.
      ended: What to do with a run that has ended, given what went wrong, empty if nothing.
    """
    times: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    waiting = collections.deque(run for run in runs if run.summary() is None)
    total = len(waiting)
    if total < len(runs):
        console.print(f"{len(runs) - total} of {len(runs)} runs are complete already")
    for run in runs:
        if summary := run.summary():
            times[run.of].append(summary["seconds"])
            saved = json.loads((run.directory / "config.json").read_text())
            same = config_hash(saved) == run.config_hash
            ended(run, "" if same else other_config(run))
    running: dict[Run, tuple[subprocess.Popen, float, str]] = {}

    def left() -> str:
        now = time.monotonic()
        rest = [(times[run.of], 0.0) for run in waiting]
        rest += [(times[run.of], now - began) for run, (_, began, _) in running.items()]
        known = [max(0.0, statistics.fmean(took) - since) for took, since in rest if took]
        if rest and not known:
            return "time left not known yet"
        some = "about" if len(known) == len(rest) else "at least"
        return f"{some} {duration(sum(known) / jobs)} left"

    try:
        with console.status("") as status:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.popleft()
                    running[run] = start(run), time.monotonic(), record.current_commit()
                    console.print(f"started {run.name}")
                status.update(f"{'; '.join(run.name for run in running)}: {left()}")
                time.sleep(0.1)
                for run in [
                    run for run, (process, *_) in running.items() if process.poll() is not None
                ]:
                    process, began, commit = running.pop(run)
                    problem = outcome(run, process.returncode, commit)
                    if not problem:
                        took = time.monotonic() - began
                        times[run.of].append(took)
                        number = total - len(waiting) - len(running)
                        console.print(
                            f"done {run.name} in {duration(took)}; {number} of {total}; {left()}"
                        )
                    ended(run, problem)
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.wait()


def start(run: Run) -> subprocess.Popen:
    """Starts the launcher on a run; what it prints goes to a file beside the run."""
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "experiments.run", f"--config={run.config}",
        f"--config.seed={run.seed}", f"--workdir={run.directory}",
    ]  # fmt: skip
    with log_file(run).open("w") as log:
        # In a session of its own it is told once of an interruption, not by the terminal as well.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def log_file(run: Run) -> Path:
    """Where a run's output is."""
    return run.directory.with_suffix(".log")


def outcome(run: Run, code: int, commit: str) -> str:
    """What went wrong in a run that has ended; one that is complete is marked with its commit."""
    summary = run.summary()
    if code == 0 and summary is not None:
        write_json(run.directory / "summary.json", summary | {"commit": commit})
        return ""
    lines = [line.strip() for line in log_file(run).read_text().splitlines() if line.strip()]
    last = next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "")
    if "of a different config" in last:
        return other_config(run)
    return f"exit code {code}: {last} ({log_file(run)})"


def other_config(run: Run) -> str:
    """What is wrong where a config was changed since its runs began."""
    return f"{run.directory} holds a run of another config; remove it to measure this one"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    # Recipes are imported here to be asked for a picture: the accelerator belongs to the runs.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
