"""Figures of Gram matrices, the layers side by side."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures
from rml.kernels import gram as kernels
from rml.kernels import sparse


def draw_layers(path: Path, grams: np.ndarray, *, points: str, value: str, gap: int) -> None:
    """One matrix a layer.

    Args:
      path: The PNG to write.
      grams: [layers, n, n].
      points: What the rows are, for the axes.
      value: What the numbers are.
      gap: Empty columns between two layers.
    """
    empty = np.full((grams.shape[1], gap), np.nan)
    joined = np.hstack([part for layer in grams for part in (layer, empty)][:-1])
    figures.heatmap(
        path, joined, xlabel=f"{points}, layers 1 to {len(grams)}", ylabel=points, value_label=value
    )


def draw_correlations(
    path: Path, config: Any, machine: sparse.SparseMachine, order: np.ndarray
) -> None:
    """The correlations of every layer's inducing Gram matrix, its points in this order."""
    layers = sparse.inducing_grams(
        machine,
        kernel=kernels.build(config.model.kernel),
        normalization=config.model.normalization,
    )
    grams = np.asarray(layers)
    norms = np.sqrt(np.diagonal(grams, axis1=1, axis2=2))
    correlations = grams / (norms[:, :, None] * norms[:, None, :])
    ordered = correlations[:, order][:, :, order]
    draw_layers(path, ordered, points="inducing points", value="correlation", gap=2)
