"""Metrics to `metrics.jsonl` and TensorBoard events."""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rml.errors import UserError
from rml.training.durable import write_text
from rml.training.processes import is_primary


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Imports inside take a package for not installed, unless it has been imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with _absent("torch"):  # seconds to import, and tensorboardX wants a name of it for a type hint
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

log = logging.getLogger(__name__)

FLUSH_SECONDS = 10.0
"""Time between flushes of the events, so that TensorBoard shows a run while it trains."""


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and to TensorBoard events.

    Opened at a step, it forgets what was written after it, so that a resumed run's file equals an
    uninterrupted one's but for the times. Of several processes the first one writes.
    """

    def __init__(self, directory: Path, *, step: int, tracker: Any = None):
        """Opens the files.

        Args:
          directory: The run directory.
          step: Step after which the run continues, 0 for a new one.
          tracker: Tracker that metrics are written to as well, see `rml.training.tracking`.
        """
        self._path = directory / "metrics.jsonl"
        self._writes = is_primary()
        self._tracker = tracker
        lines, damaged = _parse(self._path)
        kept = [line for line in lines if line["step"] <= step]
        self.seconds = max((float(line["time"]) for line in kept), default=0.0)
        if not self._writes:
            return
        if damaged:
            log.warning("%s; the run continues after step %d", damaged, step)
        with self._writing():
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = open(self._path, "a")  # noqa: SIM115 - closed by close()
            # Written in this thread: a writer with a queue would wait for ever on a full disk.
            self._events = EventsWriter(str(directory / "events"))
            self._flushed = time.monotonic()
            # TensorBoard hides what an earlier start wrote from this step on.
            session = SessionLog(status=SessionLog.START)
            self._events.write_event(
                Event(wall_time=time.time(), step=step + 1, session_log=session)
            )

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
            if self._tracker is not None:
                self._tracker.write(step, plain)
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()

    def sync(self) -> None:
        """Waits until every line is on the disk.

        Raises:
          UserError: One cannot be written.
        """
        if self._writes:
            with self._writing():
                os.fsync(self._file.fileno())

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
    """Reads the whole lines of a `metrics.jsonl`; what a kill or power cut damaged is left out."""
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The whole lines of a file of metrics, and what is wrong with the others."""
    if not path.exists():
        return [], ""
    lines, damaged = [], []
    texts = path.read_bytes().split(b"\n")
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            float(line["step"]), float(line["time"])
            lines.append(line)
        except (ValueError, TypeError, KeyError):
            if text:
                damaged.append(number)
    if damaged == [len(texts)]:
        return lines, f"the last line of {path} is cut short ({len(texts[-1])} bytes) and removed"
    numbers = ", ".join(map(str, damaged))
    return lines, f"damaged lines of {path} are removed: {numbers}" if damaged else ""


def warn_of_gaps(path: Path, step: int, **every: int) -> None:
    """Warns of metrics that were written up to a step and are there no more.

    Args:
      path: The file of metrics.
      step: The step after which the run continues.
      **every: Steps between lines of a kind of metrics, `train` or `eval`; 0 for none.
    """
    lines = read_metrics(path)
    for kind, interval in every.items():
        found = {line["step"] for line in lines if any(k.startswith(f"{kind}/") for k in line)}
        expected = range(interval, step + 1, interval) if interval else ()
        lost = [at for at in expected if at not in found]
        if lost and (found or kind == "train"):  # a task may have nothing to evaluate
            log.warning(
                "%s lacks %d of the %d lines of %s/ metrics up to step %d (the first of step %d); "
                "curves have a gap there, the training does not",
                path, len(lost), len(expected), kind, step, lost[0],
            )  # fmt: skip
