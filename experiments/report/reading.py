"""Reading run directories: whatever is there, however damaged, with a note on what is not."""

import collections
import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.report.runs import Figure, Run, Series, number_of

FILES = ("config.json", "metrics.jsonl", "summary.json")
HISTORY = "config.history.jsonl"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def find_runs(roots: Iterable[Path]) -> dict[str, Path]:
    """Run directories at or under `roots`.

    Args:
      roots: Directories.

    Returns:
      Name to directory, in the natural order of names. A name is the path below the root, or the
      root's own name; where two are equal, the path as given. A directory that links lead to as
      well has one name, that without a link where there is one.
    """
    found: dict[Path, tuple[str, str]] = {}
    for root in roots:
        for path, files in _folders(root):
            if any(name in files for name in FILES):
                name = str(path.relative_to(root))
                short = root.resolve().name if name == "." else name
                found.setdefault(path.resolve(), (short, str(path)))
    shorts = [short for short, _ in found.values()]
    named = {s if shorts.count(s) == 1 else full: path for path, (s, full) in found.items()}
    return dict(sorted(named.items(), key=lambda item: natural(item[0])))


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders at and under a root with the names of their files, each once; links come last.

    A link to a folder that the link or the root itself lies in is not followed: beyond what was
    named, it would lead to whatever is there.
    """
    seen: set[Path] = set()
    tops = collections.deque([root])
    while tops:
        for folder, inner, files in os.walk(tops.popleft()):
            path, real = Path(folder), Path(folder).resolve()
            if real in seen:
                inner.clear()
                continue
            seen.add(real)
            inner[:] = sorted(n for n in inner if n not in ("checkpoints", "figures", ".git"))
            above = {real, *real.parents, *root.resolve().parents}
            links = [path / name for name in inner if (path / name).is_symlink()]
            tops += [link for link in links if link.resolve() not in above]
            yield path, files


def read_runs(found: Mapping[str, Path]) -> list[Run]:
    """Reads runs that `find_runs` found."""
    return [read_run(name, path) for name, path in found.items()]


def read_run(name: str, path: Path) -> Run:
    """Reads one run directory; never fails, what cannot be read becomes a note."""
    notes: list[str] = []
    config = _read_object(path / "config.json", notes, needed=True)
    summary = _read_object(path / "summary.json", notes, needed=False)
    series = _read_metrics(path / "metrics.jsonl", notes)
    failure: dict[str, Any] = {}
    if not summary and (path / "failure.json").exists():
        failure = _read_object(path / "failure.json", notes, needed=False) or {"step": None}
    if failure.get("message"):
        notes.append(f"Failed: {failure['message']}")
    for metric, points in series.items():
        broken = next((s for s, v in zip(points.steps, points.values, strict=True)
                       if not math.isfinite(v)), None)  # fmt: skip
        if broken is not None:
            notes.append(f"{metric} is not finite at step {broken:.0f}.")
    if not series:
        notes.append("No metrics yet." if not summary else "No curves: metrics.jsonl is empty.")
    figures = _read_figures(path / "figures", notes)
    status, extended = _status(path, summary, failure), _extended_from(path, config, notes)
    return Run(name, path, config, summary, failure, series, figures, status, notes, extended)


def natural(name: str) -> list[tuple[int, float, str]]:
    """A key that sorts `run2` before `run10`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, float(p), "") if p.isdecimal() else (1, 0.0, p.lower()) for p in parts]


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


def _extended_from(path: Path, config: Mapping[str, Any], notes: list[str]) -> int | None:
    """Number of steps that an extended run was to have when it began to train, else None."""
    if not (path / HISTORY).exists():
        return None
    # JAX is imported only for runs whose config was replaced.
    from rml.training.config_file import extended_from

    try:
        steps = number_of(extended_from(path, config))
        return None if steps is None else int(steps)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        notes.append(f"{HISTORY} cannot be read: whether the run was extended is not known.")
        return None


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


def _status(path: Path, summary: Mapping[str, Any], failure: Mapping[str, Any]) -> str:
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
    return "failed" if failure else "interrupted"
