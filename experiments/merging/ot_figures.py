"""Figures of the recipe on fusion by transport."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.figures.curves import band
from experiments.merging.ot_pairs import Searched
from experiments.merging.ot_tuning import Tuned
from rml.ops import t_interval
from rml.training import RunDirectory

INTERVAL = "95% interval over test images"
CAPTIONS = {
    "line.png": "Accuracy along the line between two vision transformers, before and after the "
    f"first is aligned with the second; bands: {INTERVAL}.",
    "text.png": "Cross-entropy of hidden tokens along the line between two BERTs; bands: 95% "
    "interval over windows.",
    "one_shot.png": f"What is made of two models without fine-tuning; error bars: {INTERVAL}.",
    "policies.png": f"Soft fusion by what a residual sum passes on; error bars: {INTERVAL}.",
    "regs.png": "Validation accuracy of soft fusions against the weight of the entropy.",
    "tuning.png": "Validation accuracy in fine-tuning, each start at its best learning rate.",
    "maps.png": "Soft maps of all blocks, the first on top: how much of each unit of model 0 "
    "(rows) goes to each of model 1 (columns).",
}
NAMES = {
    "parent 0": "parent 0", "parent 1": "parent 1, anchor", "vanilla": "plain average",
    "soft": "soft", "hard": "hard", "weights": "soft, by weights", "kept": "soft, heads kept",
    "shared": "soft, shared map of Q, K", "joint": "soft, joint map of Q, K",
    "one": "one permutation", "uniform": "uniform transport", "exchanged": "units exchanged",
    "one exchanged": "one permutation, exchanged",
    "aligned alone": "aligned parent 0", "ensemble": "ensemble",
}  # fmt: skip
TUNED = NAMES | {"wide": "wide into narrow", "wide exchanged": "wide, units exchanged"}
MAPS = {"stream.mid": "stream", "query": "queries", "value": "values", "stream.out": "MLP's sum"}
GAP = 2
"""Empty units between maps."""
Line = tuple[np.ndarray, np.ndarray]
"""Weights [k], and scores of examples there [k, n]."""


def draw(
    run: RunDirectory, regs: Sequence[float], found: Mapping[str, np.ndarray],
    policies: Mapping[str, np.ndarray], searched: Mapping[str, Searched],
    tuned: Mapping[str, Tuned], line: Mapping[str, Line], text: Mapping[str, Line],
    transports: Mapping[str, Any],
) -> None:  # fmt: skip
    """Draws all figures."""
    weight = "weight of model 1"
    accuracies = {name: (x, 100 * y) for name, (x, y) in line.items()}
    _lines(run, "line.png", accuracies, weight, "test accuracy (%)")
    _lines(run, "text.png", text, weight, "cross-entropy (nats a hidden token)")
    _bars(run, "one_shot.png", {NAMES[name]: own for name, own in found.items()})
    _bars(run, "policies.png", {name.replace("_", " "): own for name, own in policies.items()})
    soft = {
        NAMES[name]: (np.log10(np.asarray(regs, float)), 100 * own.scores)
        for name, own in searched.items() if name != "hard"
    }  # fmt: skip
    figures.curves(
        run.figure("regs.png"), soft, "log10 of the entropy's weight", "validation accuracy (%)",
        reference=(
            f"hard, {searched['hard'].options['residual'].replace('_', ' ')}",
            100 * float(searched["hard"].scores.max()),
        ),
        above=True,
    )  # fmt: skip
    courses = {TUNED[name]: (own.steps, 100 * own.course) for name, own in tuned.items()}
    figures.curves(
        run.figure("tuning.png"), courses, "step of fine-tuning", "validation accuracy (%)"
    )
    figures.heatmap(
        run.figure("maps.png"), np.stack([below_one_another(transports[name]) for name in MAPS]),
        column_labels=list(MAPS.values()), xlabel="units of model 1",
        ylabel="units of model 0, block by block", value_label="share", gap=GAP,
    )  # fmt: skip


def below_one_another(maps: Any) -> np.ndarray:
    """Maps of all layers [L, n0, n1] as one matrix, with empty rows between them."""
    padded = np.pad(np.asarray(maps, float), ((0, 0), (0, GAP), (0, 0)), constant_values=np.nan)
    return padded.reshape(-1, padded.shape[-1])[:-GAP]


def _lines(
    run: RunDirectory, file: str, found: Mapping[str, Line], xlabel: str, ylabel: str
) -> None:
    series = {name: (x, *band(y)) for name, (x, y) in found.items()}
    figures.curves(run.figure(file), series, xlabel, ylabel, above=True)


def _bars(run: RunDirectory, file: str, found: Mapping[str, np.ndarray]) -> None:
    order = sorted(found, key=lambda name: found[name].mean())
    ends = [t_interval(found[name]) for name in order]
    figures.bars(
        run.figure(file), order, {"accuracy": [100 * float(own.mean) for own in ends]},
        {"accuracy": [50 * float(own.high - own.low) for own in ends]},
        ylabel="test accuracy (%)", decimals=1,
    )  # fmt: skip
