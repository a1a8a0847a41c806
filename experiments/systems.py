"""The systems of `systems.toml`: lists, shows and checks them.

python -m experiments.systems list [--area=AREA] [--built]
python -m experiments.systems show KEY
python -m experiments.systems show --config=FILE [--config.key=value]
python -m experiments.systems data [--prepare=NAME]
python -m experiments.systems check
"""

if __name__ == "__main__":
    from experiments.interrupts import stop_at_once

    stop_at_once()

import argparse
import dataclasses
import functools
import json
import shutil
import signal
import statistics
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import registry
from experiments.checks import check
from experiments.interrupts import raise_interrupts
from experiments.results import count_seeds, interval
from experiments.startup import Parser
from rml.errors import UserError, unknown

ROOT = registry.ROOT
AREAS = (
    "contrastive", "hydra", "fewshot", "attention", "kernels", "retrieval", "metric", "supervision",
    "merging", "distillation", "moe", "sparsity", "theory", "continual", "recommendation",
    "visionlanguage", "multimodal", "tokens", "video", "dense", "audio",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class System:
    """A paper with what stands for it here.

    Attributes:
      key: Name of its table in `systems.toml`.
      title: Title of the paper.
      authors: Names of all authors.
      year: Year of publication, or of the preprint where no venue is known.
      arxiv: Number of the preprint, such as "2205.12345"; empty if there is none.
      venue: Where it was published; empty if unknown.
      area: Room of `rml/` that it belongs to.
      section: Heading that it stands under where systems are listed.
      claim: What must hold when it is measured.
      functions: Dotted names of the functions that implement it.
      configs: Config files, that of the claim first.
      extras: Those of the config files whose claims are not counted among the system's, and why.
      headline: Claim that says what came of it, as "KEY/CONFIG: METRIC"; empty for the first claim
        of its first measured config.
      baseline: Whether it is there for others to be measured against.
    """

    key: str
    title: str
    authors: tuple[str, ...]
    year: int
    arxiv: str
    venue: str
    area: str
    section: str
    claim: str
    functions: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    extras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    headline: str = ""
    baseline: bool = False

    @property
    def built(self) -> bool:
        """Whether it names functions and configs and all of them exist."""
        found = [*map(_is_defined, self.functions), *((ROOT / c).is_file() for c in self.configs)]
        return bool(self.functions and self.configs) and all(found)


def read_systems(path: Path = ROOT / "systems.toml") -> dict[str, System]:
    """Reads the registry.

    Args:
      path: The file.

    Returns:
      The systems by key, in the file's order, the baselines last.

    Raises:
      UserError: The file is no TOML, a field is wrong or a key stands there twice.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:  # a table that is there twice is one
        raise UserError(f"{path}: {error}") from None
    systems: dict[str, System] = {}
    for kind, table in tables.items():
        if kind not in ("systems", "baselines"):
            raise UserError(f"{path}: {unknown('table', kind, ('systems', 'baselines'))}")
        for key, fields in table.items():
            if key in systems:
                raise UserError(f"{path}: {key} is both a system and a baseline")
            systems[key] = _system(f"{path}: {kind}.{key}", key, fields, kind == "baselines")
    return systems


def find_system(key: str) -> System:
    """The system of a key.

    Raises:
      UserError: There is none; the nearest key is suggested.
    """
    systems = read_systems()
    if key not in systems:
        raise unknown("system", key, systems)
    return systems[key]


def list_systems(systems: Iterable[System], width: int | None = None) -> str:
    """A table of systems: key, area, whether built, number of configs, title.

    Args:
      systems: The systems to list.
      width: Width that lines are cut to; whole lines if absent.

    Returns:
      One line a system.
    """
    rows = [
        (s.key, s.area, "built" if s.built else "-", str(len(s.configs)), s.title) for s in systems
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    return "\n".join(
        "  ".join([*(f"{cell:{w}}" for cell, w in zip(row, widths, strict=False)), row[4]])[:width]
        for row in rows
    )


def show_system(system: System, results: Path = ROOT / "results") -> str:
    """All that is known of a system.

    Args:
      system: The system.
      results: Folder of measurements, `KEY/CONFIG.json`, where there is one.

    Returns:
      Text of several lines.
    """
    source = [", ".join(filter(None, [system.venue, str(system.year)]))]
    if system.arxiv:
        source.append(f"https://arxiv.org/abs/{system.arxiv}")
    lines = [
        f"{system.key}: {system.title}",
        *textwrap.wrap(", ".join(system.authors), 100),
        "; ".join(source),
        f"area {system.area}, section {system.section}, {'' if system.built else 'not '}built",
        *textwrap.wrap(f"claim: {system.claim}", 100),
        *(f"function {name}" for name in system.functions),
    ]
    for config in system.configs:
        lines += ["", config]
        if (ROOT / config).is_file():
            what, command = registry.describe(ROOT / config)
            lines[-1] += f": {what}\n  {command}"
        if config in system.extras:
            lines.append(f"  an extra that is not counted: {system.extras[config]}")
        measured = results / system.key / f"{Path(config).stem}.json"
        if measured.is_file():
            lines += [f"  {line}" for line in _show_result(measured)]
    return "\n".join(lines)


def show_config(config: ConfigDict) -> str:
    """A config flat: `key = value` with dotted keys, sorted, values as Python writes them."""
    lines = []
    for key in sorted(registry.config_keys(config)):
        value = functools.reduce(ConfigDict.__getitem__, key.split("."), config)
        if not isinstance(value, ConfigDict):
            lines.append(f"{key} = {value!r}")
        elif not value:
            lines.append(f"{key} = {{}}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Runs one command; a mistake is told in one line.

    Args:
      argv: Its arguments, without the program's name.

    Returns:
      The exit status.
    """
    try:
        args, overrides = _parser().parse_known_args(argv)
        for flag in overrides:
            if not flag.startswith("--config.") or not getattr(args, "config", None):
                raise UserError(f"unexpected argument {flag!r}")
        return args.run(args, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = Parser(
        prog="python -m experiments.systems", description=description, allow_abbrev=False,
        epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[Any, Sequence[str]], int]) -> argparse.ArgumentParser:
        what = (run.__doc__ or "").rstrip(".")
        command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    command = add("list", _list)
    command.add_argument("--area", help="only those of a room of rml/")
    command.add_argument("--built", action="store_true", help="only those that are built")
    command = add("show", _show)
    command.add_argument("key", nargs="?", help="key of the system")
    command.add_argument("--config", help="config file; --config.key=value overrides a value")
    command = add("data", _data)
    command.add_argument("--prepare", metavar="NAME", help="prepares this data set and lists it")
    add("check", _check)
    return parser


def _list(args: argparse.Namespace, _: Sequence[str]) -> int:
    """Lists systems with their areas, configs and titles."""
    if args.area is not None and args.area not in AREAS:
        raise unknown("area", args.area, AREAS)
    chosen = [
        system
        for system in read_systems().values()
        if args.area in (None, system.area) and (system.built or not args.built)
    ]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(list_systems(chosen, width))
    return 0


def _show(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Shows a system with its measurements, or the values of a config."""
    if (args.key is None) == (args.config is None):
        raise UserError("show takes the key of a system or --config=FILE, one of them")
    if args.config is not None:
        print(show_config(registry.read_config(args.config, overrides)))
    else:
        print(show_system(find_system(args.key)))
    return 0


def _data(args: argparse.Namespace, _: Sequence[str]) -> int:
    """Lists data sets with what is prepared of them on this machine, or prepares one."""
    from experiments.data_sets import data_sets, state  # TFDS is slow to import

    listed = {one.name: one for one in data_sets()}
    if args.prepare is not None:
        if args.prepare not in listed:
            raise unknown("data set", args.prepare, listed)
        _prepare(args.prepare)
        listed = {args.prepare: listed[args.prepare]}
    for one in listed.values():
        print(f"{one.name:14} {state(one)}\n{'':14} {one.what}")
    return 0


def _prepare(name: str) -> None:
    """Prepares a data set; a terminal is shown how far it is."""
    from rich.console import Console

    from rml.assets import default_data_dir
    from rml.data.builders import prepare

    # Rich shows nothing where there is no terminal.
    with Console(stderr=True).status(f"{name}: reading") as status:

        def show(name: str, done: str, count: int, seconds: float) -> None:
            status.update(f"{name}: {count:,} examples {done} in {seconds:.0f} s")

        prepare(name, default_data_dir(), show)


def _check(_: argparse.Namespace, __: Sequence[str]) -> int:
    """Checks names, configs, docstrings and generated tables."""
    findings = check(read_systems())
    print("\n".join(findings) or "no findings")
    return int(bool(findings))


def _system(where: str, key: str, table: Mapping[str, Any], baseline: bool) -> System:
    """Makes a system of its table and checks its fields; errors begin with `where`."""
    fields = {f.name: f for f in dataclasses.fields(System) if f.name not in ("key", "baseline")}
    for name in table:
        if name not in fields:
            raise UserError(f"{where}: {unknown('field', name, fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in table:
            if field.default is field.default_factory is dataclasses.MISSING:
                raise UserError(f"{where} has no {name}")
            continue
        value = table[name]
        if field.type in (str, int):
            expected, right = field.type.__name__, type(value) is field.type
        elif name == "extras":
            expected = "a table of reasons by config of the system"
            right = isinstance(value, dict) and {*value} <= {*table.get("configs", ())}
            right = right and all(isinstance(why, str) for why in value.values())
        else:
            expected, right = "a list of different strings", isinstance(value, list)
            right = right and all(isinstance(item, str) for item in value)
            right = right and len(set(value)) == len(value)
        if not right:
            raise UserError(f"{where}.{name} is {value!r}, expected {expected}")
        values[name] = tuple(value) if isinstance(value, list) else value
    if values["area"] not in AREAS:
        raise UserError(f"{where}: {unknown('area', values['area'], AREAS)}")
    if not values["arxiv"] and not values["venue"]:
        raise UserError(f"{where} has neither arxiv nor venue")
    return System(key, baseline=baseline, **values)


def _is_defined(function: str) -> bool:
    """Whether a source file binds a dotted name; nothing is imported."""
    module, _, name = function.rpartition(".")
    path = ROOT / module.replace(".", "/")
    files = (path / "__init__.py", path.with_suffix(".py"))
    return any(name in registry.defined_names(file) for file in files)


def _show_result(path: Path) -> list[str]:
    """What a file of measurements says: each claim with its mean, interval and verdict."""
    try:
        result = json.loads(path.read_text())
        lines = [
            f"{claim['verdict']}: {claim['statement']} [{claim['metric']} "
            f"{interval(claim['mean'], claim['low'], claim['high'])}, "
            f"{claim['relation']} {claim['threshold']}]"
            for claim in result["claims"]
        ]
        seconds = statistics.fmean(result["seconds"])
        lines.append(
            f"{count_seeds(result)}, {seconds:.0f} s a run, {result['device']}, "
            f"commit {result['commit']}, {result['finished']}"
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of measurements: {error!r}") from None
    return lines


if __name__ == "__main__":
    raise_interrupts()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `head` may leave early
    sys.exit(main(sys.argv[1:]))
