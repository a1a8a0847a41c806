"""The comparison of Hydra with its peers over seeds, as a Markdown table of mean ± deviation.

python -m experiments.hydra.table runs/claims/hydra/seed0 runs/claims/hydra/seed1 ...
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.hydra.common import METHODS

COLUMNS = {
    "kNN %": ("knn", 100),
    "probe %": ("linear_probe", 100),
    "transfer kNN %": ("transfer_knn", 100),
    "transfer probe %": ("transfer_linear_probe", 100),
    "RankMe": ("rankme", 1),
    "RankMe, projections": ("rankme_projections", 1),
    "participation ratio": ("participation_ratio", 1),
    "alignment": ("alignment", 1),
    "uniformity": ("uniformity", 1),
}


def table(runs: Sequence[Path]) -> str:
    """The table of complete runs of `experiments.hydra.compare`.

    Args:
      runs: Run directories, one a seed.

    Returns:
      Markdown; the spread is the standard deviation over seeds, none for one run.
    """
    metrics = [json.loads((run / "summary.json").read_text())["metrics"] for run in runs]
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method in METHODS:
        cells = []
        for name, scale in COLUMNS.values():
            values = scale * np.array([own[f"{method}_{name}"] for own in metrics])
            digits = 2 if abs(values).max() < 10 else 1
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, one a seed")
    runs = parser.parse_args().runs
    for run in runs:
        if not (run / "summary.json").exists():
            parser.error(f"{run} is no complete run: it has no summary.json")
    print(table(runs))


if __name__ == "__main__":
    main()
