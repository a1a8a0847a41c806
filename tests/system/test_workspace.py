"""WORKSPACE.md and README.md say what is true: their tables are current, what they name exists.

What a map of the code says is true too: modules exist, contracts of imports have every area.
"""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from experiments import tables
from experiments.systems import AREAS

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("WORKSPACE.md", "README.md")
BY_HAND = 50
"""Lines of WORKSPACE.md that nothing generates; the table of systems grows with each of them."""


def test_generated_blocks_are_current():
    assert tables.stale() == []


def by_hand(text):
    """The lines of a document outside its generated blocks."""
    return tables.BLOCK.sub("", text).splitlines()


def test_the_map_is_short():
    text = (ROOT / "WORKSPACE.md").read_text()
    assert len(by_hand(text)) <= BY_HAND
    end = "<!-- end generated -->"
    with_a_new_system = text.replace(end, f"| `new` |\n{end}")
    assert with_a_new_system != text
    assert by_hand(with_a_new_system) == by_hand(text)


def test_hooks_run_what_make_lint_runs():
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    prefix = re.compile(r"PATH=\S+ |\$\(VENV\)/bin/|\.venv/bin/")
    lint = [
        prefix.sub("", line).strip().removesuffix(" .").replace("$(PY)", "python")
        for line in recipe.splitlines()
    ]
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    assert [prefix.sub("", entry) for entry in hooks] == lint
    assert "python -m experiments.systems check" in lint


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text())
    inside = {link for link in links if "://" not in link}
    assert inside
    assert {link for link in inside if not (ROOT / link).exists()} == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist(name):
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M))
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert targets
    assert targets - made == set()
    for path in re.findall(r"--config=(configs/\S+?\.py)", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"python -m ((?:experiments|benchmarks|tpu)\.\w+)", text):
        file = ROOT / module.replace(".", "/")
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module


def areas_of(package):
    """The areas that have a room in a package."""
    return {path.parent.name for path in (ROOT / package).glob("*/__init__.py")} & {*AREAS}


def test_contracts_of_imports_have_every_area():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    down, apart, shared, rooms = settings["contracts"]

    def listed(lines):
        return {name for line in lines for name in line.split(" | ")}

    packages = {f"rml.{path.parent.name}" for path in (ROOT / "rml").glob("*/__init__.py")}
    library, recipes = ({f"{p}.{area}" for area in areas_of(p)} for p in ("rml", "experiments"))
    assert len(recipes) > 5
    assert packages - listed(down["layers"]) == set()
    assert recipes - listed(apart["modules"]) == set()
    assert recipes - listed(shared["layers"]) == set()
    assert library - listed(rooms["forbidden_modules"]) == set()


def test_modules_that_a_package_names_exist():
    named, there = {}, {}
    for package in (ROOT / "experiments").glob("*/__init__.py"):
        name, said = package.parent.name, ast.get_docstring(ast.parse(package.read_text()))
        named[name] = {*re.findall(r"`(\w+)`", said)}  # a module's name stands alone
        there[name] = {path.stem for path in package.parent.iterdir() if path.stem[0] != "_"}
    assert {name: own - there[name] for name, own in named.items() if own - there[name]} == {}
    assert named["common"] == there["common"]
