"""What the recipe on blocks drawn by distance compares, at equal numbers of keys."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.attention.equal_keys import window_keys, window_width
from experiments.common.claims import with_bounds
from rml.attention import (
    Law,
    causal_weights,
    draw_pattern,
    keep_probabilities,
    shard_pattern,
)
from rml.ops import t_interval


def laws(config: Any) -> dict[str, Law]:
    """The laws that are drawn, by kind."""
    kinds = ("harmonic", "geometric", "uniform")
    return {kind: Law(kind, config.budget, config.gamma) for kind in kinds}


def options(config: Any, name: str, choice: Any) -> dict[str, Any]:
    """Options of a row of `METHODS` at the keys of the law.

    Args:
      config: The run's config.
      name: What is compared, a key of `LATE`.
      choice: Kind of the law, whether a uniform draw is reweighted, stride, or sinks.
    """
    n, block = config.late.length, config.block
    if name == "law":
        return {"block": block, "law": laws(config)[choice]}
    if name == "uniform":
        return {"block": block, "law": laws(config)["uniform"]._replace(reweight=choice)}
    if name == "strided":
        sizes = range(1, n // block)
        local = min(
            sizes, key=lambda one: abs(_blocks_of_stride(config, one, choice) - config.budget)
        )
        own = {"block": block, "local": local, "stride": choice}
        return own | {"shards": 1, "covering": False}
    width = window_width((config.budget - 1) * block + (block + 1) / 2, n, sinks=choice)
    return {"width": width, "sinks": choice}


def _blocks_of_stride(config: Any, local: int, stride: int) -> float:
    n = config.late.length // config.block
    seen = shard_pattern(n, heads=1, shards=1, local=local, stride=stride)
    return float(seen.sum()) / n


def keys(config: Any) -> dict[str, float]:
    """Keys that a query sees on average, of each method with its first choice; exact ones too."""
    n, block = config.late.length, config.block
    found = {"exact": (n + 1) / 2}
    inside = (block - 1) / 2  # keys of the own block that come later
    for name in ("law", "uniform", "strided", "window"):
        own = options(config, name, config.late.tries[name][0])
        if name == "window":
            found[name] = window_keys(own["width"], n, sinks=own["sinks"])
        elif name == "strided":
            blocks = _blocks_of_stride(config, own["local"], own["stride"])
            found[name] = blocks * block - inside
        else:
            share = causal_weights(n // block)
            blocks = float(share @ keep_probabilities(n // block, own["law"], share))
            found[name] = blocks * block - inside
    return found


def operations(config: Any, module: Any, rngs: Any) -> dict[str, float]:
    """Counted operations of a layer's two products by the blocks that are visited, all heads.

    Args:
      config: The run's config.
      module: The decoder, of which the number of heads and their width are read.
      rngs: Random keys of the draws, over which operations are a mean.

    Returns:
      Metrics `flops_<name>` of each method with its first choice, and of exact causal attention.
      A window visits the blocks in which it has keys.
    """
    n, block, heads = config.late.length // config.block, config.block, module.heads
    causal = np.tril(np.ones((n, n), bool))
    found = {"exact": heads * causal.sum()}
    for name in ("law", "uniform", "strided", "window"):
        own = options(config, name, config.late.tries[name][0])
        if name == "window":
            starts = np.arange(n) * block
            # From the first query of a block to the last key of an earlier one.
            near = starts[:, None] - starts - (block - 1) < own["width"]
            first = starts < own["sinks"]
            found[name] = heads * (causal & (near | first)).sum()
        elif name == "strided":
            how = {"shards": 1, "local": own["local"], "stride": own["stride"]}
            found[name] = heads * shard_pattern(n, heads=1, **how).sum()
        else:
            keep = keep_probabilities(n, own["law"], causal_weights(n))
            drawn = [draw_pattern(rng, keep, heads=heads).sum() for rng in rngs]
            found[name] = np.mean(drawn)
    # Products of queries with keys and of weights with values, two operations a multiplication.
    a_block = 4 * block**2 * module.head_shape()[1]
    return {f"flops_{name}": float(blocks) * a_block for name, blocks in found.items()}


def compared(config: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Rows of `METHODS` with options whose errors are measured; windows are shorter than half."""
    return {
        "harmonic": ("block_law", options(config, "law", "harmonic")),
        "geometric": ("block_law", options(config, "law", "geometric")),
        "uniform": ("block_law", options(config, "uniform", False)),
        "strided": ("s2_attention", options(config, "strided", config.late.tries.strided[0])),
        "window": ("window", options(config, "window", 0)),
        "window_sinks": ("window", options(config, "window", config.sinks)),
    }


def summarised(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean errors, and shares by which they are lower, with intervals over layers and heads.

    Means and intervals are of differences of logarithms.
    """
    logs = {name: np.log(own) for name, own in found.items()}
    means = {name: own.mean(axis=0).ravel() for name, own in logs.items()}
    metrics = {f"error_{name}": float(np.exp(own.mean())) for name, own in means.items()}
    law = logs["harmonic"]
    pairs = {
        "gain_over_uniform": means["uniform"] - means["harmonic"],
        "gain_between_draws": (law[::2].mean(axis=0) - law[1::2].mean(axis=0)).ravel(),
        "gain_over_window": means["window"] - means["harmonic"],
        "gain_of_uniform_over_window": means["window"] - means["uniform"],
        "gain_over_window_sinks": means["window_sinks"] - means["harmonic"],
        "gain_over_strided": means["strided"] - means["harmonic"],
        "gain_of_geometric_over_window": means["window"] - means["geometric"],
    }
    for name, values in pairs.items():
        metrics |= with_bounds(name, (-np.expm1(-end) for end in t_interval(values)))
    return metrics
