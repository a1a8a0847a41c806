"""The page of benchmarks: what each compares, from its docstring, and what was measured."""

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from benchmarks.record import NAMES
from experiments.results import number
from experiments.tables import table

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def benchmarks_page(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Writes the page of all benchmarks.

    Args:
      measured: What was measured by benchmark, of `experiments.results.read_benchmarks`.

    Returns:
      Markdown.
    """
    parts = [
        "# Benchmarks\n",
        "Ours beside the peer that one would take instead, on the same work in one run; a ratio "
        "above 1 is in our favour. Where a floor is named it is the arithmetic alone, timed in the "
        "same run. What was measured elsewhere before is folded below the latest table. "
        "`make bench` measures all of them, `python -m benchmarks.record NAME` one.\n",
    ]
    for name in NAMES:
        text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
        title, _, rest = text.partition("\n")
        rest = re.sub(r"^python -m .*$", r"`\g<0>`", rest.strip(), flags=re.MULTILINE)
        parts += [f"## {name}\n", f"{title}\n", f"{rest}\n"]
        shown = [measured_rows(found) for found in measured.get(name, ())]
        parts += shown[:1] or ["Not measured.\n"]
        parts += [folded("Measured elsewhere", rows) for rows in shown[1:]]
    return "\n".join(parts)


def folded(title: str, text: str) -> str:
    """Writes text that opens where its title is clicked on."""
    return f'??? note "{title}"\n\n{indent(text, "    ")}'


def measured_rows(found: Mapping[str, Any]) -> str:
    """Writes what a device measured of a benchmark, with where and when."""
    rows = [
        (
            row["case"],
            row["metric"],
            number(row["ours"]),
            f"{row['peer']}: {number(row['peer_value'])}",
            f"{row['ratio']:.2f}",
        )
        for row in found["rows"]
    ]
    day = found["finished"][: len("2025-01-31")]
    return (
        table(("case", "metric", "ours", "peer", "ratio"), rows)
        + f"\n`{found['command']}`, {day}, {found['device']}, commit `{found['commit']}`.\n"
    )
