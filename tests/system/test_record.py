"""Runs of which no result is made: extended, of other data, not complete, damaged."""

import json

import pytest

from experiments import record
from rml.errors import UserError
from tests.system.test_claims import CLAIM, make_run


def extend(run):
    config = json.loads((run / "config.json").read_text())
    kept = {"step": 5, "config": config | {"train": {"steps": 5}}, "summary": None}
    (run / "config.history.jsonl").write_text(json.dumps(kept) + "\n")
    (run / "config.json").write_text(json.dumps(config | {"train": {"steps": 9}}))


def use_other_data(run):
    summary = json.loads((run / "summary.json").read_text())
    note = {"holds": None, "value": None, "note": "not judged on folder:x"}
    summary["claims"] = [CLAIM.measure({"m": 0.1, "z": 0.0}) | note]
    (run / "summary.json").write_text(json.dumps(summary))


def tear(name):
    return lambda run: (run / name).write_text("{")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (extend, "b was extended, from 5 steps; expected runs of the same length"),
        (use_other_data, "b: not judged on folder:x; expected runs on the data of their config"),
        (tear("summary.json"), r"b has no summary\.json of a complete run"),
        (tear("config.json"), r"b/config\.json is not readable as JSON and no checkpoint holds"),
    ],
)
def test_runs_that_do_not_count_are_refused(tmp_path, harm, message):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)]
    assert record.make_result("toy", "toy.py", runs)["seeds"] == [0, 1]
    harm(runs[1])
    with pytest.raises(UserError, match=message):
        record.make_result("toy", "toy.py", runs)
