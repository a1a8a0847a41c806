"""Experiments and config files by name; without flags, so that any module may import it.

A config file is a file under `configs/` that defines `get_config`, an experiment one that defines
`run`. Both are found by reading the source, so that listing them and answering a mistake is quick.
"""

import ast
import difflib
import importlib
import itertools
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from rml.errors import UserError, unknown

ROOT = Path(__file__).resolve().parent.parent


def find_experiment(name: str) -> Any:
    """The module of an experiment, `experiments.<area>.<name>`.

    Raises:
      UserError: There is no such experiment.
    """
    path = ROOT / "experiments" / f"{name.replace('.', '/')}.py"
    if not re.fullmatch(r"\w+\.\w+", name) or "run" not in defined_names(path):
        modules = (ROOT / "experiments").glob("*/*.py")
        known = (f"{p.parent.name}.{p.stem}" for p in modules if "run" in defined_names(p))
        raise unknown("experiment", name, known)
    return importlib.import_module(f"experiments.{name}")


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
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    commands = re.findall(r"^python -m experiments\.run (?:.*\\\n)*.*$", text, re.M)
    return text.partition("\n")[0], next((c for c in commands if f"/{path.name}" in c), "")


def defined_names(path: Path) -> set[str]:
    """The names that a module's top level defines, imports or exports, its file being read only.

    Args:
      path: The module's file; one that is absent or cannot be parsed defines nothing.

    Returns:
      The names, those of `__all__` included.
    """
    try:
        body = ast.parse(path.read_text()).body
    except (OSError, SyntaxError):
        return set()
    names: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names.add(name)
                if name == "__all__":
                    names |= set(ast.literal_eval(value))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


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


def _check_config(argv: Sequence[str]) -> None:
    """Raises `UserError` where the config file is wrong or an override names no key of it."""
    args = [arg.lstrip("-") for arg in argv[1:] if arg.startswith("-")]
    pairs = dict(arg.partition("=")[::2] for arg in args if "=" in arg)
    for arg, value in itertools.pairwise(argv):
        if arg in ("--config", "-config"):
            pairs["config"] = value
    path, _, argument = pairs.get("config", "").partition(":")
    if not path:
        return
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
    keys = config_keys(config)
    for name in pairs:
        if name.startswith("config.") and name.removeprefix("config.") not in keys:
            raise unknown("config key", name.removeprefix("config."), keys)


def _unknown_config(path: str) -> UserError:
    """The error for a config file that is absent; its folder may be wrong or left out."""
    stems = {name: Path(name).stem for name in config_files()}
    near = difflib.get_close_matches(Path(path).stem, set(stems.values()), n=1, cutoff=0.5)
    same = [name for name, stem in stems.items() if stem in near]
    if not same:
        return UserError(
            f"unknown config file {path!r}; `python -m experiments.run --list` has all"
        )
    nearest = difflib.get_close_matches(path, same, n=1, cutoff=0.0)[0]
    return UserError(f"unknown config file {path!r}; did you mean {nearest!r}?")
