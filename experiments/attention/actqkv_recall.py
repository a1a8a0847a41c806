"""What ActQKV's ranking of blocks recalls and covers, and the options chosen by it."""

from typing import Any

import jax
import numpy as np

from experiments.attention import actqkv_figures, block_recall
from experiments.attention.block_recall import RANKINGS
from experiments.attention.layerwise import Decoder
from experiments.attention.memory_readings import settings_of
from experiments.common.claims import with_bounds
from rml.ops import t_interval
from rml.training import RunDirectory

GAINS = {
    "": ("activation", "mean"), "_reversed": ("reversed", "mean"), "_last": ("last", "mean"),
    "_cosine": ("cosine", "mean_cosine"), "_heads": ("activation_heads", "mean_heads"),
}  # fmt: skip
"""Rankings that are compared, by the ending of the metric."""


def captured(decoder: Decoder, text: np.ndarray, layers: Any) -> list[tuple[jax.Array, ...]]:
    """Rotated queries [h, n, k] and keys [g, n, k] of layers that read a text exactly."""
    found = decoder.exact(text, layers).captured
    return [found[layer][:2] for layer in layers]


def choose(config: Any, decoder: Decoder, speech: np.ndarray) -> dict[str, int]:
    """Options that cover most of exact attention over a validation speech, at equal tokens."""
    memory, options = config.memory, config.recall
    layers = captured(decoder, speech, options.measured_layers)
    chosen, names = {}, ("activation", "mean")
    found = {
        block: [ranked(config, decoder, pair, block) for pair in layers]
        for block in sorted({block for name in names for block in config.tries[name]})
    }
    for name in names:
        row, covered = RANKINGS.index(name), []
        for block in config.tries[name]:
            count = memory.tokens // block
            covered.append(np.mean([
                own.near + np.take_along_axis(
                    own.mass, np.argsort(-own.scores[:, row], axis=2, kind="stable")[..., :count], 2
                ).sum(2) for own in found[block]
            ]))  # fmt: skip
        chosen[name] = config.tries[name][int(np.argmax(covered))]
    tokens, sinks = memory.sinks + memory.window + memory.tokens, tuple(config.tries.window)
    near = [
        block_recall.near_covered(*pair, sinks=sinks, tokens=tokens, first=memory.chunk)
        for pair in layers
    ]
    chosen["window"] = sinks[int(np.argmax(np.mean(near, axis=0)))]
    return chosen


def ranked(config: Any, decoder: Decoder, pair: Any, block: int) -> block_recall.Ranked:
    """Rankings of a layer's blocks, as arrays of numpy."""
    found = block_recall.ranked(
        *pair, jax.random.key(config.seed),
        settings=settings_of(config, block, config.memory.tokens), chunk=config.memory.chunk,
        theta=decoder.module.theta, temperatures=tuple(config.recall.temperatures),
    )  # fmt: skip
    return jax.tree.map(np.asarray, found)


def recall(
    config: Any, decoder: Decoder, texts: np.ndarray, block: int, tokenizer: Any, run: RunDirectory
) -> dict[str, float]:
    """Needed blocks and attention that rankings cover, and layers' budgets; draws them."""
    options = config.recall
    layers = [
        [ranked(config, decoder, pair, block)
         for pair in captured(decoder, text, options.measured_layers)] for text in texts
    ]  # fmt: skip
    found = [
        [block_recall.measured(own, options.shares, options.needed) for own in of_text]
        for of_text in layers
    ]
    # Over layers and windows first: windows of a text are alike, and texts are compared.
    by = {
        name: np.stack([np.mean([getattr(own, name) for own in text], (0, 1)) for text in found])
        for name in ("recall", "covered")
    }
    actqkv_figures.of_recall(run, options.shares, by)
    actqkv_figures.of_tokens(run, texts[-1], layers[-1], tokenizer)
    at = list(options.shares).index(options.at)
    metrics: dict[str, float] = {}
    for name, values in by.items():
        own = dict(zip(RANKINGS, values[..., at].T, strict=True))
        metrics |= {f"{name}_{ranking}": float(row.mean()) for ranking, row in own.items()}
        for ending, (first, second) in GAINS.items():
            metrics |= gain(f"gain_{name}{ending}", own[first], own[second])
    # The last one is of attention covered.
    metrics |= gain("covered_over_recent", own["activation"], own["recent"])
    metrics |= gain("covered_random_over_recent", own["random"], own["recent"])
    return metrics | budgeted(config, layers, block)


def budgeted(config: Any, layers: list[list[block_recall.Ranked]], block: int) -> dict[str, float]:
    """What layers' budgets by information cover beyond equal ones."""
    count, least = config.memory.tokens // block, config.recall.least

    def covered(**how: Any) -> tuple[np.ndarray, np.ndarray]:
        found = [
            block_recall.covered_by_budgets(text, count=count, least=least, **how)
            for text in layers
        ]
        shares, budgets = zip(*found, strict=True)
        return np.mean(shares, axis=1), np.concatenate(budgets)

    equal, _ = covered(way=None)
    ways: dict[str, dict[str, Any]] = {
        "": dict(way=0), "_tempered": dict(way=1), "_cosine": dict(way=-1),
        "_turned": dict(way=0, turned=True),
    }  # fmt: skip
    metrics: dict[str, float] = {"budget_equal": count}
    for name, how in ways.items():
        own, budgets = covered(**how)
        metrics |= gain(f"gain_dynamic{name}", own, equal)
        metrics |= {f"budget_least{name}": budgets.min(), f"budget_most{name}": budgets.max()}
        if not name:
            by_layer = zip(config.recall.measured_layers, budgets.mean(0), strict=True)
            metrics |= {f"budget_layer_{layer}": own for layer, own in by_layer}
    return metrics


def gain(name: str, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The mean difference over texts and its interval."""
    return with_bounds(name, t_interval(np.asarray(first - second, np.float64)))
