"""WORKSPACE.md and README.md say what is true: their tables are current, what they name exists."""

import re
from pathlib import Path

import pytest

from experiments import tables

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("WORKSPACE.md", "README.md")


def test_generated_blocks_are_current():
    assert tables.stale() == []


def test_the_map_is_short():
    assert len((ROOT / "WORKSPACE.md").read_text().splitlines()) <= 150


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
