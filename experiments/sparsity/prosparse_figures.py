"""Figures of the recipe on ProSparse."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.figures.curves import band, logged
from experiments.sparsity.prosparse_training import RELU, Reading, main_peak, penalties
from rml.training import RunDirectory

CAPTIONS = {
    "tradeoff.png": "Nats a token of test windows beyond ReLU alone against the share of zeros "
    "that the MLP's last matrix reads, by kind of penalty and its last factor; bands: 95% "
    "interval over windows, paired.",
    "methods.png": "Nats a token beyond ReLU alone at equal tokens, with the share of zeros; error "
    "bars: 95% interval over windows, paired.",
    "stages.png": "Factor of the penalty, over its last peak, and share of zeros in training "
    "batches against steps.",
    "layers.png": "Share of zeros by layer.",
}
SHOWN = {
    "silu": "SiLU",
    RELU: "ReLU",
    "shifted": "shifted ReLU",
    "top": "largest gates",
    "chess": "CHESS, untrained",
    "pro": "ProSparse",
}


def draw(config: Any, run: RunDirectory, found: Mapping[str, Reading], chosen: str) -> None:
    """Draws all figures."""
    relu = found[RELU]
    series = {}
    for kind, title in (("progressive", "stages along a sine"), ("constant", "constant factor")):
        own = [relu, *(found[f"{kind}_{peak:g}"] for peak in config.peaks)]
        zeros = np.array([reading.zeros.mean() for reading in own])
        beyond = np.stack([reading.nats - relu.nats for reading in own])
        order = np.argsort(zeros)
        series[title] = (100 * zeros[order], *band(beyond[order]))
    points = {
        f"gate_{main_peak(config):g}": "sine, on the gate alone",
        "top": "largest gates of each token",
        "pro": "sine, with threshold",
    }
    for name, title in points.items():
        one = found[name]
        series[title] = (
            np.array([100 * one.zeros.mean()]), *(x[None] for x in band(one.nats - relu.nats)),
        )  # fmt: skip
    figures.curves(
        run.figure("tradeoff.png"), series, "zeros (% of the MLP's hidden values)",
        "nats beyond ReLU alone",
    )  # fmt: skip
    bars = {
        f"{title}\n{found[name].zeros.mean():.0%}": found[name] for name, title in SHOWN.items()
    }
    means = [band(own.nats - relu.nats) for own in bars.values()]
    figures.bars(
        run.figure("methods.png"), list(bars), {"nats": [float(m[0]) for m in means]},
        {"nats": [float(m[2] - m[0]) for m in means]}, ylabel="nats beyond ReLU alone", decimals=3,
    )  # fmt: skip
    of_stages(config, run, chosen)
    layers = {
        title: (np.arange(1, found[name].zeros.shape[1] + 1), 100 * found[name].zeros.mean(0))
        for name, title in SHOWN.items()
        if name not in ("silu", "top")
    }
    figures.curves(run.figure("layers.png"), layers, "layer", "zeros (%)")


def of_stages(config: Any, run: RunDirectory, chosen: str) -> None:
    """Draws the factor and the sparsity of the chosen variant and of its constant one."""
    names = list(penalties(config))
    series = {}
    inner = run.of_method(RELU)
    inner.close()
    for kind, title in (("progressive", "stages"), ("constant", "constant")):
        name = chosen.replace("progressive", kind)
        place = names.index(name) * config.seeds
        wanted = {"factor": f"train/factor/{place}", "zeros": f"train/zeros/{place}"}
        own = logged(inner.path, wanted)
        if len(own) == 2 and len(own["zeros"][0]) > 1:
            steps, factor = own["factor"]
            top = max(float(factor.max()), 1e-12)
            series[f"{title}: factor / last peak"] = (steps, factor / top)
            series[f"{title}: share of zeros"] = own["zeros"]
    if series:
        figures.curves(run.figure("stages.png"), series, "step", "share")
