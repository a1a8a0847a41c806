"""Metrics to `metrics.jsonl` and TensorBoard events."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from rml.errors import UserError
from rml.training.processes import is_primary

FLUSH_SECONDS = 10.0
"""Time between flushes of the events, so that TensorBoard shows a run while it trains."""


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and to TensorBoard events.

    Opened at a step, it forgets what was written after it, so that a resumed run's file equals an
    uninterrupted one's but for the times. Of several processes the first one writes.
    """

    def __init__(self, directory: Path, *, step: int):
        """Opens the files of a run that continues after `step` (0 for a new one)."""
        self._path = directory / "metrics.jsonl"
        self._writes = is_primary()
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        self.seconds = max((float(line["time"]) for line in kept), default=0.0)
        if not self._writes:
            return
        with self._writing():
            partial = self._path.with_name("metrics.jsonl.partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(partial, self._path)
            self._file = open(self._path, "a")  # noqa: SIM115 - closed by close()
            # Written in this thread: a writer with a queue would wait for ever on a full disk.
            self._events = EventsWriter(str(directory / "events"))
            self._flushed = time.monotonic()
            # TensorBoard hides what an earlier start wrote from this step on.
            log = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=step + 1, session_log=log))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"metrics cannot be written to {self._path.parent}: {error.strerror or error}"
            ) from error

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Writes one line; non-finite values as the strings nan, inf and -inf.

        Args:
          step: Step after which the metrics were measured.
          seconds: Time since the run began, over all its processes.
          metrics: Names to values.

        Raises:
          UserError: They cannot be written, such as to a full disk.
        """
        if not self._writes:
            return
        plain = {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in metrics.items()}
        with self._writing():
            self._file.write(json.dumps({"step": step, "time": round(seconds, 3), **plain}) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                summary = scalar(name, float(value))
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes both files.

        Raises:
          UserError: What was still to be written cannot be.
        """
        if not self._writes:
            return
        with self._writing():
            try:
                self._file.close()
            finally:
                self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
