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
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments import record
from experiments.launches import Run, hash_of, interrupt, launch_all
from experiments.registry import read_config
from experiments.results import reason_to_keep
from experiments.systems import System, read_systems
from rml.data.errors import DataError
from rml.errors import UserError, unknown

PATHS = ("npz", "folder", "images", "beir", "texts")
"""Kinds of data that are read from a path, as in `npz:PATH`."""


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
    groups: dict[tuple[str, ...], list[Run]] = collections.defaultdict(list)
    for run in runs:
        groups[run.of].append(run)
    complete = set()

    def ended(run: Run, problem: str) -> str:
        if problem:
            return problem
        complete.add(run)
        group = groups[run.of]
        # Without the seeds that failed a mean would flatter.
        if not complete.issuperset(group):
            return ""
        try:
            key, config = run.of
            result = record.make_result(key, config, [one.directory for one in group])
            figures = group[0].directory / "figures"
            console.print(record.write_result(result, figures, options.results))
        except UserError as error:
            return f"no result: {error}"
        return ""

    return launch_all(runs, options.jobs, console, ended)


def plan(systems: Sequence[System], options: argparse.Namespace, console: Console) -> Iterator[Run]:
    """All runs that are to be complete; of configs that are not measured it prints why."""
    for system in systems:
        for file in [options.config] if options.config else system.configs:
            config = read_config(file)
            stem = Path(file).stem
            run_hash = hash_of(config.to_dict())
            kept = reason_to_keep(
                options.results / system.key / f"{stem}.json", run_hash, options.seeds
            )
            if reason := why_not(file, config) or kept:
                console.print(f"skipped {system.key}, {stem}: {reason}")
                continue
            for seed in range(options.seeds):
                directory = options.runs / system.key / stem / f"seed{seed}"
                name = f"{system.key}, {stem}, seed {seed}"
                yield Run(name, (system.key, file), file, run_hash, seed, directory)


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

    from rml.assets import default_data_dir
    from rml.data import builders
    from rml.data.tfds_source import open_builder

    base = kind.partition("/")[0]
    if base in builders.KNOWN or base not in tfds.list_builders(with_community_datasets=False):
        return None  # carried by a package, or made by the experiment
    try:
        open_builder(name, Path(data.get("data_dir") or default_data_dir()).expanduser())
    except DataError as error:
        return str(error).partition(". ")[0]
    return None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    # Recipes are imported here to be asked for a picture: the accelerator belongs to the runs.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
