"""Figures of the recipe on a cache that loses bits with age."""

from collections.abc import Mapping

import numpy as np

from experiments.common import figures
from rml.attention import Staircase, bits_by_age
from rml.evaluation.long_text import by_position
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "bits.png": "Bits of a number of keys and values against the age of its token (log₂ of 1 + "
    "tokens), half a residual held.",
    "nats.png": "Nats a token lost against position in the text, by cache; bands: 95% interval "
    "over texts.",
    "bytes.png": "Bytes of a text's keys and values, mean over the calls that read its last half, "
    "over those of 16 bits.",
}
TITLES = {
    "staircase": "staircase", "uniform": "2 bits, equal bytes",
    "uniform_four": "4 bits, equal bytes", "short": "2 bits, same residual",
    "four": "4 bits, same residual", "eight": "8 bits, same residual",
}  # fmt: skip
BINS = 8
"""Ranges of positions."""


def of_bits(run: RunDirectory, caches: Mapping[str, Staircase], length: int) -> None:
    """Draws bits against age."""
    series = {}
    for name, staircase in caches.items():
        held = length // staircase.chunk * staircase.chunk - staircase.chunk // 2
        bits = np.asarray(bits_by_age(staircase, held))
        series[TITLES[name]] = (np.log2(1 + np.arange(held)), bits)
    figures.curves(
        run.figure("bits.png"), series, "age of the token (log₂ of 1 + tokens)", "bits of a number"
    )


def of_nats(run: RunDirectory, nats: Mapping[str, np.ndarray]) -> None:
    """Draws what texts [documents, t - 1] lose against position."""
    n = nats["exact"].shape[-1]
    edges = np.linspace(1, n + 1, BINS + 1).round().astype(int)
    series = {}
    for name, title in TITLES.items():
        bins = by_position(nats[name] - nats["exact"], edges.tolist())
        series[title] = ((edges[:-1] + edges[1:]) / 2, *t_interval(bins.T))
    figures.curves(
        run.figure("nats.png"), series, "position in the text (tokens)", "nats a token lost",
        reference=("all bits", 0.0), above=True,
    )  # fmt: skip


def of_bytes(run: RunDirectory, sizes: Mapping[str, float], whole: float) -> None:
    """Draws sizes over that of 16 bits."""
    figures.bars(
        run.figure("bytes.png"), [TITLES[name] for name in sizes],
        {"bytes": [size / whole for size in sizes.values()]},
        ylabel="share of 16 bits' bytes", decimals=3,
    )  # fmt: skip
