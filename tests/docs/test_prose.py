"""Docstrings as `docs/guides/prose.md` asks for them: of `rml/`, and entries of other rooms."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.registry import ROOT

LIBRARY = sorted((ROOT / "rml").rglob("*.py"))
ROOMS = ("benchmarks", "configs", "experiments", "tpu")
OTHERS = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
ENTRY = re.compile(r"^  ( *)(\*{0,2}\w[\w, *]*): +(.*)$")
UNFINISHED = re.compile(r"(Of|By|As|With|For|In|At|On|To|From)\b")
NO_VERBS = re.compile(r"This|Its|Less|Loss|Class|Bias|Mass|Us|[A-Z]\w*s'")


def documented(tree: ast.AST, public: bool = True) -> Iterator[tuple[ast.AST, str, bool]]:
    """Classes and functions with their docstrings, and whether they are public functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        own = public and not node.name.startswith("_")
        yield node, ast.get_docstring(node) or "", own and isinstance(node, ast.FunctionDef)
        yield from documented(node, own and isinstance(node, ast.ClassDef))


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts under Args and Attributes."""
    section = ""
    for line in docstring.splitlines():
        if line and not line[0].isspace():
            section = line.removesuffix(":")
        elif section in ("Args", "Attributes") and (found := ENTRY.match(line)) and not found[1]:
            yield found[2], found[3]


def unread(docstring: str) -> bool:
    """Whether there is a section of entries of which none is read, such as by its indentation."""
    sections = re.findall(r"^(?:Args|Attributes):\n(?: +.*\n?|\n)*", docstring, re.M)
    return not all(list(entries(section)) for section in sections)


def unfinished(node: ast.ClassDef | ast.FunctionDef, docstring: str) -> list[str]:
    """Entries that are no phrases of their own, and sections that are not read."""
    wrong = [
        f"{node.name}, {name}: {text}"
        for name, text in entries(docstring)
        if UNFINISHED.match(text)
    ]
    return wrong + [f"{node.name}: a section without entries"] * unread(docstring)


def is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_begin_with_a_verb_and_arguments_with_a_noun(file: Path):
    wrong = []
    for node, docstring, function in documented(ast.parse(file.read_text())):
        wrong += unfinished(node, docstring)
        first = docstring.split(" ")[0].strip("\n.,:;")
        verb = re.fullmatch(r"[A-Z][a-z-]+s", first) and not NO_VERBS.fullmatch(first)
        if function and docstring and not verb and not is_property(node):
            wrong.append(f"{node.name}: {first}")
    assert not wrong


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_arguments_of_other_rooms_begin_with_a_noun(file: Path):
    found = documented(ast.parse(file.read_text()))
    assert not [wrong for node, docstring, _ in found for wrong in unfinished(node, docstring)]


def test_what_breaks_the_rules_is_seen():
    def of(text: str) -> list[str]:
        return [name for name, entry in entries(text) if UNFINISHED.match(entry)]

    assert of("Draws.\n\nArgs:\n  key: Of the draw.\n  seed: Seed.") == ["key"]
    assert of("Draws.\n\nAttributes:\n  parts: Of how many.\n    In all.") == ["parts"]
    assert of("Draws.\n\nReturns:\n  key: Of the draw.") == []
    assert unread("Draws.\n\nArgs:\n    key: Key of the draw.\n        It is one.\n")
    assert not unread("Draws.\n\nArgs:\n  key: Key of the draw.\n    It is one.\n\nRaises:\n  No.")
    assert not unread("Draws.")
