"""Metrics to `metrics.jsonl` and TensorBoard events."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from rml.training.processes import is_primary


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
        partial = self._path.with_name("metrics.jsonl.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self._path)
        self._file = open(self._path, "a")  # noqa: SIM115 - closed by close()
        self._events = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=10)

    def write(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Writes one line; non-finite values as the strings nan, inf and -inf.

        Args:
          step: Step after which the metrics were measured.
          seconds: Time since the run began, over all its processes.
          metrics: Names to values.
        """
        if not self._writes:
            return
        plain = {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, "time": round(seconds, 3), **plain}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Flushes and closes both files."""
        if not self._writes:
            return
        self._file.close()
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
