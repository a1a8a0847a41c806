"""Figures of the recipe on logits fusion."""

from collections.abc import Mapping
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
    "alpha.png": "The weight that is chosen along the first test window of each collection.",
    "experts.png": "Share of tokens (columns add up to 1 in a row) at which an expert is the "
    "active one, of those at which any is.",
}
TOKENS = 64
"""Tokens that are drawn."""


def draw(
    config: Any, run: RunDirectory, test: Mapping[str, Reading], whole: Mapping[str, Any],
    fixed: Mapping[str, float], active: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Draws all figures.

    Args:
      config: The run's config.
      run: Its directory.
      test: Readings of test windows by domain.
      whole: By "tuned", "lora" and "contrastive" nats of test windows by domain.
      fixed: By domain the weight that validation chose for all tokens.
      active: By collection the shares of tokens of every expert.
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
    figures.bars(
        run.figure("methods.png"), list(ways),
        {way: [own.mean for own in row] for way, row in found.items()},
        {way: [own.high - own.mean for own in row] for way, row in found.items()},
        ylabel="nats a token gained", decimals=2,
    )  # fmt: skip
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
        for name, own in list(test.items())[:2]
    }
    figures.curves(run.figure("alpha.png"), along, "token", "weight α of the expert")
    figures.heatmap(
        run.figure("experts.png"), np.stack(list(active.values())), list(active),
        list(config.data.domains), xlabel="expert", ylabel="collection",
        value_label="share of tokens",
    )  # fmt: skip
