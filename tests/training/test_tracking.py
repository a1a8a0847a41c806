"""The MLflow store beside a run directory: what is there, once, however often a run stops."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from rml.errors import UserError
from rml.training import RunDirectory
from rml.training.fit import Interrupted
from rml.training.tracking import _same, check_uri, track
from rml.training.writers import MetricsWriter, read_metrics

CONFIG = {"experiment": "toy.recipe", "seed": 0, "train": {"steps": 4}, "rates": [0.1, 0.2]}


class StandIn:
    """What is used of MLflow's client, where the package is not installed."""

    stores: ClassVar[dict] = {}

    def __init__(self, uri):
        self.runs = self.stores.setdefault(uri, {})

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=name) if self.runs else None

    def create_experiment(self, name):
        return name

    def create_run(self, experiment, run_name, tags):
        run = SimpleNamespace(
            info=SimpleNamespace(run_id=str(len(self.runs)), status="RUNNING"),
            data=SimpleNamespace(params={}, metrics={}, tags=tags | {"mlflow.runName": run_name}),
            history={}, artifacts=[],
        )  # fmt: skip
        self.runs[run.info.run_id] = run
        return run

    def get_run(self, run_id):
        return self.runs[run_id]

    def update_run(self, run_id, status):
        self.runs[run_id].info.status = status

    set_terminated = update_run

    def delete_run(self, run_id):
        self.runs[run_id].info.lifecycle_stage = "deleted"

    def log_batch(self, run_id, metrics=(), params=()):
        run = self.runs[run_id]
        run.data.params |= {param.key: param.value for param in params}
        for metric in metrics:
            run.data.metrics[metric.key] = metric.value
            run.history.setdefault(metric.key, []).append(metric)

    def get_metric_history(self, run_id, key):
        return self.runs[run_id].history[key]

    def log_artifacts(self, run_id, folder, path):
        self.runs[run_id].artifacts += [f"{path}/{file.name}" for file in Path(folder).iterdir()]

    def list_artifacts(self, run_id, path):
        return [SimpleNamespace(path=name) for name in self.runs[run_id].artifacts]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A local database and a client that reads it; a stand-in without the `tracking` extra."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    if importlib.util.find_spec("mlflow") is None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec",
            lambda name, *a: name in ("mlflow", "alembic", "sqlalchemy") or find(name, *a),
        )  # fmt: skip
        parts = {
            "mlflow": {},
            "mlflow.entities": {
                "Metric": lambda k, v, t, s: SimpleNamespace(key=k, value=v, timestamp=t, step=s),
                "Param": lambda k, v: SimpleNamespace(key=k, value=v),
            },
            "mlflow.exceptions": {"MlflowException": type("MlflowException", (Exception,), {})},
            "mlflow.tracking": {"MlflowClient": StandIn},
        }
        for name, content in parts.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(StandIn, "stores", {})
    from mlflow.tracking import MlflowClient

    return uri, MlflowClient(uri)


def train(directory, uri, *, start, stop, error=None):
    """A run that writes the loss 1 / step after each step, from after `start` to `stop`."""
    run = RunDirectory(directory, CONFIG, config_name="toy.py")
    try:
        with track(run, uri):
            writer = MetricsWriter(run.path, step=start, tracker=run.tracker)
            for step in range(start + 1, stop + 1):
                writer.write(step, float(step), {"train/loss": 1 / step, "eval/p@1": math.nan})
            writer.close()
            if error is not None:
                raise error
            if stop == 4:
                run.figure("loss.png").write_bytes(b"png")
                run.write_summary(metrics={"knn": 0.9}, claims=[], seconds=1.0)
    finally:
        run.close()
    return json.loads((directory / "mlflow.json").read_text())[uri] if uri else None


def steps(client, run_id, name):
    return [point.step for point in client.get_metric_history(run_id, name)]


def test_a_run_that_stops_and_resumes_is_one_run_with_every_value_once(store, tmp_path):
    uri, client = store
    with pytest.raises(Interrupted):
        train(tmp_path / "run", uri, start=0, stop=3, error=Interrupted(15, 2))
    first = json.loads((tmp_path / "run/mlflow.json").read_text())[uri]
    assert client.get_run(first).info.status == "KILLED"
    # The newest checkpoint is that of step 2: step 3 is computed again.
    assert train(tmp_path / "run", uri, start=2, stop=4) == first
    found = client.get_run(first)
    assert found.info.status == "FINISHED"
    assert found.data.params == {
        "experiment": "toy.recipe", "seed": "0", "train.steps": "4", "rates": "[0.1, 0.2]"
    }  # fmt: skip
    assert found.data.tags["config"] == "toy.py"
    assert found.data.metrics["train/loss"] == 0.25
    assert found.data.metrics["knn"] == 0.9
    assert steps(client, first, "train/loss") == [1, 2, 3, 4]
    assert steps(client, first, "knn") == [4]
    assert math.isnan(found.data.metrics["eval/p_1"])
    assert "figures/loss.png" in [file.path for file in client.list_artifacts(first, "figures")]
    # Shown again, it is logged no second time.
    train(tmp_path / "run", uri, start=4, stop=4)
    assert steps(client, first, "train/loss") == [1, 2, 3, 4]
    assert steps(client, first, "knn") == [4]


def test_final_values_that_an_evaluation_changed_replace_those_of_the_store(store, tmp_path):
    uri, client = store
    run_id = train(tmp_path / "run", uri, start=0, stop=4)
    for found in ({"knn": 0.7, "mad": math.inf}, {"knn": math.nan, "mad": math.inf}):
        run = RunDirectory(tmp_path / "run", CONFIG)
        run.write_summary(metrics=found, claims=[], seconds=1.0)
        for _ in range(2):  # shown again, it is logged no second time
            with track(run, uri):
                pass
        run.close()
        stored = client.get_run(run_id).data.metrics
        assert stored["knn"] == pytest.approx(found["knn"], nan_ok=True)
    assert steps(client, run_id, "knn") == [4] * 3
    assert steps(client, run_id, "mad") == [4]
    assert _same(1.7976931348623157e308, math.inf)
    assert not _same(0.0, math.nan)


def test_a_store_that_is_given_later_gets_all_values(store, tmp_path):
    uri, client = store
    train(tmp_path / "run", None, start=0, stop=2)
    run_id = train(tmp_path / "run", uri, start=2, stop=4)
    assert steps(client, run_id, "train/loss") == [1, 2, 3, 4]


@pytest.mark.parametrize("call", ["log_batch", "set_terminated"])
def test_a_store_that_fails_is_told_once_and_ends_no_run(
    store, tmp_path, caplog, monkeypatch, call
):
    uri, client = store
    from mlflow.exceptions import MlflowException

    calls, log = [], getattr(type(client), call)

    def failing(self, *args, **options):
        calls.append(call)
        if len(calls) > (2 if call == "log_batch" else 0):  # parameters, step 1
            raise MlflowException("the connection is lost\nafter 7 tries")
        return log(self, *args, **options)

    with monkeypatch.context() as broken:
        broken.setattr(type(client), call, failing)
        run_id = train(tmp_path / "run", uri, start=0, stop=4)
    assert [r.getMessage() for r in caplog.records if r.name == "rml.training.tracking"] == [
        f"--mlflow {uri} fails (the connection is lost); the run goes on and logs no more there; "
        "its next start logs what is missing"
    ]
    assert calls == [call] * (3 if call == "log_batch" else 1)
    written = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in written] == [1, 2, 3, 4]
    assert client.get_run(run_id).info.status == "RUNNING"
    if call == "log_batch":
        assert steps(client, run_id, "train/loss") == [1]
    run = RunDirectory(tmp_path / "run", CONFIG)
    with track(run, uri):  # as the launcher does where a run is complete
        pass
    assert steps(client, run_id, "train/loss") == [1, 2, 3, 4]
    assert steps(client, run_id, "knn") == [4]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_fails_is_marked(store, tmp_path):
    uri, client = store
    with pytest.raises(UserError):
        train(tmp_path / "run", uri, start=0, stop=1, error=UserError("loss is nan"))
    run_id = json.loads((tmp_path / "run/mlflow.json").read_text())[uri]
    assert client.get_run(run_id).info.status == "FAILED"


def test_a_run_that_fails_before_it_begins_leaves_nothing(store, tmp_path):
    uri, client = store
    run, ids = RunDirectory(tmp_path / "run", CONFIG), {}

    def begin():
        with track(run, uri):
            ids.update(json.loads((run.path / "mlflow.json").read_text()))
            raise UserError("no such data")

    with pytest.raises(UserError):
        begin()
    run.abandon()
    assert not run.path.exists()
    assert client.get_run(ids[uri]).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("missing", ["mlflow", "sqlalchemy"])
def test_without_the_package_one_line_names_the_extra(monkeypatch, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UserError, match=rf"--mlflow needs {missing}: pip .*\[tracking\]"):
        check_uri("sqlite:///mlflow.db")
    check_uri(None)
