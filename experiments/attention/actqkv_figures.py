"""Figures of the recipe on ActQKV."""

from typing import Any

import numpy as np

from experiments.attention.block_recall import RANKINGS, Ranked
from experiments.common import figures
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "recall.png": "Share of needed blocks that are found against the share of blocks that is read; "
    "bands: 95% interval over texts, a mean over windows, layers and groups of heads each.",
    "covered.png": "Share of exact attention to blocks that is covered against the share of blocks "
    "that is read; bands: 95% interval over texts.",
    "needles.png": "Logarithm of the right answer's probability among ten, a mean over texts, by "
    "depth of the needle, way of reading and length of the text.",
    "bytes.png": "Nats a token lost in the second half of a text, needle and question not counted, "
    "against bytes of keys, values and representatives that a query reads; bands: 95% interval "
    "over texts.",
    "tokens.png": "Activation bias of the queries of a text, darker the farther from the mean "
    "(log₁₀, a mean over layers).",
}
NAMES = {
    "activation": "activation bias", "mean": "mean query", "last": "last query",
    "random": "random blocks", "recent": "nearest blocks", "exact": "exact attention",
    "window": "window and sinks",
}  # fmt: skip
LINE, LINES = 64, 14
"""Characters of a line of text, and number of lines."""


def of_recall(run: RunDirectory, shares: Any, values: dict[str, np.ndarray]) -> None:
    """Draws recall and covered attention [texts, rankings, shares]."""
    at = 100 * np.asarray(shares)
    for file, name, label in (("recall.png", "recall", "needed blocks found"),
                              ("covered.png", "covered", "attention covered")):  # fmt: skip
        series = {
            NAMES[ranking]: (at, *t_interval(values[name][:, row].T))
            for row, ranking in enumerate(RANKINGS) if ranking in NAMES
        }  # fmt: skip
        figures.curves(run.figure(file), series, "blocks read (%)", label, above=True)


def of_needles(
    run: RunDirectory, found: dict[Any, Any], lengths: Any, depths: Any, tokens: int
) -> None:
    """Draws answers' log-probabilities by depth and length, and ways of reading."""
    shown = {"all keys": "all keys", "activation": "activation", "mean": "mean query",
             "window": "window"}  # fmt: skip
    columns = {
        f"{label}, {n}": found[name, n, tokens].answer.reshape(-1, len(depths)).mean(0)
        for name, label in shown.items() for n in lengths
    }  # fmt: skip
    figures.heatmap(
        run.figure("needles.png"), np.stack(list(columns.values()), axis=1),
        labels=[f"{depth:g}" for depth in depths], column_labels=list(columns),
        ylabel="depth", value_label="log-probability",
    )  # fmt: skip


def of_bytes(run: RunDirectory, found: dict[Any, Any], length: int) -> None:
    """Draws nats against bytes that a query attends to."""
    exact = next(v for (name, n, _), v in found.items() if (name, n) == ("all keys", length))
    series: dict[str, Any] = {}
    for name in ("activation", "window"):
        own = sorted(
            (value for (which, n, _), value in found.items() if (which, n) == (name, length)),
            key=lambda value: value.bytes,
        )
        few = min(len(value.nats) for value in own)  # texts that all have read
        nats = np.stack([value.nats[:few] - exact.nats[:few] for value in own], dtype=np.float64)
        series[NAMES[name]] = ([value.bytes / 1e6 for value in own], *t_interval(nats))
    figures.curves(
        run.figure("bytes.png"), series, "megabytes attended to", "nats a token lost",
        reference=(f"all keys, {exact.bytes / 1e6:.0f} MB", 0.0),
    )  # fmt: skip


def of_tokens(run: RunDirectory, text: np.ndarray, layers: list[Ranked], tokenizer: Any) -> None:
    """Writes the middle of a text, each token on a shade of its activation bias."""
    bias = np.log10(np.mean([own.bias for own in layers], axis=0) + 1e-6)
    half, most = len(text) // 2, LINE * LINES
    words = [tokenizer.decode([int(token)]).replace("\n", " ") for token in text[half:][:most]]
    placed = figures.placed_words(words, LINE)
    with figures.canvas(run.figure("tokens.png"), (figures.COLUMN * 1.6, 0.2 * LINES)) as figure:
        ax = figure.add_subplot()
        low, high = np.quantile(bias, (0.02, 0.98))
        for word, (column, row), value in zip(words, placed, bias[half:], strict=False):
            if row == LINES:
                break
            strength = float(np.clip((value - low) / (high - low), 0, 1))
            ax.barh(row, len(word), left=column, height=0.9, color="#0072B2", alpha=0.7 * strength,
                    linewidth=0)  # fmt: skip
            for place, letter in enumerate(word):
                ax.text(column + place + 0.5, row, letter, family="monospace", size=6,
                        ha="center", va="center")  # fmt: skip
        ax.set(xlim=(0, LINE), ylim=(LINES - 0.4, -0.6))
        ax.axis("off")
