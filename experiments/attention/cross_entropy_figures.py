"""Figures of the recipe on searches of hyper-parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from rml.training import RunDirectory
from rml.training.cross_entropy_search import Found, Setting

CAPTIONS = {
    "regret.png": "Nats by which the best setting found so far is above the optimum of the space, "
    "mean over searches, against settings scored (log₂); below 10⁻⁵ drawn as that; bands: 95% "
    "interval over searches.",
    "laws.png": "Probability of each value at the end of the search, mean over searches, "
    "against its place in its range; bands: 95% interval over searches.",
    "scores.png": "Held-out nats of a neighbour by the value of each hyper-parameter, mean over "
    "all settings that have it, against its place in its range.",
}
LEAST = 1e-5
"""Nats below which a difference is not drawn."""
TITLES = {"search": "cross-entropy", "random": "random"}


def of_regret(run: RunDirectory, best: float, searches: Mapping[str, Sequence[Found]]) -> None:
    """Draws how far searches are from the best score after each run."""
    series = {}
    for name, title in TITLES.items():
        most = max(len(own.scores) for own in searches[name])
        rows = [np.maximum.accumulate(own.scores) for own in searches[name]]
        # A search that has ended keeps what it has found.
        rows = [np.pad(row, (0, most - len(row)), mode="edge") for row in rows]
        regret = figures.band((best - np.stack(rows)).T)
        series[title] = (
            np.log2(np.arange(1, most + 1)), *(np.maximum(own, LEAST) for own in regret)
        )  # fmt: skip
    figures.curves(
        run.figure("regret.png"), series, "settings scored (log₂)", "nats above the optimum",
        logy=True,
    )  # fmt: skip


def of_laws(run: RunDirectory, space: Mapping[str, Sequence[Any]], found: Sequence[Found]) -> None:
    """Draws the laws at the end."""
    series = {}
    for name, values in space.items():
        laws = np.stack([own.laws[name] for own in found])
        series[name] = (np.linspace(0, 1, len(values)), *figures.band(laws.T))
    figures.curves(run.figure("laws.png"), series, "place of the value in its range", "probability")


def of_scores(
    run: RunDirectory, space: Mapping[str, Sequence[Any]], settings: Sequence[Setting],
    scores: np.ndarray,
) -> None:  # fmt: skip
    """Draws mean nats by value."""
    series = {}
    for name, values in space.items():
        means = [-scores[[own[name] == value for own in settings]].mean() for value in values]
        series[name] = (np.linspace(0, 1, len(values)), np.array(means))
    figures.curves(
        run.figure("scores.png"), series, "place of the value in its range", "nats of a neighbour"
    )
