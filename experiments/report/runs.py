"""Reading run directories: whatever is there, however damaged, with a note on what is not."""

import fcntl
import json
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILES = ("config.json", "metrics.jsonl", "summary.json")
STATUSES = ("complete", "running", "interrupted", "failed")
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
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
      series: Metric name to its points.
      figures: Figures that can be shown.
      status: One of `STATUSES`, or what the summary says.
      notes: What is missing or damaged, in sentences.
    """

    name: str
    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    series: dict[str, Series]
    figures: list[Figure]
    status: str
    notes: list[str]

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


def find_runs(roots: Iterable[Path]) -> dict[str, Path]:
    """Run directories at or under `roots`.

    Args:
      roots: Directories.

    Returns:
      Name to directory, in the natural order of names. A name is the path below the root, or the
      root's own name; where two are equal, the path as given.
    """
    found: dict[Path, tuple[str, str]] = {}
    for root in roots:
        for folder, inner, files in os.walk(root):
            inner[:] = sorted(n for n in inner if n not in ("checkpoints", "figures", ".git"))
            if any(name in files for name in FILES):
                path = Path(folder)
                name = str(path.relative_to(root))
                short = root.resolve().name if name == "." else name
                found.setdefault(path.resolve(), (short, str(path)))
    shorts = [short for short, _ in found.values()]
    named = {s if shorts.count(s) == 1 else full: path for path, (s, full) in found.items()}
    return dict(sorted(named.items(), key=lambda item: natural(item[0])))


def read_runs(found: Mapping[str, Path]) -> list[Run]:
    """Reads runs that `find_runs` found."""
    return [read_run(name, path) for name, path in found.items()]


def read_run(name: str, path: Path) -> Run:
    """Reads one run directory; never fails, what cannot be read becomes a note."""
    notes: list[str] = []
    config = _read_object(path / "config.json", notes, needed=True)
    summary = _read_object(path / "summary.json", notes, needed=False)
    series = _read_metrics(path / "metrics.jsonl", notes)
    for metric, points in series.items():
        broken = next((s for s, v in zip(points.steps, points.values, strict=True)
                       if not math.isfinite(v)), None)  # fmt: skip
        if broken is not None:
            notes.append(f"{metric} is not finite at step {broken:.0f}.")
    if not series:
        notes.append("No metrics yet." if not summary else "No curves: metrics.jsonl is empty.")
    figures = _read_figures(path / "figures", notes)
    return Run(name, path, config, summary, series, figures, _status(path, summary), notes)


def natural(name: str) -> list[tuple[int, float, str]]:
    """A key that sorts `run2` before `run10`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, float(p), "") if p.isdecimal() else (1, 0.0, p.lower()) for p in parts]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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


def _read_object(path: Path, notes: list[str], *, needed: bool) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            notes.append(f"No {path.name}.")
        return {}
    except (OSError, ValueError, RecursionError):
        notes.append(f"{path.name} cannot be read as JSON.")
        return {}
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} does not hold a JSON object.")
    return {}


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and parsed lines; None for one that cannot be parsed."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                try:
                    yield number, json.loads(text)
                except (ValueError, RecursionError):
                    yield number, None


def _read_metrics(path: Path, notes: list[str]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    bad: list[int] = []
    last = 0
    try:
        for last, line in _lines(path):
            step = number_of(line.get("step")) if isinstance(line, dict) else None
            if step is None or not math.isfinite(step):
                bad.append(last)
                continue
            time = number_of(line.get("time"))
            for name, value in line.items():
                measured = number_of(value)
                if name not in ("step", "time") and measured is not None:
                    points = series.setdefault(str(name), Series())
                    points.append(step, math.nan if time is None else time, measured)
    except FileNotFoundError:
        return {}
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}.")
    if bad == [last]:
        notes.append(f"The last line of {path.name} is cut short.")
    elif bad:
        lines = f"{len(bad)} line{'s' * (len(bad) != 1)}"
        notes.append(f"{lines} of {path.name} cannot be read, the first is line {bad[0]}.")
    return series


def _read_figures(folder: Path, notes: list[str]) -> list[Figure]:
    captions: dict[str, Any] = {}
    if (folder / "captions.json").exists():
        captions = _read_object(folder / "captions.json", notes, needed=False)
    figures = []
    try:
        paths = sorted(folder.glob("*.png"), key=lambda p: natural(p.name))
    except OSError:
        paths = []
    for path in paths:
        try:
            with path.open("rb") as file:
                head = file.read(24)
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - len(_PNG_END)))
                whole = head.startswith(_PNG) and file.read() == _PNG_END
        except OSError:
            whole = False
        if not whole:
            notes.append(f"figures/{path.name} is not a whole PNG.")
            continue
        width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
        caption = captions.get(path.name)
        caption = str(caption) if caption else path.stem.replace("_", " ").capitalize()
        figures.append(Figure(path, caption, width, height, size))
    return figures


def _status(path: Path, summary: Mapping[str, Any]) -> str:
    """The summary's word; without one, a run whose process still holds its lock is running."""
    if summary:
        return str(summary.get("status") or "complete")
    try:
        with (path / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:
        pass
    return "interrupted"
