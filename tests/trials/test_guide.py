"""The guide to trials shows its skeletons as they are, and they are a trial."""

import importlib.util
from pathlib import Path

import pytest

from tests.system.two_steps import override
from tests.trials.conformance import conform_trial

ROOT = Path(__file__).parents[2]
SKELETONS = ROOT / "docs/skeletons/trial"
FILES = ("recipe", "config", "test_recipe")


def load(name):
    spec = importlib.util.spec_from_file_location(f"skeleton_{name}", SKELETONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_guide_shows_all_of_it_and_it_is_short():
    guide = (ROOT / "docs/guides/trial.md").read_text()
    assert {path.stem for path in SKELETONS.glob("*.py")} == set(FILES)
    assert all(f'--8<-- "docs/skeletons/trial/{name}.py"' in guide for name in FILES)
    assert all(f"cp docs/skeletons/trial/{name}.py" in guide for name in FILES)
    lines = sum(len((SKELETONS / f"{name}.py").read_text().splitlines()) for name in FILES)
    assert lines < 120


@pytest.mark.slow
def test_the_skeletons_are_a_trial(tmp_path):
    trial, config = load("recipe").TRIAL, load("config").get_config()
    small = override(config, load("test_recipe").SMALL)
    longer = trial.arms["longer"]
    trial.arms["longer"] = longer._replace(changes={"train.steps": 6})
    trial = type(trial)(**{**vars(trial), "go": ()})
    metrics = conform_trial(trial, small, tmp_path)
    # Warps by nothing are another program of the same work, and give what no warps give.
    assert metrics["gigaflops_still"] == pytest.approx(metrics["gigaflops_warped"])
