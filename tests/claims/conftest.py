"""Claims are measured by the recipes themselves, in the process of the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.common.evaluators import ImageEvaluator
from experiments.registry import find_experiment
from rml.training import CompiledTask, RunDirectory
from tests import compiling
from tests.system.two_steps import override, read


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a config, changed where given, in `tmp_path / "run"`: metrics, and which claims hold."""

    def run(path: str, changes: dict[str, Any]) -> tuple[dict[str, float], dict[Any, bool]]:
        config = override(read(path), changes)
        experiment = find_experiment(config.experiment)
        directory = RunDirectory(tmp_path / "run", config.to_dict(), config_name=path)
        metrics = experiment.run(config, directory)
        directory.write_summary(metrics={}, claims=[], seconds=1.0)
        directory.close()
        holds = {(c.metric, c.relation): c.meets(metrics[c.metric]) for c in experiment.CLAIMS}
        return metrics, holds

    # An embedding takes as long as the training and shows no number; the launcher's tests draw it.
    monkeypatch.setattr(ImageEvaluator, "draw", lambda *args: None)
    return run


@pytest.fixture
def optimised_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA optimises the steps of training, which run often, and nothing else.

    To optimise what judges the features takes longer than it saves.
    """
    compiled = CompiledTask.__init__

    def optimised(*args: Any, **named: Any) -> None:
        compiling.optimize(1)
        try:
            compiled(*args, **named)
        finally:
            compiling.optimize(0)

    monkeypatch.setattr(CompiledTask, "__init__", optimised)
