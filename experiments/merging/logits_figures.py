"""Figures of the recipe on logits fusion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.merging.logits_readings import Reading, grid
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "methods.png": "Nats a token of test texts gained over the large model, by collection: with "
    "weight 1 or one that validation texts chose, with one chosen at every token, by contrastive "
    "decoding, by an adapter of the large model and by its whole fine-tuning; error bars: 95% "
    "interval over windows.",
    "fixed.png": "Nats a token gained over the large model by one weight of the expert at all "
    "tokens; band: 95% interval over windows. Dashed: a weight chosen at every token.",
    "writing.png": "Runs of two words that continuations share with the true ones (ROUGE-2, F1), "
    "by collection, greedy after half a window; error bars: 95% interval over windows.",
    "alpha.png": "The weight that is chosen along the first test windows of two collections.",
    "tokens.png": "Tokens of those windows by the expert that is the active one, by shade and "
    "by a mark above; no expert is active where there is neither.",
    "experts.png": "Share of tokens (columns add up to 1 in a row) at which an expert is the "
    "active one, of those at which any is.",
}
WRITERS = {
    "large": "large", "expert": "expert", "proxy": "weight 1", "fixed": "one weight, chosen",
    "dynamic": "chosen at every token", "lora": "adapter", "tuned": "tuned",
}  # fmt: skip
TOKENS = 64
"""Tokens that are drawn."""
WINDOWS = 2
"""Collections of which the first test window is drawn."""
LINE = 84
"""Characters of a line of text."""


def draw(
    config: Any, run: RunDirectory, test: Mapping[str, Reading], whole: Mapping[str, Any],
    fixed: Mapping[str, float], active: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Draws all figures.

    Args:
      config: The run's config.
      run: Its directory.
      test: Readings of test windows by domain.
      whole: Nats of test windows by domain, under "tuned", "lora" and "contrastive".
      fixed: Weight that validation chose for all tokens, by domain.
      active: Shares of tokens of every expert, by collection.
    """
    points = grid(config)
    at = {value: int(np.argmin(abs(points - value))) for value in (1.0, *fixed.values())}
    ways = {
        name: {
            "weight 1": own.large - own.fixed[:, at[1.0]],
            "one weight, chosen": own.large - own.fixed[:, at[fixed[name]]],
            "chosen at every token": own.large - own.dynamic,
            "contrastive": own.large - whole["contrastive"][name],
            "adapter": own.large - whole["lora"][name],
            "tuned": own.large - whole["tuned"][name],
        }
        for name, own in test.items()
    }
    found = {
        way: [t_interval(rows[way].mean(1)) for rows in ways.values()]
        for way in next(iter(ways.values()))
    }
    _bars(run, "methods.png", list(ways), found, ylabel="nats a token gained", decimals=2)
    gains = np.concatenate([
        own.large.mean(1)[:, None] - own.fixed.mean(2) for own in test.values()
    ])  # fmt: skip
    dynamic = np.concatenate([(own.large - own.dynamic).mean(1) for own in test.values()]).mean()
    figures.curves(
        run.figure("fixed.png"), {"one weight": (points, *figures.band(gains.T))},
        "weight α of the expert", "nats a token gained", reference=("chosen", float(dynamic)),
    )  # fmt: skip
    along = {
        name: (np.arange(1, 1 + len(own.alpha[0, :TOKENS])), own.alpha[0, :TOKENS])
        for name, own in list(test.items())[:WINDOWS]
    }
    figures.curves(run.figure("alpha.png"), along, "token", "weight α of the expert")
    figures.heatmap(
        run.figure("experts.png"), np.stack(list(active.values())), list(active),
        list(config.data.domains), xlabel="expert", ylabel="collection",
        value_label="share of tokens",
    )  # fmt: skip


def draw_writing(run: RunDirectory, rouge: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws by domain and way how much of the true continuations was written."""
    found = {
        label: [t_interval(own[way]) for own in rouge.values()] for way, label in WRITERS.items()
    }
    _bars(run, "writing.png", list(rouge), found, ylabel="ROUGE-2", decimals=3)


def _bars(
    run: RunDirectory, name: str, domains: Sequence[str], found: Mapping[str, Sequence[Any]],
    **options: Any,
) -> None:  # fmt: skip
    """Draws intervals of every domain by way."""
    figures.bars(
        run.figure(name), domains,
        {way: [own.mean for own in row] for way, row in found.items()},
        {way: [own.high - own.mean for own in row] for way, row in found.items()}, **options,
    )  # fmt: skip


def draw_tokens(
    run: RunDirectory, domains: Sequence[str], words: Mapping[str, Sequence[str]],
    active: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Draws texts whose tokens show the expert that is active at them.

    Args:
      run: The run's directory.
      domains: Names of the experts.
      words: Tokens of a text, by collection.
      active: Weights of the experts at each token [t, n], by collection.
    """
    shown = {name: [readable(word) for word in own[:TOKENS]] for name, own in words.items()}
    placed = {name: figures.placed_words(own, LINE) for name, own in shown.items()}
    lines = sum(rows[-1][1] + 2 for rows in placed.values())
    with figures.canvas(run.figure("tokens.png"), (5.6, 0.5 + 0.24 * lines)) as figure:
        ax = figure.add_subplot(xlim=(-1, LINE + 1), ylim=(lines - 0.3, -1.2))
        ax.set_axis_off()
        for index, name in enumerate(domains):
            looks = figures.look(index, "color", "marker")
            ax.plot([], [], linestyle="none", label=name, **looks)
        top = 0.0
        for name, rows in placed.items():
            ax.text(0, top, name, fontsize=7, weight="bold")
            for at, (word, (left, line)) in enumerate(zip(shown[name], rows, strict=True)):
                y, middle = top + 1 + line, left + len(word) / 2
                ax.text(middle, y, word, family="monospace", fontsize=6.5, ha="center")
                weights = active[name][:, at]
                if weights.max() > 0:
                    looks = figures.look(int(weights.argmax()), "color", "marker")
                    ax.fill_between(
                        (left, left + len(word)), y - 0.45, y + 0.2, color=looks["color"],
                        alpha=0.3, linewidth=0,
                    )  # fmt: skip
                    ax.plot([middle], [y - 0.6], markersize=2.5, **looks)
            top += rows[-1][1] + 2
        figures.legend(ax, len(domains), above=True)


def readable(word: str) -> str:
    """A token on one line, with marks for what would not be seen."""
    return "".join("↵" if letter == "\n" else letter for letter in word) or "∅"
