"""The command line: finds runs, writes the page."""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.report.page import MARKER, render
from experiments.report.reading import find_runs, read_runs
from experiments.startup import LocalPath, Parser, check_writable, fail
from rml.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report and says where; returns the exit code."""
    parser = Parser(
        prog="python -m experiments.report",
        description="Turns run directories into one self-contained HTML page.",
    )
    parser.add_argument(
        "runs", nargs="+", action=LocalPath, help="Run directories, or directories that hold some."
    )
    parser.add_argument(
        "--out", action=LocalPath, default=Path("report.html"), help="The page to write."
    )
    parser.add_argument("--title", default="Experiment report", help="The page's title.")
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace a file that is not a report."
    )
    parser.add_argument(
        "--figures_mb", type=float, default=40.0, help="Most megabytes of figures to embed."
    )
    try:
        options = parser.parse_args(argv)
    except UserError as error:
        fail(error)
    if not 0 <= options.figures_mb < math.inf:
        fail(f"--figures_mb is {options.figures_mb:g}, expected a number from 0")
    for path in options.runs:
        if not path.is_dir():
            fail(f"{path} is not a directory, expected a run directory or one that holds runs")
    check_out(options.out, options.overwrite)
    found = find_runs(options.runs)
    if not found:
        fail(
            f"no runs in {', '.join(map(str, options.runs))}: a run directory holds config.json, "
            "metrics.jsonl or summary.json"
        )
    runs = read_runs(found)
    page = render(runs, title=options.title, figure_bytes=int(options.figures_mb * 1e6))
    write(options.out, page)
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {len(runs)} run{'s' * (len(runs) != 1)}, {size:.1f} MB")
    return 0


def check_out(path: Path, overwrite: bool) -> None:
    """Refuses to replace what is not a report, and a page that cannot be written."""
    if path.is_dir():
        fail(f"--out={path} is a directory, expected a file")
    if path.exists() and not overwrite:
        with path.open("rb") as file:
            head = file.read(400)
        if MARKER.encode() not in head:
            fail(f"{path} exists and is not a report; give another --out, or --overwrite")
    try:
        check_writable(path.parent, f"--out={path}")
    except UserError as error:
        fail(error)


def write(path: Path, page: str) -> None:
    """Writes the page whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A run's folder may have a name that is no text.
            partial.write_text(page, encoding="utf-8", errors="backslashreplace")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        fail(f"--out={path} cannot be written: {error.strerror or error}")


if __name__ == "__main__":
    sys.exit(main())
