"""What a sweep consists of: the combinations of its grid, checked, and its run directories."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.launches import Run
from experiments.ranges import checked_experiment
from experiments.registry import read_config
from experiments.results import config_hash, tells_apart
from rml.errors import UserError
from rml.nested import flatten
from rml.training.config_file import differences, told
from rml.training.durable import make_directory

FILE = "sweep.json"
WRITTEN = ("sweep.csv", "sweep.md", "sweep.png", "slurm")
"""What a sweep leaves in its directory beside `FILE` and the folders of its combinations."""
NAME_LENGTH = 150


class Combination(NamedTuple):
    """One point of the grid.

    Attributes:
      values: Dotted keys of the config to their values.
      flags: The same as flags of the launcher.
      config_hash: Hash of the resolved config.
    """

    values: dict[str, Any]
    flags: tuple[str, ...]
    config_hash: str

    @property
    def folder(self) -> str:
        """The name of its directory, the same whatever the order of the keys."""
        name = ",".join(f"{key}={value}" for key, value in sorted(self.values.items()))
        safe = re.sub(r"[^\w.,=+-]+", "_", name)
        if safe == name and len(name) <= NAME_LENGTH:
            return name
        return f"{safe[:NAME_LENGTH]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as a run's `config.json` holds it."""
    return json.loads(json.dumps(config.to_dict()))


def short(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def describe(values: Mapping[str, Any]) -> str:
    """Values as they are printed, for example "learning_rate=0.001, temperature=0.1"."""
    names = [short(key) for key in values]
    shown = [
        name if names.count(name) == 1 else key for key, name in zip(values, names, strict=True)
    ]
    return ", ".join(f"{name}={value}" for name, value in zip(shown, values.values(), strict=True))


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Reads `key=value,value`; a comma within brackets or quotes belongs to its value.

    Raises:
      UserError: A text is no key with values, or a key stands twice or belongs to the sweep.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        key = key.removeprefix("config.")
        grid_values = [value.strip() for value in _split(values)]
        if not key or not all(grid_values):
            raise UserError(f"--grid is {text!r}, expected key=value,value")
        if key in grid:
            raise UserError(f"--grid names {key} twice; give all its values at once")
        if key == "seed":
            raise UserError("--grid names seed; --seeds=N runs the seeds 0 to N - 1")
        grid[key] = grid_values
    return grid


def _split(text: str) -> list[str]:
    """Splits at commas that are neither within brackets nor within quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([") - (letter in ")]")
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def combine(
    config: str, overrides: Sequence[str], grid: Mapping[str, list[str]]
) -> list[Combination]:
    """Makes all combinations of a grid and checks each as the launcher would.

    Args:
      config: Path of the config's file.
      overrides: Flags `--config.key=value` that all combinations share.
      grid: Dotted keys to the texts of their values.

    Returns:
      The combinations, the last key's values changing first.

    Raises:
      UserError: A key or a value is wrong, alone or together with others, or stands twice, or a
        key tells no measurements apart.
    """
    for key in grid:
        if not tells_apart(key):
            raise UserError(
                f"--grid names {key}, which tells no measurements apart; expected a key that "
                "changes what is measured"
            )
    for override in overrides:
        key = override.lstrip("-").removeprefix("config.").partition("=")[0]
        if key in (*grid, "seed"):
            by = "--grid" if key in grid else "--seeds"
            raise UserError(f"{override} gives one value for {key}, which {by} varies")
    found: dict[str, Combination] = {}
    for texts in itertools.product(*grid.values()):
        flags = tuple(f"--config.{key}={text}" for key, text in zip(grid, texts, strict=True))
        resolved = read_config(config, [*overrides, *flags])
        checked_experiment(resolved)
        flat = flatten(plain(resolved))
        for key in grid:
            if key not in flat:
                raise UserError(
                    f"--grid {key} names a group of values, expected a key of one value"
                )
        one = Combination({key: flat[key] for key in grid}, flags, config_hash(resolved.to_dict()))
        if one.config_hash in found:
            raise UserError(f"--grid gives {describe(one.values)} twice, expected distinct values")
        found[one.config_hash] = one
    return list(found.values())


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds a sweep's directory, made where it is missing, while it is in the context.

    Raises:
      UserError: Another sweep, whose combinations would be lost, holds it.
    """
    make_directory(workdir)
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--workdir {workdir} is in use by another sweep") from None
        except OSError:  # not every file system can lock a directory
            pass
        yield
    finally:
        os.close(descriptor)


def is_of_sweep(path: Path) -> bool:
    """Tells whether a sweep writes what is here: runs of a combination, their logs, `WRITTEN`."""
    if path.name in WRITTEN or not path.is_dir():
        return path.name in WRITTEN
    return all(re.fullmatch(r"seed\d+(\.log)?", run.name) for run in path.iterdir())


def open_sweep(workdir: Path, config: str, base: ConfigDict) -> dict[str, Any]:
    """Reads what a directory holds of this sweep, or begins a new one.

    Args:
      workdir: The sweep's directory.
      config: Path of the config's file.
      base: The config with the overrides that all combinations share.

    Returns:
      The content of its `sweep.json`.

    Raises:
      UserError: It holds something else, a damaged file, or a sweep of another config.
    """
    file = workdir / FILE
    begun: dict[str, Any] = {"config": config, "base": plain(base), "grid": [], "combinations": []}
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file, expected a directory")
    if not file.exists():
        if workdir.exists() and not all(map(is_of_sweep, workdir.iterdir())):
            raise UserError(
                f"--workdir {workdir} holds no sweep, expected a new or empty directory"
            )
        return begun
    try:
        saved = json.loads(file.read_text())
        rows = {key: saved[key] for key in begun}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; remove it to begin the sweep again") from None
    differing = {
        key: pair
        for key, pair in differences(rows["base"], begun["base"]).items()
        if tells_apart(key)
    }
    if differing:
        raise UserError(
            f"--workdir {workdir} holds a sweep of another config; give another directory, or the "
            f"same values: {'; '.join(told(differing))}"
        )
    return rows


def extend(sweep: dict[str, Any], combinations: Sequence[Combination], seeds: int) -> list[str]:
    """Adds combinations to a sweep; one that it has gets the seeds that are new.

    Args:
      sweep: See `open_sweep`, changed in place.
      combinations: Those of the grid.
      seeds: Number of seeds.

    Returns:
      The directory of each combination, that of its first runs where it has some.
    """
    rows = {row["config_hash"]: row for row in sweep["combinations"]}
    folders = []
    for one in combinations:
        sweep["grid"] += [key for key in one.values if key not in sweep["grid"]]
        if one.config_hash not in rows:
            row = {"folder": one.folder, "config_hash": one.config_hash, "seeds": 0}
            rows[one.config_hash] = row | {"values": one.values}
            sweep["combinations"].append(rows[one.config_hash])
        row = rows[one.config_hash]
        row["seeds"] = max(row["seeds"], seeds)
        folders.append(row["folder"])
    flat = flatten(sweep["base"])
    for row in sweep["combinations"]:
        row["values"] = {key: row["values"].get(key, flat[key]) for key in sweep["grid"]}
    return folders


def configs_of(sweep: Mapping[str, Any]) -> list[ConfigDict]:
    """The config of every combination of a sweep that `extend` has added to."""
    configs = []
    for row in sweep["combinations"]:
        config = ConfigDict(sweep["base"])
        with config.ignore_type():
            config.update_from_flattened_dict(row["values"])
        configs.append(config)
    return configs


def runs_of(
    workdir: Path, config: str, flags: Sequence[str], combinations: Sequence[Combination],
    folders: Sequence[str], seeds: int,
) -> list[Run]:  # fmt: skip
    """All runs of a grid; every combination's first seed comes before any second one."""
    return [
        Run(
            f"{describe(one.values)}, seed {seed}", (config,), config, one.config_hash, seed,
            workdir / folder / f"seed{seed}", (*flags, *one.flags),
        )
        for seed in range(seeds)
        for one, folder in zip(combinations, folders, strict=True)
    ]  # fmt: skip
