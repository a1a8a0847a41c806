"""What errors and documents tell a user to install."""

import re
import tomllib
from pathlib import Path

from rml.errors import install

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
WRITTEN = re.compile(r"pip install [^\n`]*?'(?:rml|\.)\[(\w+)\]'")
"""A command that installs an extra, with the extra's name."""


def files():
    folders = ("rml", "experiments", "configs", "benchmarks", "tpu", "docs")
    for pattern in ("*.py", "*.md", "*.ipynb"):
        for folder in folders:
            yield from (ROOT / folder).rglob(pattern)
        yield from ROOT.glob(pattern)


def test_an_extra_is_installed_as_it_is_pinned_by_one_command():
    command = "pip install --constraint constraints.txt -e '.[slurm]'"
    assert install("slurm") == f"{command} in the root of the repository"
    written, made = [], []
    for file in files():
        text = file.read_text()
        for found in WRITTEN.finditer(text):
            assert found[1] in EXTRAS, f"{file}: {found[0]}"
            if file.name != "launch.py":  # of a machine that uv fills
                assert install(found[1]).startswith(f"{found[0]} "), f"{file}: {found[0]}"
            written.append(found[1])
        made += re.findall(r"\binstall\(['\"](\w+)['\"]\)", text)
    assert {"tpu", "slurm", "sampling"} <= {*written}
    assert {"transport", "pretrained", "demo"} <= {*made} <= {*EXTRAS}
