"""Figures of the recipe on vocabularies of sub-words."""

from collections.abc import Mapping

import numpy as np

from experiments.common import figures
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "bits.png": "Bits a character of held-out documents against the number of pieces (log₂), by "
    "the search that found them; bands: 95% interval over documents.",
    "pieces.png": "Pieces of a held-out word against those of the vocabulary (log₂).",
    "gaps.png": "Nats of toys below those of the exact optimum, over these; error bars: 95% "
    "interval over toys.",
}
TITLES = {
    "frequency": "frequency (BPE)", "likelihood": "likelihood", "substrings": "common substrings",
    "bpe": "BPE, tokenizers", "wordpiece": "WordPiece, tokenizers",
    "unigram": "Unigram, tokenizers", "characters": "characters",
}  # fmt: skip


def of_bits(run: RunDirectory, bits: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Draws bits of documents by size, of all but characters."""
    series = {}
    for name, own in bits.items():
        if name != "characters":
            ends = zip(*(t_interval(values) for values in own.values()), strict=True)
            series[TITLES[name]] = (np.log2(list(own)), *map(np.array, ends))
    figures.curves(run.figure("bits.png"), series, "pieces (log₂)", "bits a character")


def of_pieces(run: RunDirectory, pieces: Mapping[str, Mapping[int, float]]) -> None:
    """Draws pieces of a word by size."""
    series = {
        TITLES[name]: (np.log2(list(own)), np.array(list(own.values())))
        for name, own in pieces.items()
        if name != "characters"
    }
    figures.curves(run.figure("pieces.png"), series, "pieces (log₂)", "pieces of a word")


def of_gaps(run: RunDirectory, gaps: Mapping[str, np.ndarray]) -> None:
    """Draws gaps of toys."""
    ends = {TITLES[name]: t_interval(own) for name, own in gaps.items()}
    figures.bars(
        run.figure("gaps.png"), list(ends), {"gap": [float(own[0]) for own in ends.values()]},
        {"gap": [float(own[2] - own[1]) / 2 for own in ends.values()]},
        ylabel="share of the optimum's nats", decimals=3,
    )  # fmt: skip
