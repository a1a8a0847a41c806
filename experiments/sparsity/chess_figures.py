"""Figures of the recipe on CHESS."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.figures.curves import band
from experiments.sparsity.chess_measures import layer_read
from experiments.sparsity.chess_readings import Reading
from rml.training import RunDirectory

NAMES = {
    "uniform": "uniform (CATS)",
    "abs": "CHESS, mean |u|",
    "rms": "CHESS, rms u",
    "abs_down": "CHESS with row norm",
    "product": "|gu| once known",
    "top": "largest of each token",
    "random": "random channels",
    "shuffled": "thresholds of other channels",
    "selective": "CHESS, query and output too",
    "selective_every": "CHESS, all projections too",
    "attention": "query and output alone",
    "by_layer": "CHESS, shares by layer",
    "by_other_layer": "those shares, other layers",
}
CAPTIONS = {
    "nats.png": "Nats a token beyond the dense model on test documents against the share of a "
    "layer's weights, attention included, that decoding one token reads; bands: 95% interval over "
    "documents. Random channels are far above and left out.",
    "half.png": "Nats a token beyond the dense model with half left out; error bars: 95% interval "
    "over documents. Random channels are far above and left out.",
    "channels.png": "Share of tokens at which a channel is left out, half of all in each layer, by "
    "a uniform threshold and by CHESS.",
    "layers.png": "Share of zeros that the MLP's last matrix reads on test documents, by layer; "
    "half was asked for on training documents.",
}


def of_nats(
    run: RunDirectory, module: Any, dense: Reading,
    readings: Mapping[float, Mapping[str, Reading]],
) -> None:  # fmt: skip
    """Draws nats against the share of weights read, by every rule, and those of half in bars."""
    series = {}
    for name, title in NAMES.items():
        own = {
            share: readings[share][name] for share in sorted(readings) if name in readings[share]
        }
        if not own or name == "random":
            continue
        read = np.array(
            [layer_read(module, name, share, x.zeros.mean()) for share, x in own.items()]
        )
        beyond = np.stack([x.nats - dense.nats for x in own.values()])
        series[title] = (read, *band(beyond))
    figures.curves(
        run.figure("nats.png"), series, "share of a layer's weights read", "nats beyond dense",
        reference=("dense", 0.0),
    )  # fmt: skip
    half = {name: own for name, own in readings[0.5].items() if name != "random"}
    found = {NAMES[name]: band(own.nats - dense.nats) for name, own in half.items()}
    order = sorted(found, key=lambda name: found[name][0])
    figures.bars(
        run.figure("half.png"), order, {"nats": [float(found[name][0]) for name in order]},
        {"nats": [float(found[name][2] - found[name][0]) for name in order]},
        ylabel="nats beyond dense", decimals=3,
    )  # fmt: skip


def of_channels(run: RunDirectory, half: Mapping[str, Reading]) -> None:
    """Draws how channels differ in how often they are left out."""
    series = {NAMES[name]: 1 - half[name].live.ravel() for name in ("uniform", "abs")}
    figures.histogram(
        run.figure("channels.png"), series, "share of tokens at which it is left out",
        "channels of all layers",
    )  # fmt: skip


def of_layers(run: RunDirectory, half: Mapping[str, Reading]) -> None:
    """Draws realised shares by layer."""
    series = {
        NAMES[name]: (np.arange(1, len(own.zeros) + 1), own.zeros) for name, own in half.items()
    }
    figures.curves(
        run.figure("layers.png"), series, "layer", "share of zeros", reference=("asked for", 0.5)
    )
