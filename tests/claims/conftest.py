"""Claims are measured by the launcher, as a user does it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def summarize(launch, tmp_path: Path) -> Callable[..., dict]:
    """Runs with these arguments in `tmp_path / "run"` and returns the summary it leaves there."""

    def run(*args: str) -> dict:
        result = launch(*args, f"--workdir={tmp_path / 'run'}", timeout=900)
        assert result.returncode == 0, result.stderr
        return json.loads((tmp_path / "run" / "summary.json").read_text())

    return run
