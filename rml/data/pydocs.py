"""Docstrings and the code that they describe, read from the Python files of this installation.

Files are parsed, never imported. What is found depends on nothing but the versions installed.
"""

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from rml.data.duplicates import near_duplicates, normalized

STANDARD_LIBRARY = "python"
"""Stands for the package of a module of the standard library."""

PACKAGES = {
    "absl-py": "absl",
    "array-record": "array_record",
    "chex": "chex",
    "dm-pix": "dm_pix",
    "flax": "flax",
    "grain": "grain",
    "jax": "jax",
    "jaxtyping": "jaxtyping",
    "matplotlib": "matplotlib",
    "ml-collections": "ml_collections",
    "numpy": "numpy",
    "optax": "optax",
    "orbax-checkpoint": "orbax/checkpoint",
    "pillow": "PIL",
    "rich": "rich",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "tensorboardX": "tensorboardX",
    "tensorflow-datasets": "tensorflow_datasets",
}
"""Folder by distribution: the core dependencies of rml."""

MIN_WORDS = 10
"""Of a docstring that says enough to tell its code from others."""

MAX_CHARACTERS = 10_000
"""Of code; longer code, mostly of classes, is cut at the end of a line."""

SIMILARITY = 0.8
"""Docstrings whose sets of three words in a row overlap so far are one (Jaccard)."""

_SKIPPED = re.compile(r"__pycache__|(site|dist)-packages|conftest|tests?|test_.+|.+_tests?")
"""Files and folders that hold tests, or are no part of a package."""


Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Pair(NamedTuple):
    """A docstring and its code.

    Attributes:
      name: Dotted, from the top package to the function, method or class.
      module: Dotted.
      package: Top-level package, or `STANDARD_LIBRARY`.
      title: First paragraph of the docstring, on one line.
      description: Text that follows it; empty where nothing does, or where another split has the
        same title or description.
      docstring: Whole, without indentation.
      code: Source without any docstring (those of inner functions are left out too), decorators
        and signature included, without indentation.
    """

    name: str
    module: str
    package: str
    title: str
    description: str
    docstring: str
    code: str


def versions() -> dict[str, str]:
    """Finds versions, by distribution, of what is read; absent distributions are left out."""
    found = {STANDARD_LIBRARY: platform.python_version()}
    for distribution in PACKAGES:
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint() -> str:
    """Names what `read` reads: another version of Python or a package gives another name.

    Also the modules of the standard library count: some systems install only a part of it.
    """
    modules = [module for module, _ in _files(_standard_library(), ())]
    text = repr((sorted(versions().items()), modules))
    return f"py{platform.python_version()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def split_of(module: str) -> str:
    """Chooses the split of a module by its name: 80% train, 10% validation, 10% test."""
    place = int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) % 10
    return {8: "validation", 9: "test"}.get(place, "train")


def read() -> list[Pair]:
    """Reads all pairs of this installation, without duplicates, in an order that looks random.

    Left out are tests, docstrings of fewer than `MIN_WORDS` words, code that does nothing but pass
    or raise NotImplementedError, and pairs whose docstring or code is that of an earlier pair: the
    same words, or for docstrings nearly so (`SIMILARITY`).

    Returns:
      The pairs. Every slice of them is a sample of all.
    """
    found: list[Pair] = []
    seen: set[str] = set()
    for pair in _all_pairs():
        keys = {pair.name, normalized(pair.docstring), normalized(pair.code)}
        if keys.isdisjoint(seen):
            seen |= keys
            found.append(pair)
    repeated = near_duplicates([pair.docstring for pair in found], similarity=SIMILARITY)
    kept = [pair for pair, drop in zip(found, repeated, strict=True) if not drop]
    kept.sort(key=lambda pair: hashlib.sha256(pair.name.encode()).digest())
    return _without_shared_titles(kept)


def _all_pairs() -> Iterator[Pair]:
    """Package by package, in the order of modules and lines."""
    collects = gc.isenabled()
    gc.disable()  # syntax trees are large and have no cycles: collecting takes a third of the time
    try:
        for package, root, prefix in _roots():
            for module, file in _files(root, prefix):
                yield from _pairs(file, module, package)
    finally:
        if collects:
            gc.enable()


def _without_shared_titles(pairs: list[Pair]) -> list[Pair]:
    """Empties descriptions where another split has the same title or description."""
    owners: dict[str, set[str]] = {}
    for pair in pairs:
        for text in (pair.title, pair.description):
            owners.setdefault(normalized(text), set()).add(split_of(pair.module))
    return [
        pair._replace(description="")
        if any(len(owners[normalized(text)]) > 1 for text in (pair.title, pair.description))
        else pair
        for pair in pairs
    ]


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _roots() -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """Packages, their folders, and the names that begin the names of their modules."""
    yield STANDARD_LIBRARY, _standard_library(), ()
    for path in PACKAGES.values():
        names = tuple(path.split("/"))
        spec = importlib.util.find_spec(names[0])  # of a top-level package: nothing is imported
        for location in (spec and spec.submodule_search_locations) or ():
            yield names[0], Path(location, *names[1:]), names


def _files(root: Path, prefix: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Dotted names of the modules below a folder and their files, sorted."""
    found = []
    for directory, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _SKIPPED.fullmatch(name)]
        parts = (*prefix, *Path(directory).relative_to(root).parts)
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix == ".py" and not _SKIPPED.fullmatch(stem):
                module = parts if stem == "__init__" and parts else (*parts, stem)
                found.append((".".join(module), Path(directory, file)))
    return sorted(found)


def _pairs(file: Path, module: str, package: str) -> Iterator[Pair]:
    """Pairs of one file, in its order; none where it is not valid Python of this version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
        with tokenize.open(file) as opened:
            lines = opened.read().splitlines()
    except (SyntaxError, ValueError, OSError):
        return
    documented = _definitions(tree, module, lines)
    hidden = {
        line
        for _, definition in documented
        for line in range(definition.body[0].lineno - 1, _end(definition.body[0]))
    }
    for name, definition in documented:
        docstring = ast.get_docstring(definition) or ""
        if len(normalized(docstring).split()) < MIN_WORDS or not _does_something(definition):
            continue
        first = min([definition.lineno, *(one.lineno for one in definition.decorator_list)])
        own = range(first - 1, _end(definition))
        indent = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
        code = "\n".join(lines[at].removeprefix(indent) for at in own if at not in hidden)
        if len(code) > MAX_CHARACTERS:
            code = code[:MAX_CHARACTERS].rpartition("\n")[0]
        title, *description = re.split(r"\n\s*\n", docstring, maxsplit=1)
        yield Pair(
            name, module, package, " ".join(title.split()), "".join(description), docstring, code
        )


def _definitions(tree: ast.Module, module: str, lines: list[str]) -> list[tuple[str, Definition]]:
    """Functions and classes whose docstring has lines of its own, and their dotted names."""
    found = []
    waiting: list[tuple[ast.AST, str]] = [(tree, module)]
    while waiting:
        node, name = waiting.pop()
        if isinstance(node, Definition):
            name = f"{name}.{node.name}"
            first, *rest = node.body
            if (
                ast.get_docstring(node, clean=False)
                and not lines[first.lineno - 1][: first.col_offset].strip()
                and (not rest or rest[0].lineno > _end(first))
            ):
                found.append((name, node))
        # Definitions stand in statements, never in expressions, which are most of a tree.
        for field in ("body", "orelse", "handlers", "cases", "finalbody"):
            waiting += [(one, name) for one in getattr(node, field, ())]
    return sorted(found, key=lambda one: one[1].lineno)


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _does_something(definition: Definition) -> bool:
    """Whether the body holds more than the docstring, pass, ... and raise NotImplementedError."""
    for statement in definition.body[1:]:
        match statement:
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                continue
            case ast.Raise(
                exc=ast.Name(id="NotImplementedError")
                | ast.Call(func=ast.Name(id="NotImplementedError"))
            ):
                continue
            case _:
                return True
    return False
