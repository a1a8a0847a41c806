"""What the registry and the house say of the repository, held against its files."""

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import registry
from experiments.results import RESULT_LINE, read_result, result_file, result_files

if TYPE_CHECKING:  # the registry's commands import this module
    from experiments.systems import System

DURATION = re.compile(r"\b(?:minutes?|hours?)\b[^.]*\bcores?\b")
COST = re.compile(
    r"\b(?:minutes?|hours?|GB)\b(?= (?:a|each|on|of (?:CPU|GPU|memory))\b)"
    r"|\b(?:needs|takes)\b[^.]*\b(?:minutes?|hours?|GB)\b"
)
"""What a config without a result cannot say, since nobody measured it."""
UNMEASURED = "Not run in full here"
"""What the docstring of a config says that has no result."""
PACKAGES = ("rml", "experiments", "configs", "benchmarks", "tpu")


def check(systems: "Mapping[str, System]", root: Path = registry.ROOT) -> list[str]:
    """What is not as the registry and the house say.

    Args:
      systems: Systems by key.
      root: Tree whose configs and modules are looked at.

    Returns:
      One line a finding; none where all is well.
    """
    findings = []
    named = {config for system in systems.values() for config in system.configs}
    for system in systems.values():
        found = [*_check_functions(system), *_check_configs(system, root, named)]
        found += _check_headline(system, root)
        findings += [f"{system.key}: {finding}" for finding in found]
    findings += [
        f"{config}: no system names this config"
        for config in registry.config_files(root)
        if config not in named
    ]
    stems = {(s.key, Path(config).stem) for s in systems.values() for config in s.configs}
    findings += [
        f"{path.relative_to(root)}: no system names a config of this result"
        for path in result_files(root / "results")
        if (path.parent.name, path.stem) not in stems
    ]
    findings += [*_check_modules(root), *_check_exports(root)]
    if importlib.util.find_spec("experiments.tables"):
        stale = importlib.import_module("experiments.tables").stale()
        findings += [f"stale generated table: {name}" for name in stale]
    return findings


def _check_functions(system: "System") -> Iterator[str]:
    for function in system.functions:
        module, _, name = function.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever the module's code makes of it
            yield f"function {function} cannot be imported: {type(error).__name__}: {error}"
        else:
            if not callable(found):  # such as the module of the same name
                yield f"function {function} is a {type(found).__name__}"


def _check_configs(system: "System", root: Path, named: Set[str]) -> Iterator[str]:
    for config in system.configs:
        if not (root / config).is_file():
            yield f"config {config} does not exist"
            continue
        try:
            read = registry.read_config(str(root / config))
            name, keys = read.experiment, registry.config_keys(read)
            recipe = registry.find_experiment(name)
            claims, nulls = recipe.CLAIMS, getattr(recipe, "NULLS", {})
            reads = registry.runs_read(recipe, read)
        except Exception as error:  # whatever the experiment's code makes of it
            yield f"config {config}: {type(error).__name__}: {error}"
        else:
            for finding in _check_result(system, root, config):
                yield f"config {config}: {finding}"
            if not claims:
                yield f"config {config}: the CLAIMS of experiment {name} are empty"
            picture = getattr(recipe, "PICTURE", "")
            if picture and picture not in recipe.CAPTIONS:
                yield (
                    f"config {config}: the PICTURE of experiment {name} is {picture!r}, which its "
                    "CAPTIONS lack"
                )
            for null in dict.fromkeys(claim.null_run for claim in claims if claim.null_run):
                if null not in nulls:
                    yield f"config {config}: the NULLS of experiment {name} lack {null!r}"
            for null, key in ((null, key) for null, changes in nulls.items() for key in changes):
                if key not in keys:
                    yield f"config {config}: null {null!r} changes {key!r}, which it lacks"
            for key, other in reads.items():
                if other not in named:
                    yield (
                        f"config {config}: the READS of experiment {name} name {other!r}, a "
                        "config of no system"
                    )
                if key not in keys:
                    yield (
                        f"config {config}: the READS of experiment {name} set {key!r}, which "
                        "it lacks"
                    )


def _check_headline(system: "System", root: Path) -> Iterator[str]:
    """A headline that the registry names and no result has."""
    where, separator, metric = system.headline.partition(": ")
    if not system.headline:
        return
    file = root / "results" / f"{where}.json"
    if not separator or where.count("/") != 1:
        yield f"headline is {system.headline!r}, expected 'KEY/CONFIG: METRIC'"
    elif not file.is_file():
        yield f"headline names {where!r}, which has no result"
    elif metric not in (metrics := [claim["metric"] for claim in read_result(file)["claims"]]):
        yield f"headline names {metric!r}, expected a claim of {where}: {', '.join(metrics)}"


def _check_result(system: "System", root: Path, config: str) -> Iterator[str]:
    """What the docstring of a config says of its result, held against the result."""
    text = registry.docstring(root / config)
    if not result_file(root / "results", system.key, config).is_file():
        if RESULT_LINE.search(text):
            yield "it says 'Result: results/', but it has no result"
        if found := COST.search(text):
            yield f"it says {found[0]!r}, but it has no result that measured it"
        return
    if not RESULT_LINE.search(text):
        yield f"it has a result, expected a line 'Result: results/{system.key}'"
    if UNMEASURED in text:
        yield f"it says {UNMEASURED!r}, but it has a result"
    if found := DURATION.search(text):
        yield f"it says {found[0]!r}, expected times in the line of its result alone"


def _check_modules(root: Path) -> Iterator[str]:
    """Modules and packages that have no docstring or cannot be parsed."""
    for path in sorted(p for package in PACKAGES for p in (root / package).rglob("*.py")):
        try:
            text = ast.get_docstring(ast.parse(path.read_text()))
        except SyntaxError as error:
            yield f"{path.relative_to(root)} cannot be parsed: {error}"
            continue
        if not text or text == ".":
            yield f"{path.relative_to(root)}: module without docstring"


def _check_exports(root: Path) -> Iterator[str]:
    """Functions, classes and their public methods that `rml/` exports without a docstring."""
    for path in sorted((root / "rml").rglob("__init__.py")):
        room = importlib.import_module(".".join(path.parent.relative_to(root).parts))
        for name in getattr(room, "__all__", ()):
            value = getattr(room, name)
            for shown, what in ((name, value), *_methods(name, value)):
                text = (getattr(what, "__doc__", None) or "").strip()
                # Python gives a dataclass and a named tuple their signature where they have none.
                if callable(what) and (text in ("", ".") or text.startswith(f"{name}(")):
                    yield f"{room.__name__}.{shown}: exported without docstring"


def _methods(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Public methods that a class of this library defines; a field's default is none."""
    if isinstance(value, type) and value.__module__.startswith("rml"):
        fields = getattr(value, "__dataclass_fields__", ())
        for own in vars(value):
            if own[0] != "_" and own not in fields and inspect.isroutine(getattr(value, own)):
                yield f"{name}.{own}", getattr(value, own)
