"""The guide to a new method shows its skeletons as they are, and copies all of them.

That the copies are a working method is tested by `tests/system/first_hour.sh`.
"""

import ast
import difflib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/method.md").read_text()
SKELETONS = sorted((ROOT / "docs/skeletons").glob("*.py"))
NUMBERS = ("No", "One", "Two", "Three", "Four")


@pytest.mark.parametrize("path", SKELETONS, ids=lambda p: p.name)
def test_skeletons_parse_and_the_guide_shows_them(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert f'--8<-- "docs/skeletons/{path.name}"' in GUIDE


def test_the_guide_says_what_a_method_costs(tmp_path, monkeypatch):
    """Registers it as `first_hour.sh` does, in copies, and counts what became of the files."""
    assert 1 <= len(SKELETONS) <= 4
    assert GUIDE.split("\n\n")[1].startswith(
        f"{NUMBERS[len(SKELETONS)]} new files, and three edits of two files that exist"
    )
    edited = ("rml/contrastive/__init__.py", "systems.toml")
    for name in (*edited, "docs/guides/method.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    script = (ROOT / "tests/system/first_hour.sh").read_text()
    register = re.search(r"^register\(\).*?<<'PYTHON'\n(.*?)^PYTHON$", script, re.M | re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(register, {})
    added = {}
    for name in edited:
        before, after = ((root / name).read_text().split("\n") for root in (ROOT, tmp_path))
        changes = [line for line in difflib.ndiff(before, after) if line[:2] in ("+ ", "- ")]
        assert all(line.startswith("+") for line in changes), changes
        added[name] = [line[2:] for line in changes if line[2:].strip()]
    export, entry = added.values()
    assert len(export) == 2
    assert any(line.startswith("from rml.contrastive.") for line in export)
    assert f"an entry of {len(entry)} lines in `systems.toml`" in GUIDE


def test_every_skeleton_is_copied_to_where_its_imports_look():
    copies = dict(re.findall(r"^cp (\S+) (\S+)$", GUIDE, re.M))
    assert sorted(copies) == [str(path.relative_to(ROOT)) for path in SKELETONS]
    config = ast.literal_eval(
        re.search(r"experiment = (.*)", (ROOT / "docs/skeletons/config.py").read_text())[1]
    )
    assert copies["docs/skeletons/recipe.py"] == f"experiments/{config.replace('.', '/')}.py"
    assert copies["docs/skeletons/config.py"] in GUIDE.partition("```toml")[2]
