"""What a report knows of a run, its metrics and figures."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUSES = ("complete", "running", "interrupted", "failed")
_NAMED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass
class Series:
    """A metric over steps, with the seconds since the run began."""

    steps: array = field(default_factory=lambda: array("d"))
    times: array = field(default_factory=lambda: array("d"))
    values: array = field(default_factory=lambda: array("d"))

    def append(self, step: float, time: float, value: float) -> None:
        """Adds a point; a step that was repeated after a resume replaces what came before."""
        while self.steps and self.steps[-1] >= step:
            for column in (self.steps, self.times, self.values):
                column.pop()
        self.steps.append(step)
        self.times.append(time)
        self.values.append(value)


@dataclass
class Figure:
    """A PNG of a run; its bytes are read when the page is written."""

    path: Path
    caption: str
    width: int
    height: int
    size: int


@dataclass
class Run:
    """What a run directory tells.

    Attributes:
      name: Unique among the runs of a report.
      path: The directory.
      config: Nested config, empty if there is none.
      summary: Summary, empty before the run is complete.
      failure: Step and message of an error that ended the run, empty if none did.
      series: Metric name to its points.
      figures: Figures that can be shown.
      status: One of `STATUSES`, or what the summary says.
      notes: What is missing or damaged, in sentences.
      extended_from: Number of steps that it was to have when it began to train, None if it was
        never extended.
    """

    name: str
    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    failure: dict[str, Any]
    series: dict[str, Series]
    figures: list[Figure]
    status: str
    notes: list[str]
    extended_from: int | None = None

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        name = self.config.get("experiment") or self.summary.get("experiment")
        return str(name or "unknown experiment")

    @property
    def seed(self) -> Any:
        """The seed, None if unknown."""
        return self.config.get("seed", self.summary.get("seed"))

    @property
    def last_step(self) -> float | None:
        """The last step that is known to be done."""
        if (failed := number_of(self.failure.get("step"))) is not None:
            return failed
        done = number_of(self.summary.get("steps"))
        return max((s.steps[-1] for s in self.series.values() if s.steps), default=done)

    @property
    def planned_steps(self) -> float | None:
        """How many steps the config asks for."""
        train = self.config.get("train")
        return number_of(train.get("steps")) if isinstance(train, dict) else None

    @property
    def seconds(self) -> float | None:
        """Wall-clock time, over all processes of the run."""
        done = number_of(self.summary.get("seconds"))
        if done is not None:
            return done
        return max((s.times[-1] for s in self.series.values() if s.times), default=None)

    @property
    def metrics(self) -> dict[str, tuple[float, float | None]]:
        """Name to value and, where the run is unfinished, the step it was measured at."""
        final = self.summary.get("metrics")
        if isinstance(final, dict) and final:
            values = {str(name): number_of(value) for name, value in final.items()}
            return {name: (value, None) for name, value in values.items() if value is not None}
        return {
            name.removeprefix("eval/"): (series.values[-1], series.steps[-1])
            for name, series in self.series.items()
            if name.startswith("eval/")
        }

    @property
    def claims(self) -> list[dict[str, Any]]:
        """Claims as the summary gives them."""
        claims = self.summary.get("claims")
        return [c for c in claims if isinstance(c, dict)] if isinstance(claims, list) else []

    @property
    def config_name(self) -> str:
        """The config's file, empty if unknown."""
        return str(self.summary.get("config_name") or "")

    @property
    def commit(self) -> str:
        """The git commit that the run was started at."""
        return str(self.summary.get("commit") or self.failure.get("commit") or "unknown")

    @property
    def devices(self) -> str:
        """Devices by kind, e.g. `8 x TPU v4`."""
        devices = self.summary.get("devices")
        if not isinstance(devices, list):
            return ""
        kinds = [str(device) for device in devices]
        counts = {kind: kinds.count(kind) for kind in kinds}
        return ", ".join(k if n == 1 else f"{n} × {k}" for k, n in counts.items())

    @property
    def versions(self) -> dict[str, str]:
        """Package to version."""
        versions = self.summary.get("versions")
        if not isinstance(versions, dict):
            return {}
        return {str(k): str(v) for k, v in versions.items()}


def decimate(values: Sequence[float], limit: int) -> list[int]:
    """Indices of at most about `limit` points that keep the ends and every peak and trough.

    Args:
      values: Values, non-finite ones allowed.
      limit: How many points to keep, at least 4.

    Returns:
      Increasing indices: all if they are few, else each stretch's least and greatest value.
    """
    count = len(values)
    if count <= limit:
        return list(range(count))
    kept = {0, count - 1}
    stretches = limit // 2 - 1
    for part in range(stretches):
        stretch = range(part * count // stretches, (part + 1) * count // stretches)
        finite = [i for i in stretch if math.isfinite(values[i])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        else:
            kept.add(stretch[0])
    return sorted(kept)


def number_of(value: Any) -> float | None:
    """A JSON value as a number: nan, inf and -inf are strings there; None for what is none."""
    if isinstance(value, str):
        return _NAMED.get(value.lower())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
