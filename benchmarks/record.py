"""Keeps what benchmarks measured in `results/benchmarks/<name>.json`.

`python -m benchmarks.record [NAME ...] [--quick]` runs each benchmark once, all of them by default,
and shows its table. What it measured is kept with device, commit and date in the place of what this
device measured before; what other devices measured stays, since ratios differ between processors,
and less work by `--quick` takes the place of none that was whole.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.record import current_commit, processor
from experiments.registry import ROOT
from experiments.results import BENCHMARKS
from rml.errors import unknown
from rml.training.durable import write_json

FOLDER = ROOT / "results" / BENCHMARKS
SHARED = ("__init__", "common", "record")
NEEDS = {"gpu": "jax_cuda12_plugin"}
"""What the bench extra does not bring: without it a benchmark runs only where it is named."""
NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in SHARED)


def record(name: str, flags: list[str]) -> int:
    """Runs a benchmark and keeps its rows; returns its exit code."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    if process.returncode:
        return process.returncode
    told = json.loads(lines[-1])
    found = {
        "command": f"python -m benchmarks.{name}" + "".join(f" {flag}" for flag in flags),
        "device": "; ".join(part for part in (told["accelerator"], processor()) if part),
        "commit": current_commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": told["rows"],
    }
    keep(FOLDER / f"{name}.json", found)
    return 0


def keep(file: Path, found: Mapping[str, Any]) -> None:
    """Keeps a measurement before others, in the place of one by its command on its device."""

    def which(one: Mapping[str, Any]) -> tuple[str, str]:
        return one["device"], one["command"]

    before = json.loads(file.read_text()) if file.exists() else []
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, [found, *(one for one in before if which(one) != which(found))])


def _is_whole(name: str) -> bool:
    """Whether what a benchmark needs is there; says so where it is not."""
    package = NEEDS.get(name)
    there = package is None or importlib.util.find_spec(package) is not None
    if not there:
        print(f"{name} is left out: there is no {package}", file=sys.stderr)
    return there


def main() -> int:
    """Records the benchmarks that are named; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="less work, rougher numbers")
    options = parser.parse_args()
    for name in options.names:
        if name not in NAMES:
            print(f"error: {unknown('benchmark', name, NAMES)}", file=sys.stderr)
            return 1
    names = options.names or [name for name in NAMES if _is_whole(name)]
    codes = [record(name, ["--quick"] * options.quick) for name in names]
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main())
