"""Figures of retrieval experiments."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments import figures
from experiments.retrieval.judge import METRICS, Results

NAMES = {
    "trained": "trained",
    "start": "before training",
    "random": "random",
    "random_negatives": "random negatives",
    "hard_negatives": "hard negatives",
    "bm25": "BM25",
    "bm25_code": "BM25, identifiers split",
}


def half_width(values: np.ndarray) -> float:
    """Half of a 95% interval of the mean over queries, by the normal approximation."""
    return 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan


def draw_systems(figure: Callable[[str], Path], found: Mapping[str, Results]) -> None:
    """Bars of nDCG and recall by task and system, with intervals over queries."""
    tasks = list(dict.fromkeys(task for task, _ in next(iter(found.values()))))
    groups = [task.replace("_", " ") for task in tasks]
    shown = {name: r for name, r in found.items() if not _same(r, found, name)}
    for metric in ("ndcg", "recall"):
        values = {NAMES[name]: [r[t, metric].mean() for t in tasks] for name, r in shown.items()}
        errors = {
            NAMES[name]: [half_width(r[t, metric]) for t in tasks] for name, r in shown.items()
        }
        figures.bars(
            figure(f"systems_{metric}.png"), groups, values, errors, ylabel=METRICS[metric]
        )


def _same(results: Results, found: Mapping[str, Results], name: str) -> bool:
    """Whether an earlier system is this one by another name."""
    earlier = list(found)[: list(found).index(name)]
    return any(found[other] is results for other in earlier)
