"""What every recipe on the engine of trials must do, with tiny data: inherited, not written again.

A recipe's test names the config, what makes it small, and the wrong values of its own keys:

    def test_conforms(tmp_path):
        conform("configs/merging/experts.py", SMALL, tmp_path)

    @pytest.mark.parametrize(("key", "value"), WRONG)
    def test_one_wrong_value_a_key_is_refused_before_work(key, value, tmp_path):
        refuse("configs/merging/experts.py", key, value, tmp_path)
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import ranges
from experiments.common.trial import BASELINE, METHOD, NULL, Trial, run_trial
from experiments.common.trial_table import tries_of
from experiments.record import _arms as arms_of_run
from experiments.results import Number
from rml.errors import UserError
from rml.training import RunDirectory
from tests.system.two_steps import override, read


def conform(path: str, changes: Mapping[str, Any], directory: Path) -> dict[str, float]:
    """Runs a recipe's trial small, stopped and resumed, and checks all that a trial promises.

    Args:
      path: Path of the config.
      changes: Values of dotted keys that make it small.
      directory: An empty directory.

    Returns:
      The trial's metrics, for what a recipe's own test adds.
    """
    config = override(read(path), dict(changes))
    experiment = ranges.checked_experiment(config)
    return conform_trial(experiment.TRIAL, config, directory, path)


def conform_trial(
    trial: Trial, config: ConfigDict, directory: Path, path: str = ""
) -> dict[str, float]:
    """As `conform`, of a trial with its config."""
    check_table(trial)
    metrics = _run(trial, config, directory / "whole", path)
    table = json.loads((directory / "whole" / "arms.json").read_text())["table"]
    check_found(trial, config, metrics, table)
    check_words(trial, metrics, directory / "whole")
    figures = {file.name for file in (directory / "whole" / "figures").glob("*.png")}
    assert "arms.png" in figures
    assert set(trial.captions) <= figures
    # Programs that were cut off are done again, the others are not, and all is equal to the bit.
    scores = sorted((directory / "whole" / "methods").glob("*/scores_*.npz"))
    lost, kept = scores[-1], scores[0].stat().st_mtime_ns
    lost.unlink()
    (directory / "whole" / "arms.json").unlink()
    again = _run(trial, config, directory / "whole", path)
    np.testing.assert_equal(again, metrics)
    assert len(scores) == 1 or scores[0].stat().st_mtime_ns == kept
    return metrics


def check_table(trial: Trial) -> None:
    """The table reads as a comparison: a method, a baseline and a null that differ from it."""
    roles = {name: arm.role for name, arm in trial.arms.items()}
    assert {METHOD, BASELINE} <= {*roles.values()}, roles
    says = [arm.says for arm in trial.arms.values()]
    assert len(set(says)) == len(says), "two arms have one name"
    sides = [repr((dict(arm.changes), tries_of(arm))) for arm in trial.arms.values()]
    assert len(set(sides)) == len(sides), "two arms are the same"
    for name, own in trial.asked.items():
        assert roles[own.null] != BASELINE or own.null not in own.over, f"{name} has no null"
        assert own.method not in (own.null, *own.over), f"{name} compares an arm with itself"


def check_found(
    trial: Trial, config: Any, metrics: Mapping[str, float], table: list[dict[str, Any]]
) -> None:
    """Every arm has its row, every number is there, tries are equal and arms differ."""
    names = [row["name"] for row in table]
    assert names == [*trial.arms] * len(trial.metrics)
    assert all(len(row["by_seed"]) == config.seeds for row in table)
    tuned = {metrics[f"tries_{name}"] for name, arm in trial.arms.items() if arm.tries}
    assert len(tuned) <= 1, "arms had different numbers of tries"
    for row in table:
        assert row["over"] in trial.arms
        assert row["difference"] == 0 or row["name"] != row["over"]
    for metric in trial.metrics:
        values = {name: metrics[f"{metric}_{name}"] for name in trial.arms}
        assert np.isfinite(list(values.values())).all()
    for claim in trial_claims(trial):
        assert claim.metric in metrics
        assert claim.null in metrics


def check_words(trial: Trial, metrics: Mapping[str, float], directory: Path) -> None:
    """The sentences of questions can be filled by what was measured."""
    told = {name: Number(value) for name, value in metrics.items()}
    names = arms_of_run(directory)["names"]
    for claim in trial_claims(trial):
        ends = dict.fromkeys(("mean", "low", "high"), told[claim.metric])
        said = claim.says.format(**told | ends, over=names.get(claim.metric, ""))
        assert "{" not in said
        assert claim.says.count("{"), f"{claim.metric} says no number"


def trial_claims(trial: Trial) -> Any:
    """The claims of a trial as its recipe exports them."""
    from experiments.common.trial import recipe

    return recipe(trial)[1]


def null_loses(trial: Trial, metrics: Mapping[str, float], name: str = "headline") -> None:
    """The null is below the method where the method's idea works even on tiny data."""
    assert any(arm.role == NULL for arm in trial.arms.values())
    assert metrics[f"{name}_null"] < metrics[name]


def refuse(path: str, key: str, value: Any, directory: Path) -> str:
    """A wrong value of a key ends in one `UserError` before any run, and names the key.

    Returns:
      What the error says.
    """
    config = override(read(path), {key: value})

    def launch() -> None:
        experiment = ranges.checked_experiment(config)
        _run(experiment.TRIAL, config, directory / "refused", path)

    with pytest.raises(UserError) as raised:
        launch()
    said = str(raised.value)
    assert key.rpartition(".")[2] in said, said
    assert "\n" not in said.strip()
    assert not list((directory / "refused").glob("methods/*/checkpoints/*"))
    return said


def _run(trial: Trial, config: Any, directory: Path, path: str) -> dict[str, float]:
    run = RunDirectory(directory, config.to_dict(), config_name=path)
    try:
        return run_trial(trial, config, run)
    finally:
        run.close()
