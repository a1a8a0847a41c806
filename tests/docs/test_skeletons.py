"""The guide to a new method shows its skeletons as they are, and copies all of them.

That the copies are a working method is tested by `tests/system/first_hour.sh`.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/method.md").read_text()
SKELETONS = sorted((ROOT / "docs/skeletons").glob("*.py"))


@pytest.mark.parametrize("path", SKELETONS, ids=lambda p: p.name)
def test_skeletons_parse_and_the_guide_shows_them(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert f'--8<-- "docs/skeletons/{path.name}"' in GUIDE


def test_every_skeleton_is_copied_to_where_its_imports_look():
    copies = dict(re.findall(r"^cp (\S+) (\S+)$", GUIDE, re.M))
    assert sorted(copies) == [str(path.relative_to(ROOT)) for path in SKELETONS]
    config = ast.literal_eval(
        re.search(r"experiment = (.*)", (ROOT / "docs/skeletons/config.py").read_text())[1]
    )
    assert copies["docs/skeletons/recipe.py"] == f"experiments/{config.replace('.', '/')}.py"
    assert copies["docs/skeletons/config.py"] in GUIDE.partition("```toml")[2]
