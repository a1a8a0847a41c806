"""Figures of what variants of a recipe reach, of all and against what they change."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.variants import BASE, by_value, in_order, variant, written
from rml.ops import t_interval
from rml.training import RunDirectory

KINDS = {"kNN": "knn", "probe": "linear_probe"}
"""Accuracies of encoders of images, by the names that figures show."""
LABELS = {"erased_only": "without flips and warps"}
"""Names of variants in figures that say more than the variant's own."""


def draw_accuracies(path: Path, rows: Mapping[str, np.ndarray], kinds: Iterable[str]) -> None:
    """Draws the accuracies of all variants, with intervals over seeds.

    Args:
      path: The PNG to write.
      rows: Values by seed, a row for each of `kinds`, by variant.
      kinds: Names of the accuracies as the figure shows them.
    """
    order = {name: t_interval(rows[name]) for name in in_order(rows)}
    figures.dots(
        path, [LABELS.get(name, written(name)) for name in order],
        {shown: ([own.mean[i] for own in order.values()],
                 [own.high[i] - own.mean[i] for own in order.values()])
         for i, shown in enumerate(kinds)},
        "test accuracy, 95% interval",
    )  # fmt: skip


def draw_against(
    config: Any, run: RunDirectory, metrics: Mapping[str, float], file: str, key: str, label: str
) -> None:
    """Draws accuracies against a number of the config that variants change.

    Args:
      config: The run's config.
      run: Its directory.
      metrics: Metrics as `ablation.run` returns them.
      file: Name of the figure.
      key: Dotted key of the number.
      label: Name of its axis.
    """
    configs = {name: variant(config, name) for name in (BASE, *config.variants)}
    series = {
        shown: by_value(configs, {name: f"{kind}_{name}" for name in configs}, key)
        for shown, kind in KINDS.items()
    }
    draw_bars(
        run.figure(file), [f"{value:g}" for value in next(iter(series.values()))],
        {shown: list(own.values()) for shown, own in series.items()}, metrics,
        ylabel="test accuracy", xlabel=label, decimals=3, cut=True,
    )  # fmt: skip


def draw_bars(
    path: Path, groups: Sequence[str], series: Mapping[str, Sequence[str]],
    metrics: Mapping[str, float], **labels: Any,
) -> None:  # fmt: skip
    """Draws metrics that have the ends of their intervals, by series a metric's name a group."""
    figures.bars(
        path, groups,
        {shown: [metrics[name] for name in names] for shown, names in series.items()},
        {shown: [metrics[f"{name}_high"] - metrics[name] for name in names]
         for shown, names in series.items()},
        **labels,
    )  # fmt: skip
