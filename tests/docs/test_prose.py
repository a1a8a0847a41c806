"""Docstrings of `rml/` as `docs/guides/prose.md` asks for them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.registry import ROOT

FILES = sorted((ROOT / "rml").rglob("*.py"))
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


def is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_begin_with_a_verb_and_arguments_with_a_noun(file: Path):
    wrong = []
    for node, docstring, function in documented(ast.parse(file.read_text())):
        wrong += [
            f"{node.name}, {name}: {text}"
            for name, text in entries(docstring)
            if UNFINISHED.match(text)
        ]
        first = docstring.split(" ")[0].strip("\n.,:;")
        verb = re.fullmatch(r"[A-Z][a-z-]+s", first) and not NO_VERBS.fullmatch(first)
        if function and docstring and not verb and not is_property(node):
            wrong.append(f"{node.name}: {first}")
    assert not wrong


def test_what_breaks_the_rules_is_seen():
    def of(text: str) -> list[str]:
        return [name for name, entry in entries(text) if UNFINISHED.match(entry)]

    assert of("Draws.\n\nArgs:\n  key: Of the draw.\n  seed: Seed.") == ["key"]
    assert of("Draws.\n\nAttributes:\n  parts: Of how many.\n    In all.") == ["parts"]
    assert of("Draws.\n\nReturns:\n  key: Of the draw.") == []
