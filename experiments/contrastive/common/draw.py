"""Figures of views and of training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from rml.data import augment
from rml.training import read_metrics


def draw_views(path: Path, images: np.ndarray, pipeline: Any, key: Any, *, count: int = 7) -> None:
    """Figure of the views that an augmentation makes: originals first."""
    originals = augment.to_float(jnp.asarray(images))
    views = jax.jit(lambda key, images: augment.views(key, images, pipeline, n=count))(
        key, originals
    )
    rows = np.stack([originals, *views], axis=1)
    figures.image_grid(
        path,
        np.clip(rows, 0, 1),
        column_labels=["image"] + [f"view {i + 1}" for i in range(count)],
        title="Views of the augmentation",
    )


def draw_curves(folder: Callable[[str], Path], run_path: Path, panels: Mapping[str, str]) -> None:
    """Figures of metrics against steps.

    Args:
      folder: Where a figure of a name is saved.
      run_path: The run directory.
      panels: Metric name to axis label; each becomes `<label of the metric>.png`.
    """
    lines = read_metrics(run_path / "metrics.jsonl")
    for metric, label in panels.items():
        points = [(line["step"], float(line[metric])) for line in lines if metric in line]
        if len(points) < 2:  # a run shorter than the interval between lines
            continue
        steps, values = (np.array(column) for column in zip(*points, strict=True))
        name = metric.split("/")[-1]
        figures.curves(folder(f"{name}.png"), {name: (steps, values)}, "step", label)
