"""Experiments and config files by name; without flags, so that any module may import it.

A config file is a file under `configs/` that defines `get_config`, an experiment one that defines
`run`. Both are found by reading the source, so that listing them and answering a mistake is quick.
"""

import ast
import contextlib
import difflib
import functools
import importlib
import itertools
import operator
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from rml.errors import UserError, unknown

ROOT = Path(__file__).resolve().parent.parent
PLAIN = (ConfigDict, dict, tuple, list, str, bool, int, float, type(None))
"""What a config may hold; `config.json` has it."""


def runs_read(recipe: Any, config: Any) -> Mapping[str, str]:
    """What a recipe's `READS` says of a config: by the key that holds a run, the run's config.

    Args:
      recipe: The recipe's module.
      config: One of its configs, on which `READS` may depend: then it is a function of it.
    """
    reads = getattr(recipe, "READS", {})
    found: Mapping[str, str] = reads(config) if callable(reads) else reads
    return found


def options_tried(recipe: Any, config: Any) -> dict[str, int]:
    """What a recipe's `tries` counts: by side, combinations of options that a run chooses from.

    Sides are named as the recipe names its methods. A choice on validation data counts with every
    side whose options depend on it, also where a side takes them from another.

    Args:
      recipe: The recipe's module; one without `tries` counts nothing.
      config: One of its configs, by which `tries` counts.
    """
    tries = getattr(recipe, "tries", None)
    # A recipe may import a module of this name.
    return dict(tries(config)) if callable(tries) else {}


def find_experiment(name: str) -> Any:
    """The module of an experiment, `experiments.<area>.<name>`.

    Raises:
      UserError: There is no such experiment, or it lacks what the end of a run needs.
    """
    path = ROOT / "experiments" / f"{name.replace('.', '/')}.py"
    if not re.fullmatch(r"\w+\.\w+", name) or "run" not in defined_names(path):
        modules = (ROOT / "experiments").glob("*/*.py")
        known = (f"{p.parent.name}.{p.stem}" for p in modules if "run" in defined_names(p))
        raise unknown("experiment", name, known)
    module = importlib.import_module(f"experiments.{name}")
    for part in ("CLAIMS", "CAPTIONS"):
        if not hasattr(module, part):
            raise UserError(f"experiment {name} has no {part}; expected run, CLAIMS and CAPTIONS")
    return module


def config_files(root: Path = ROOT) -> tuple[str, ...]:
    """The config files that can be run, as paths from the repository's root, sorted."""
    return tuple(
        str(path.relative_to(root))
        for path in sorted((root / "configs").rglob("*.py"))
        if "get_config" in defined_names(path)
    )


def list_configs(text: str = "") -> str:
    """The config files with their descriptions, grouped by area.

    Args:
      text: What their path or description contains, in any case; all if empty.

    Returns:
      One line a config, one line above each area's.

    Raises:
      UserError: No config contains the text.
    """
    described = {path: describe(ROOT / path)[0] for path in config_files()}
    chosen = [
        (Path(path).parent.relative_to("configs"), path, what)
        for path, what in described.items()
        if text.lower() in f"{path} {what}".lower()
    ]
    if not chosen:
        raise UserError(f"no config has {text!r} in its path or description")
    width = max(len(path) for _, path, _ in chosen)
    lines = []
    for area, group in itertools.groupby(chosen, key=lambda row: row[0]):
        lines += ["", str(area), *(f"  {path:{width}}  {what}" for _, path, what in group)]
    return "\n".join(lines[1:])


def describe(path: Path) -> tuple[str, str]:
    """What a config file says of itself.

    Args:
      path: The file, which is read and not run.

    Returns:
      The first line of its docstring, and the first command in it that launches this config.
    """
    text = docstring(path)
    commands = re.findall(r"^python -m experiments\.run (?:.*\\\n)*.*$", text, re.M)
    return text.partition("\n")[0], next((c for c in commands if f"/{path.name}" in c), "")


def docstring(path: Path) -> str:
    """What a module says of itself, its file being read only; empty where it says nothing."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def defined_names(path: Path) -> frozenset[str]:
    """The names that a module's top level defines, imports or exports, its file being read only.

    Args:
      path: The module's file; one that is absent or cannot be parsed defines nothing.

    Returns:
      The names, those of `__all__` included.
    """
    try:
        return _names_of(path.read_text())
    except (OSError, SyntaxError):
        return frozenset()


@functools.cache  # tables and pages ask for the same few hundred files again and again
def _names_of(source: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names.add(name)
                if name == "__all__":
                    names |= set(ast.literal_eval(value))
            case ast.Assign(targets=[ast.Tuple(elts=targets)]):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return frozenset(names)


def read_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file as the launcher does.

    Args:
      path: The file, with `:argument` behind it where its `get_config` takes one.
      overrides: Flags `--config.key=value`.

    Returns:
      The config.

    Raises:
      UserError: The file, a key or a value is wrong.
    """
    values = flags.FlagValues()
    argv = ["", f"--config={path}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    parse_flags(argv, values)
    return holder.value


def parse_flags(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Parses a command line whose flags include a config file.

    Args:
      argv: The program and its arguments.
      values: The flags, among them `config`.

    Returns:
      The program and the arguments that are no flags.

    Raises:
      UserError: A flag is unknown or its value wrong.
    """
    _check_config(argv)
    try:
        return values(list(argv))
    except flags.Error as error:
        raise UserError(str(error)) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"--config: {error}") from None


def config_keys(config: ConfigDict, prefix: str = "") -> set[str]:
    """All dotted keys of a config, those of inner dictionaries included."""
    keys = set()
    for key in config:
        keys.add(prefix + key)
        if isinstance(config[key], ConfigDict):
            keys |= config_keys(config[key], f"{prefix}{key}.")
    return keys


def texts_of(value: Any) -> Iterator[str]:
    """The texts among the values of a config's dictionary, those inside others included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from texts_of(part)


def _check_config(argv: Sequence[str]) -> None:
    """Raises `UserError` where the config file is wrong or an override names no key of it."""
    given = [arg.lstrip("-").partition("=") for arg in argv[1:] if arg.startswith("-")]
    overrides = [name for name, *_ in given if name.startswith("config.")]
    paths = [value for name, equals, value in given if name == "config" and equals]
    paths += [value for arg, value in itertools.pairwise(argv) if arg in ("--config", "-config")]
    if not paths:
        if overrides:
            raise UserError(f"--{overrides[0]} is a value of a config, expected --config=FILE too")
        return
    path, _, argument = paths[-1].partition(":")
    if not Path(path).is_file():
        raise _unknown_config(path)
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = get_config and get_config(*filter(None, [argument]))
    except Exception as error:  # whatever a user's file makes of it
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"config file {path} cannot be run: {reason}") from None
    if get_config is None:
        raise UserError(f"config file {path} has no get_config()")
    _check_values(path, config)
    keys = config_keys(config)
    for name in overrides:
        key = name.removeprefix("config.")
        if key not in keys:
            raise unknown("config key", key, keys)
        if not all(part.isidentifier() for part in key.split(".")):
            raise UserError(
                f"config key {key!r} has a part that is no name of Python, which no flag can give; "
                f"set it in a config file of your own that changes {path}"
            )


def _check_values(path: str, config: Any) -> None:
    """Raises `UserError` unless a file gives a config that can be written as JSON."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} returns {type(config).__name__}, expected a ConfigDict"
        )
    if not isinstance(config.get("experiment"), str):
        raise UserError(
            f"config file {path} has no 'experiment', expected the name of a recipe, such as "
            "'contrastive.simclr'"
        )
    with contextlib.suppress(config_dict.RequiredValueError):  # an override may give it
        for key in config_keys(config):
            value = functools.reduce(operator.getitem, key.split("."), config)
            for part in value if isinstance(value, tuple | list) else (value,):
                if not isinstance(part, PLAIN):
                    raise UserError(
                        f"config key {key!r} of {path} holds {type(part).__module__}."
                        f"{type(part).__qualname__}, expected numbers, texts, None, or tuples and "
                        "dictionaries of them"
                    )


def _unknown_config(path: str) -> UserError:
    """The error for a config file that is absent; its folder may be wrong or left out."""
    all_of_them = "`python -m experiments.run --list` has all"
    if not path or Path(path).is_dir():
        found = "a folder" if path else "empty"
        return UserError(f"--config={path} is {found}, expected a file; {all_of_them}")
    files = config_files()
    stems = difflib.get_close_matches(Path(path).stem, {Path(f).stem: f for f in files}, n=1)
    same = [name for name in files if Path(name).stem in stems]
    dotted = f"configs/{path.replace('.', '/')}"  # the name of an experiment is a likely guess
    nearest = difflib.get_close_matches(path, same, n=1, cutoff=0.0)
    nearest = nearest or difflib.get_close_matches(dotted, files, n=1, cutoff=0.75)
    if not nearest:
        return UserError(f"unknown config file {path!r}; {all_of_them}")
    return UserError(f"unknown config file {path!r}; did you mean {nearest[0]!r}?")
