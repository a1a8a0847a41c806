"""Metrics to an MLflow store beside the run directory, on request (`--mlflow=URI`).

The run directory stays what counts: the store is brought up to date from it, so that a run that is
resumed, or that is given a store only later, has every value there once.
"""

import importlib.util
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np

from rml.errors import UserError, install
from rml.nested import flatten
from rml.training.durable import write_json
from rml.training.processes import is_primary
from rml.training.rundir import RunDirectory
from rml.training.writers import read_metrics

log = logging.getLogger(__name__)

FILE = "mlflow.json"
"""Ids of a run by store, so that it continues there."""
MAX_PARAMS = 100  # of one call


def check_uri(uri: str | None) -> None:
    """Raises `UserError` where a store is asked for and MLflow or its database is not installed."""
    missing = [
        name for name in ("mlflow", "sqlalchemy", "alembic") if not importlib.util.find_spec(name)
    ]
    if uri is not None and missing:
        raise UserError(f"--mlflow needs {missing[0]}: {install('tracking')}")


class Tracker:
    """One run in an MLflow store.

    A store that fails later than at the beginning does not end the run: a warning says so, and no
    more is logged. The next start of the run logs what the store lacks.
    """

    def __init__(self, run: RunDirectory, uri: str):
        """Finds the run in the store or begins it, and logs what its directory holds.

        Args:
          run: The run.
          uri: Store, such as "sqlite:///mlflow.db" or the address of a server.

        Raises:
          UserError: The store cannot be used.
        """
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every new table
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._metric = Metric
        self._last: dict[str, int] = {}
        self._uri, self._failed = uri, False
        self._file = file = run.path / FILE
        ids = json.loads(file.read_text()) if file.exists() else {}
        try:
            self._client = MlflowClient(uri)
            if uri in ids:
                self._id = ids[uri]
                for name in self._client.get_run(self._id).data.metrics:
                    history = self._client.get_metric_history(self._id, name)
                    self._last[name] = max(point.step for point in history)
                self._client.update_run(self._id, status="RUNNING")
            else:
                self._id = self._begin(run, Param)
                write_json(file, ids | {uri: self._id})
            for line in read_metrics(run.path / "metrics.jsonl"):
                values = {k: v for k, v in line.items() if k not in ("step", "time")}
                self._log(line["step"], values)
        except MlflowException as error:
            raise UserError(
                f"--mlflow {uri} cannot be used: {str(error).splitlines()[0]}"
            ) from None

    def _begin(self, run: RunDirectory, param: Any) -> str:
        name = run.config.get("experiment") or "rml"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {"directory": str(run.path.resolve()), "config": run.config_name}
        begun = self._client.create_run(
            experiment, run_name=f"{run.path.parent.name}/{run.path.name}", tags=tags
        )
        params = [param(key, str(value)) for key, value in flatten(run.config).items()]
        for first in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(begun.info.run_id, params=params[first : first + MAX_PARAMS])
        return begun.info.run_id

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs metrics, without those that were logged of this step or a later one before.

        Args:
          step: Step after which they were measured.
          metrics: Names to numbers, or to the strings nan, inf and -inf.
        """
        self._unless_failed(lambda: self._log(step, metrics))

    def _log(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        stored: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Logs metrics that the store lacks of this step, or has with another value in `stored`."""
        now = int(1000 * time.time())
        new = {
            name: float(value)
            for given, value in metrics.items()
            if step > self._last.get(name := re.sub(r"[^\w./ -]", "_", given), -1)
            or (name in stored and not _same(stored[name], float(value)))
        }
        self._last |= dict.fromkeys(new, step)
        self._client.log_batch(
            self._id, metrics=[self._metric(k, v, now, step) for k, v in new.items()]
        )

    def end(self, run: RunDirectory, status: str) -> None:
        """Logs final metrics and figures of a complete run and marks how the run ended.

        One that failed before its first metric is taken back, as its directory is.

        Args:
          run: The run.
          status: MLflow's word: FINISHED, FAILED or KILLED.
        """
        self._unless_failed(lambda: self._end(run, status))

    def _end(self, run: RunDirectory, status: str) -> None:
        if status == "FAILED" and not self._last:
            self._client.delete_run(self._id)
            self._file.unlink()
            return
        summary = run.summary()
        if summary is not None and status == "FINISHED":
            stored = self._client.get_run(self._id).data.metrics
            self._log(summary["steps"] or 0, summary["metrics"], stored=stored)
            if (run.path / "figures").is_dir():
                self._client.log_artifacts(self._id, str(run.path / "figures"), "figures")
        self._client.set_terminated(self._id, status)

    def _unless_failed(self, call: Callable[[], None]) -> None:
        """Makes a call to the store, unless one failed before; warns where this one fails."""
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # beside MLflow's own those of what keeps its files
            self._failed = True
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning(
                "--mlflow %s fails (%s); the run goes on and logs no more there; its next start "
                "logs what is missing",
                self._uri, reason,
            )  # fmt: skip


def _same(stored: float, value: float) -> bool:
    """Tells whether a store has this value; of an infinite one it has the largest finite number."""
    a, b = np.nan_to_num([stored, value], nan=np.nan)
    return bool(a == b or (np.isnan(a) and np.isnan(b)))


@contextmanager
def track(run: RunDirectory, uri: str | None) -> Iterator[None]:
    """Logs a run to an MLflow store while it is in the context; to none where there is no URI.

    Of several processes the first one logs.

    Args:
      run: The run; `run.tracker` is where its metrics go.
      uri: Store, such as "sqlite:///mlflow.db".

    Raises:
      UserError: MLflow is not installed, or the store cannot be used.
    """
    check_uri(uri)
    if uri is None or not is_primary():
        yield
        return
    run.tracker = Tracker(run, uri)
    status = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Exception as error:
        status = "KILLED" if type(error).__name__ == "Interrupted" else "FAILED"
        raise
    finally:
        run.tracker.end(run, status)
        run.tracker = None
