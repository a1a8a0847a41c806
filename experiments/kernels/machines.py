"""Sparse machines as a config describes them, and figures of their Gram matrices."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import figures
from rml import kernels


def propagation(config: Any) -> dict[str, Any]:
    """How a config's machines propagate points, as arguments of `propagate_sparse`."""
    given = {
        name: config.model[name] for name in ("normalization", "jitter") if name in config.model
    }
    return {"kernel": kernels.build(config.model.kernel), **given}


def draw_correlations(
    path: Path, config: Any, machine: kernels.SparseMachine, order: np.ndarray | slice = slice(None)
) -> None:
    """Draws the correlations of the inducing points in each hidden layer, side by side.

    Args:
      path: The PNG to write.
      config: The run's config.
      machine: A sparse machine of that config.
      order: Inducing points in the order in which they are drawn.
    """
    grams = kernels.inducing_grams(machine, **propagation(config))
    correlations = jax.vmap(partial(kernels.gram, kernels.build("linear_normalized")))(grams)
    figures.heatmap(
        path, correlations[:, order][:, :, order], value_label="correlation", gap=2,
        xlabel=f"inducing points, layers 1 to {len(grams)}", ylabel="inducing points",
    )  # fmt: skip
