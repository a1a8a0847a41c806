"""Systems of an area side by side, where the same metrics were measured on the same data."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.registry import ROOT, read_config
from experiments.results import interval, seeds
from experiments.systems import System
from experiments.tables import table
from rml.ops import t_interval

METRICS = {"contrastive": {"knn": "kNN accuracy", "linear_probe": "linear probe's accuracy"}}
"""By area the metrics that its systems share, and what a table calls them."""
BESIDE = {"pixels": "raw pixels", "untrained": "untrained encoder"}
"""Endings of the same metrics of what needs no training."""


def comparison(
    area: str, systems: Iterable[System], results: Mapping[str, Mapping[str, Any]]
) -> str:
    """Writes a table for each data set on which two systems of an area or more were measured.

    Args:
      area: The area.
      systems: Its systems.
      results: Committed measurements by system and config.

    Returns:
      Markdown; empty where there is nothing to compare.
    """
    metrics = METRICS.get(area, {})
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for system in systems:
        for result in results.get(system.key, {}).values() if metrics else ():
            if {*metrics} <= {*result["metrics"]}:
                data = read_config(str(ROOT / result["config"])).data.name
                found.setdefault(data, []).append((system.key, result))
    parts = [
        f"### On `{data}`\n\n{compared(measured, metrics)}"
        for data, measured in found.items()
        if len(measured) > 1
    ]
    head = (
        "## Side by side\n\nMeans over seeds with 95% intervals, the best by the last column "
        "first. Options are each config's own; what needs no training is the first config's.\n"
    )
    return "\n".join([head, *parts]) if parts else ""


def compared(measured: Sequence[tuple[str, Mapping[str, Any]]], metrics: Mapping[str, str]) -> str:
    """Writes the table of one data set, what needs no training last."""
    *_, last = metrics
    order = sorted(measured, key=lambda one: -np.mean(one[1]["metrics"][last]))
    rows = [
        (
            f"[{key}](../systems/{key}.md)", f"`{Path(result['config']).stem}`",
            str(seeds(result)), *cells(result, metrics),
        )
        for key, result in order
    ]  # fmt: skip
    _, first = order[0]
    for ending, name in BESIDE.items():
        beside = [f"{metric}_{ending}" for metric in metrics]
        if {*beside} <= {*first["metrics"]}:
            rows.append((name, "", str(seeds(first)), *cells(first, beside)))
    return table(("system", "config", "seeds", *metrics.values()), rows)


def cells(result: Mapping[str, Any], metrics: Iterable[str]) -> list[str]:
    """Writes means over seeds with their intervals, of one seed its value."""
    values = [np.asarray(result["metrics"][metric], float) for metric in metrics]
    return [
        interval(*t_interval(own)) if len(own) > 1 else interval(own[0], None, None)
        for own in values
    ]
