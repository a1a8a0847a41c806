"""Measures every claim in full and writes what was measured into WORKSPACE.md.

`python -m experiments.claims [--only=simclr] [--seeds=3]` runs the config of every row of the table
of systems that has one, once a seed, through the launcher, in `runs/claims/<key>/seed<n>`.
Stopped and started again, it continues.
"""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from rml.errors import unknown
from rml.training.claims import Claim

ONLY = flags.DEFINE_list("only", [], "Keys of rows to measure; all that work if empty.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds a claim.", lower_bound=1)
RUNS = flags.DEFINE_string("runs", "runs/claims", "Where the runs are.")
WORKSPACE = flags.DEFINE_string("workspace", "WORKSPACE.md", "The file with the table.")
COLUMNS = ("key", "system", "room", "function", "config", "test", "claim", "measured")


class Row(NamedTuple):
    """A row of the table of systems; `line` is where it stands in the file."""

    line: int
    key: str
    system: str
    room: str
    function: str
    config: str
    test: str
    claim: str
    measured: str

    @property
    def works(self) -> bool:
        """Whether the row says that the system is built."""
        return self.function != "not built"


def table(text: str) -> Iterator[Row]:
    """The rows of the tables of systems in WORKSPACE.md.

    Args:
      text: The file's text. A table is one whose header is `COLUMNS`.

    Yields:
      Each row, its cells without the backquotes around names.
    """
    inside = False
    for number, line in enumerate(text.splitlines()):
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if tuple(cells) == COLUMNS:
            inside = True
        elif inside and not set(cells[0]) <= set(":-"):
            if len(cells) != len(COLUMNS):
                raise ValueError(f"line {number + 1} has {len(cells)} cells, not {len(COLUMNS)}")
            yield Row(number, *(cell.strip("`") for cell in cells))


def measured(claims: Sequence[Claim], summaries: Sequence[dict[str, Any]]) -> str:
    """The measured column: each claim's metric, mean and spread over seeds, and whether it holds.

    Args:
      claims: The experiment's claims.
      summaries: One `summary.json` a seed, of the same config.

    Returns:
      Text of the cell.
    """
    parts = []
    for claim in claims:
        values = np.array([summary["metrics"][claim.metric] for summary in summaries])
        verdict = claim.measure({claim.metric: values.mean()})
        spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
        parts.append(
            f"{claim.metric} {verdict['value']:.4g}{spread} ({claim.relation} {claim.threshold:g}: "
            f"{'holds' if verdict['holds'] else '**not reproduced**'})"
        )
    seconds = np.mean([summary["seconds"] for summary in summaries])
    seeds = f"{len(summaries)} seed{'s' * (len(summaries) != 1)}"
    parts.append(f"{seeds}, {seconds:.0f} s each")
    return "; ".join(parts)


def write_cell(path: Path, row: Row, text: str) -> None:
    """Replaces the last cell of a row, nothing else."""
    lines = path.read_text().splitlines()
    head = lines[row.line].rstrip().removesuffix("|").rpartition("|")[0]
    lines[row.line] = f"{head}| {text} |"
    path.write_text("\n".join(lines) + "\n")


def main(argv: Sequence[str]) -> None:
    """Runs what is missing, then writes the table."""
    del argv
    path = Path(WORKSPACE.value)
    rows = {row.key: row for row in table(path.read_text()) if row.works}
    for key in ONLY.value:
        if key not in rows:
            print(f"error: {unknown('key of a working system', key, rows)}", file=sys.stderr)
            raise SystemExit(1)
    for key in ONLY.value or rows:
        summaries = []
        for seed in range(SEEDS.value):
            directory = Path(RUNS.value) / key / f"seed{seed}"
            command = [
                sys.executable, "-m", "experiments.run", f"--config={rows[key].config}",
                f"--config.seed={seed}", f"--workdir={directory}",
            ]  # fmt: skip
            print(f"{key}, seed {seed} of {SEEDS.value}", flush=True)
            code = subprocess.run(command, check=False).returncode
            if code:
                raise SystemExit(code if code > 0 else 128 - code)
            summaries.append(json.loads((directory / "summary.json").read_text()))
        experiment = importlib.import_module(f"experiments.{summaries[0]['experiment']}")
        write_cell(path, rows[key], measured(experiment.CLAIMS, summaries))


if __name__ == "__main__":
    app.run(main)
