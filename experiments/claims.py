"""Measures the claims of systems in full and writes what was measured into `results/`.

`python -m experiments.claims [--only=simclr,supcon] [--seeds=3] [--jobs=2]` runs every config of
every built system whose data is on this machine, once a seed, through the launcher, in
`runs/claims/<system>/<config>/seed<n>`, and once more in `<null>/seed<n>` beside it for every null
that a claim names of the recipe's `NULLS`. Stopped and started again, it continues; a complete run
is not run again. With `--config=FILE` it measures this config of the one system that `--only`
names. What the runs stated is judged, or today's claims where the result that is there has these,
as one that was restated does. A claim that is vacuous fails the program, after all has been
measured.

`python -m experiments.claims --collect=DIR --only=SYSTEM --config=FILE [--commit=HASH]` runs
nothing and writes the result of the complete runs in `DIR/seed*` and `DIR/<null>/seed*`, made on
this machine; runs whose config is not the file's are refused. It judges what the runs stated, or
with `--restate` what the recipe claims today: of claims that were added or worded anew since, each
has the date on which it was stated, and runs from before and after may stand together. `--restate`
without `--collect` judges today's claims by the metrics that the result itself keeps.
"""

if __name__ == "__main__":
    from experiments.interrupts import stop_at_once

    stop_at_once()

import argparse
import collections
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments import record
from experiments.interrupts import raise_interrupts
from experiments.launches import Run, catch_signals, launch_all
from experiments.registry import find_experiment, options_tried, read_config, runs_read
from experiments.results import (  # fmt: skip
    config_hash,
    interval,
    measured,
    null,
    read_result,
    reason_to_keep,
    result_file,
)
from experiments.startup import LocalPath, Parser, check_writable
from experiments.systems import System, read_systems
from rml.data.errors import DataError
from rml.errors import UserError, unknown
from rml.training.config_file import as_written, differences, list_differences, read_summary
from rml.training.config_file import read_config as config_of_run

PATHS = ("npz", "folder", "images", "beir", "texts")
"""Kinds of data that are read from a path, as in `npz:PATH`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures or collects; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.claims", description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--only", default="", help="keys of systems, with commas between; all built ones if empty")
    add("--seeds", type=int, default=3, help="seeds a config, from 0 (default 3)")
    add("--jobs", type=int, default=1, help="runs at once (default 1)")
    add("--config", default="", help="the one config to measure or collect, of one system")
    add("--runs", action=LocalPath, default=Path("runs/claims"), help="where the runs are")
    add("--results", action=LocalPath, default=Path("results"), help="where results are written")
    add("--collect", action=LocalPath, help="write the result of complete runs in it, run nothing")
    add("--commit", default="", help="commit of collected runs that do not name theirs")
    add(
        "--restate",
        action="store_true",
        help="judge collected runs, or else a result, by the claims of today",
    )
    add("--join", action="store_true", help="measure only seeds that a result lacks, and join them")
    try:
        options = parser.parse_args(argv)
        systems, options.config = chosen_systems(options.only, options.config)
        if options.collect is not None:
            return collect(systems, options)
        if options.restate:
            return restate(systems, options)
        for name in ("seeds", "jobs"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name} is {getattr(options, name)}, expected at least 1")
        return measure(systems, options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues")
        return 130


def chosen_systems(only: str, config: str) -> tuple[list[System], str]:
    """Finds the built systems that are asked for, and the config as the one that has it spells it.

    Args:
      only: Keys of systems, with commas between; empty for all built ones.
      config: Path of the one config that is meant; empty for all.

    Returns:
      The systems, and the path as the system has it.

    Raises:
      UserError: A key names no built system, or a config is given for more than one, or for one
        that does not have it.
    """
    built = {key: system for key, system in read_systems().items() if system.built}
    keys = [key.strip() for key in only.split(",") if key.strip()]
    for key in keys:
        if key not in built:
            raise unknown("key of a built system", key, built)
    if config and len(keys) != 1:
        raise UserError(f"--config={config} needs the one system that it belongs to, as --only=KEY")
    chosen = [built[key] for key in keys or built]
    if not config:
        return chosen, config
    for own in chosen[0].configs:
        if Path(own) == Path(config):
            return chosen, own
    raise unknown(f"config of {keys[0]}", config, chosen[0].configs)


def collect(systems: Sequence[System], options: argparse.Namespace) -> int:
    """Writes the result of runs that are there."""
    if not options.config:
        raise UserError("--collect needs the config of the runs, as --config=FILE")
    config = read_config(options.config)  # a result names a file that exists

    def find(folder: Path) -> list[Path]:
        found = sorted(own for own in folder.glob("seed*") if own.is_dir())
        complete = [directory for directory in found if (directory / "summary.json").exists()]
        for directory in found:
            if directory not in complete:
                print(f"{directory} is not complete and left out")
        return complete

    complete = find(options.collect)
    if not complete:
        raise UserError(f"{options.collect} has no complete run in a folder seed<n>")
    changes = null_runs(config)
    nulls = {name: find(options.collect / name) for name in changes}
    nulls = {name: runs for name, runs in nulls.items() if runs}
    for directory in itertools.chain(complete, *nulls.values()):
        name = (read_summary(directory) or {}).get("config_name")
        if name and not Path(name).match(options.config):
            raise UserError(f"{directory} holds a run of {name}, expected one of {options.config}")
    for name, runs in {"": complete, **nulls}.items():
        expected = read_config(options.config, changes[name]) if name else config
        for directory in runs:
            check_config(directory, options.config, expected)
    claims = find_experiment(config.experiment).CLAIMS if options.restate else None
    result = record.make_result(
        systems[0].key, options.config, complete, nulls=nulls, commit=options.commit, claims=claims
    )
    file = result_file(options.results, systems[0].key, options.config)
    if old := joined(file, config, options):
        result = record.join_results(result, old, file)
    print(record.write_result(result, complete[0] / "figures", options.results))
    return int(bool(tell_vacuous([result])))


def check_config(directory: Path, file: str, config: ConfigDict) -> None:
    """Raises `UserError` where a run's config is not that of a file, with the keys that differ.

    Args:
      directory: Directory of the run.
      file: Path of the config's file, for the message.
      config: The config that is expected; its seed, its mesh and where it reads do not count.
    """
    now = measured(as_written(config.to_dict()))
    there = measured(config_of_run(directory) or {})
    if config_hash(now) == config_hash(there):
        return
    # In this order no key is left out that configs have had from some day on.
    pairs = {key: pair[::-1] for key, pair in differences(now, there).items()}
    raise UserError(
        f"{directory} holds a run of another config than {file}: "
        f"{list_differences(pairs) or 'the type of a value'}"
    )


def restate(systems: Sequence[System], options: argparse.Namespace) -> int:
    """Judges the claims of today by what a result keeps of every seed; runs nothing."""
    if not options.config:
        raise UserError("--restate needs the config of the result, as --config=FILE")
    config = read_config(options.config)
    file = result_file(options.results, systems[0].key, options.config)
    if not file.exists():
        raise UserError(f"there is no {file}, expected the result whose claims are restated")
    recipe = find_experiment(config.experiment)
    result = record.restate_result(
        read_result(file), config_hash(config.to_dict()), recipe.CLAIMS, file,
        tries=options_tried(recipe, config),
    )  # fmt: skip
    print(record.rewrite_result(result, options.results))
    return int(bool(tell_vacuous([result])))


def joined(file: Path, config: ConfigDict, options: argparse.Namespace) -> dict[str, Any] | None:
    """The result whose seeds are joined; None without `--join` or where there is none.

    Raises:
      UserError: No seed can be joined with it.
    """
    if not options.join or not file.exists():
        return None
    old = read_result(file)
    claims = find_experiment(config.experiment).CLAIMS
    record.check_joins(old, config_hash(config.to_dict()), claims, file)
    return old


def null_runs(config: ConfigDict) -> dict[str, tuple[str, ...]]:
    """Flags of the launcher by name of a null that the claims of a config's recipe are held to.

    Raises:
      UserError: A claim names a null that the recipe lacks.
    """
    recipe = find_experiment(config.experiment)
    changes = getattr(recipe, "NULLS", {})
    names = dict.fromkeys(claim.null_run for claim in recipe.CLAIMS if claim.null_run)
    for name in names:
        if name not in changes:
            raise unknown(f"null of a claim of {config.experiment}", name, changes)
    return {
        name: tuple(f"--config.{key}={value}" for key, value in changes[name].items())
        for name in names
    }


def tell_vacuous(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Prints the claims that say nothing, since they pass where the idea is absent as well."""
    found = [
        f"vacuous: {result['system']}, {Path(result['config']).stem}: {claim['statement']} "
        f"({claim['metric']} {interval(claim['mean'], claim['low'], claim['high'])}; null "
        f"{null(claim)})"
        for result in results
        for claim in result["claims"]
        if claim["verdict"] == "vacuous"
    ]
    print(*found, sep="\n", end="\n" * bool(found), file=sys.stderr)
    return found


def measure(systems: Sequence[System], options: argparse.Namespace) -> int:
    """Runs what is missing and writes results as soon as a config's last run has ended."""
    for name in ("runs", "results"):
        folder = getattr(options, name)
        check_writable(folder, f"--{name}={folder}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    refused: list[str] = []
    runs = list(dict.fromkeys(plan(systems, options, console, refused)))
    groups: dict[tuple[str, ...], list[Run]] = collections.defaultdict(list)
    for run in runs:
        groups[run.of[:2]].append(run)
    complete, written = set(), []

    def ended(run: Run, problem: str) -> str:
        if problem:
            return problem
        complete.add(run)
        key, config = run.of[:2]
        group = groups[key, config]
        # Without the seeds that failed a mean would flatter.
        if not complete.issuperset(group):
            return ""
        directories: dict[str, list[Path]] = collections.defaultdict(list)
        for one in group:
            directories["".join(one.of[2:])].append(one.directory)
        try:
            own = directories.pop("")
            what, file = read_config(config), result_file(options.results, key, config)
            today = find_experiment(what.experiment).CLAIMS
            restated = record.claims_to_judge(file, config_hash(what.to_dict()), today)
            result = record.make_result(key, config, own, nulls=directories, claims=restated)
            if old := joined(file, what, options):
                if {*result["seeds"]} <= {*old["seeds"]}:
                    return ""  # runs that others read
                result = record.join_results(result, old, file)
            console.print(record.write_result(result, own[0] / "figures", options.results))
            written.append(result)
        except (UserError, OSError) as error:
            return f"no result: {error}"
        return ""

    failed = launch_all(runs, options.jobs, console, ended)
    return int(bool(tell_vacuous(written)) or failed or bool(refused))


def plan(
    systems: Sequence[System], options: argparse.Namespace, console: Console, refused: list[str]
) -> Iterator[Run]:
    """All runs that are to be complete; of configs that are not measured it prints why.

    Files of results that are damaged, or with which no seed can be joined, are added to `refused`.
    """
    for system in systems:
        for file in [options.config] if options.config else system.configs:
            config = read_config(file)
            stem, run_hash = Path(file).stem, config_hash(config.to_dict())
            result = result_file(options.results, system.key, file)
            try:
                old = joined(result, config, options)
                there = old["seeds"] if old else []
                seeds = [seed for seed in range(options.seeds) if seed not in there]
                kept = reason_to_keep(result, run_hash, [*there, *seeds])
                if not seeds:
                    kept = f"{result} has seeds {there} of this config"
                if reason := why_not(file, config) or kept:
                    console.print(f"skipped {system.key}, {stem}: {reason}")
                    continue
                runs = list(runs_of(system.key, file, options, seeds))
            except UserError as error:
                console.print(f"skipped {system.key}, {stem}: {error}")
                refused.append(str(result))
                continue
            yield from runs


def runs_of(
    key: str, file: str, options: argparse.Namespace, seeds: Sequence[int]
) -> Iterator[Run]:
    """The runs of a config, those of its nulls beside them, those that they read before them.

    A recipe's `READS` names, by the key of its config that holds the directory, the config of a run
    that many read, such as models that are trained once for all; each seed reads its own.

    Raises:
      UserError: No system has the config that `READS` names, or no seed can be joined with a result
        that is there.
    """
    config, stem = read_config(file), Path(file).stem
    read = {}
    for name, other in runs_read(find_experiment(config.experiment), config).items():
        owners = [own.key for own in read_systems().values() if other in own.configs]
        if not owners:
            raise UserError(
                f"READS of experiment {config.experiment} names {other!r}, expected a config of a "
                "system; see python -m experiments.systems check"
            )
        owner = owners[0]
        joined(result_file(options.results, owner, other), read_config(other), options)
        yield from runs_of(owner, other, options, seeds)
        read[name] = options.runs / owner / Path(other).stem
    for null_name, flags in {"": (), **null_runs(config)}.items():
        changed = config_hash(read_config(file, flags).to_dict())
        of = (key, file, *filter(None, [null_name]))
        folder = options.runs / key / stem / null_name
        for seed in seeds:
            words = (key, stem, *of[2:], f"seed {seed}")
            needs = {name: one / f"seed{seed}" for name, one in read.items()}
            own = (*flags, *(f"--config.{name}={one}" for name, one in needs.items()))
            yield Run(
                ", ".join(words), of, file, changed, seed, folder / f"seed{seed}", own,
                tuple(needs.values()),
            )  # fmt: skip


def why_not(file: str, config: ConfigDict) -> str | None:
    """Why a config is not measured on this machine; None where it is."""
    if "pods" in Path(file).parts:
        return "made for a pod"
    data = config.get("data") or {}
    name = str(data.get("name") or "")
    kind, _, path = name.partition(":")
    if kind in PATHS and not Path(path).expanduser().exists():
        return f"{path} is not on this machine"
    import tensorflow_datasets as tfds  # slow to import, as is what imports it

    from experiments.common.weights import archives_named
    from experiments.data_sets import absent, missing, named
    from rml.assets import default_data_dir
    from rml.data import builders
    from rml.data.tfds_source import open_builder

    data_dir = Path(data.get("data_dir") or default_data_dir()).expanduser()
    archives = {one: missing(one, data_dir) for one in named(config)}
    archives |= {one: absent([one]) for one in archives_named(config)}
    if lacking := [one for one in archives if archives[one]]:
        needed = dict.fromkeys(itertools.chain(*archives.values()))
        return (
            f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not on this machine: "
            f"python -m rml.assets {' '.join(needed)}"
        )
    base = kind.partition("/")[0]
    if (
        kind in PATHS
        or base in builders.KNOWN
        or base not in tfds.list_builders(with_community_datasets=False)
    ):
        return None  # carried by a package, or made by the experiment
    try:
        open_builder(name, data_dir)
    except DataError as error:
        return str(error).partition(". ")[0]
    return None


if __name__ == "__main__":
    raise_interrupts()
    catch_signals()
    # Recipes are imported here to be asked for a picture: the accelerator belongs to the runs.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
