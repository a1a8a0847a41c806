"""Runs every combination of a grid with several seeds and says which is best.

`python -m experiments.sweep --config=FILE --grid optimizer.learning_rate=1e-3,3e-3 --seeds=5`
launches each combination and seed in `runs/sweep/<combination>/seed<n>`. Stopped and started again
it continues; complete runs are not run again; another grid in the same directory is added to it.
"""

if __name__ == "__main__":
    from experiments.interrupts import stop_at_once

    stop_at_once()

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments.interrupts import raise_interrupts
from experiments.launches import Run, catch_signals, launch_all, other_config
from experiments.ranges import checked_experiment
from experiments.registry import read_config
from experiments.startup import LocalPath, Parser, check_writable
from experiments.sweep import plan, table
from rml.errors import UserError, install


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
      UserError: A flag or its value is wrong.
    """
    parser = Parser(
        prog="python -m experiments.sweep", allow_abbrev=False,
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.key=value overrides a value of the config in all runs.",
    )  # fmt: skip
    add = parser.add_argument
    add("--config", required=True, help="config file")
    add(
        "--grid", action="append", required=True, metavar="KEY=VALUE,VALUE",
        help="a key of the config and its values; every --grid multiplies the combinations",
    )  # fmt: skip
    add("--seeds", type=int, default=3, help="seeds a combination, from 0 (default 3)")
    add(
        "--workdir", action=LocalPath, default=Path("runs/sweep"),
        help="directory (default runs/sweep)",
    )  # fmt: skip
    add("--jobs", type=int, default=1, help="runs at once on this machine (default 1)")
    add(
        "--slurm", metavar="NAME=VALUE,...",
        help="submit one job array instead, with options of sbatch, as partition=gpu,time=60",
    )  # fmt: skip
    add(
        "--best", default="", metavar="METRIC",
        help="metric that says what is best; METRIC:min where less is better",
    )  # fmt: skip
    add("--mlflow", metavar="URI", help="MLflow store that runs log to as well")
    add("--dry_run", action="store_true", help="show what would be run; run nothing, open no data")
    options, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith("--config.") or "=" not in argument:
            parser.error(
                f"unexpected argument {argument!r}; values are given as --config.key=value"
            )
    options.overrides = rest
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}, expected at least 1")
    if options.best.partition(":")[2] not in ("", "min", "max"):
        raise UserError(f"--best is {options.best!r}, expected METRIC, METRIC:max or METRIC:min")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Sweeps; returns the exit code."""
    try:
        return sweep(parse(argv))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues")
        return 130


def sweep(options: argparse.Namespace) -> int:
    """Checks everything, runs what is missing, tells what was measured."""
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    base = read_config(options.config, options.overrides)
    recipe = checked_experiment(base)
    grid = plan.parse_grid(options.grid)
    combinations = plan.combine(options.config, options.overrides, grid)
    check_writable(options.workdir, f"--workdir={options.workdir}")
    if options.mlflow:
        from rml.training.tracking import check_uri

        check_uri(options.mlflow)
    with nullcontext() if options.dry_run else plan.hold(options.workdir):
        return run_all(options, base, combinations, recipe, console)


def run_all(
    options: argparse.Namespace,
    base: ConfigDict,
    combinations: Sequence[plan.Combination],
    recipe: Any,
    console: Console,
) -> int:
    """Adds the combinations to the sweep of the directory and runs what is missing."""
    workdir = options.workdir
    whole = plan.open_sweep(workdir, options.config, base)
    folders = plan.extend(whole, combinations, options.seeds)
    judge = table.choose_judge(options.best, recipe, plan.configs_of(whole))
    flags = [*options.overrides, *([f"--mlflow={options.mlflow}"] if options.mlflow else [])]
    runs = plan.runs_of(workdir, options.config, flags, combinations, folders, options.seeds)
    if options.slurm is not None:
        return on_cluster(options, whole, runs, judge, console)
    if options.dry_run:
        return show(runs, console)
    joined, _ = table.write(whole, workdir, judge)
    table.check_measured(joined["combinations"], judge)

    def key_metric(run: Run) -> str:
        value = table.measured(run.directory).get(judge.metric)
        if value is None:  # better now than after all runs
            table.check_measured([table.join(row, workdir) for row in whole["combinations"]], judge)
            return ""
        return f"{judge.metric} {value:.4g}"

    code = launch_all(runs, options.jobs, console, note=key_metric)
    table.conclude(whole, workdir, judge, console)
    return code


def show(runs: Sequence[Run], console: Console) -> int:
    """Prints what would be run."""
    for run in runs:
        state = "to run"
        if run.summary() is not None:
            state = "complete" if run.is_of_config() else "of another config"
        console.print(f"{state}: {run.name}: {run.directory}")
    return 0


def on_cluster(
    options: argparse.Namespace,
    whole: Any,
    runs: Sequence[Run],
    judge: table.Judge,
    console: Console,
) -> int:
    """Submits what is missing as one job array, or shows its script; tells what is complete."""
    try:
        from experiments.sweep import slurm
    except ImportError:
        raise UserError(f"--slurm needs submitit: {install('slurm')}") from None
    parameters = slurm.parse_parameters(options.slurm)
    complete = [run for run in runs if run.summary() is not None]
    missing = [run for run in runs if run not in complete]
    folder = options.workdir / "slurm"
    if options.dry_run:
        show(runs, console)
        if missing:
            console.print(slurm.script(missing, parameters, folder))
        return 0
    table.write(whole, options.workdir, judge)
    for line in slurm.submit(missing, parameters, folder):
        console.print(line)
    refused = [other_config(run) for run in complete if not run.is_of_config()]
    console.print(*refused, sep="\n", end="\n" * bool(refused))
    table.conclude(whole, options.workdir, judge, console)
    return int(bool(refused))


if __name__ == "__main__":
    raise_interrupts()
    catch_signals()
    # Recipes are imported here to be asked for a metric: the accelerator belongs to the runs.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
