"""Machines, options and points as a config describes them, and figures of Gram matrices."""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from rml import kernels
from rml.data import tables
from rml.errors import UserError
from rml.nested import flatten

Machine = kernels.SparseMachine | kernels.ConvMachine


def option_pairs(
    config: Any, first: str, second: str, *, baseline: str
) -> list[tuple[float, float]]:
    """Lists the pairs of options that a machine chooses from, as many as its baseline has options.

    Args:
      config: The run's config.
      first: Dotted key of the values of the pairs' first option.
      second: Dotted key of those of the second one.
      baseline: Dotted key of the values that the baseline, which has one option, chooses from.

    Returns:
      All pairs.

    Raises:
      UserError: The baseline has another number of values than there are pairs.
    """
    given = flatten(config.to_dict())
    found = list(product(given[first], given[second]))
    if (values := len(given[baseline])) != len(found):
        raise UserError(
            f"{baseline} has {values} values, expected {len(found)} as pairs of {first} and "
            f"{second}"
        )
    return found


def propagation(config: Any) -> dict[str, Any]:
    """How a config's machines propagate points, as arguments of `propagate_sparse`."""
    given = {
        name: config.model[name] for name in ("normalization", "jitter") if name in config.model
    }
    return {"kernel": kernels.build(config.model.kernel), **given}


def ordered_points(config: Any) -> tuple[jax.Array, jax.Array]:
    """Gram matrix of some standardised points of a table, and targets, in whose order they are."""
    x, y = tables.load_table(config.data.name)
    rows = np.random.default_rng(config.seed).permutation(len(x))[: config.data.points]
    rows = rows[np.argsort(y[rows, 0])]
    table = tables.standardise(tables.Split(x[rows], y[rows], x[:1], y[:1]))
    return kernels.input_gram(jnp.asarray(table.x)), jnp.asarray(table.y)


def relu_units(f: Any) -> Any:
    """ReLU units whose mean square is that of their inputs, as in the ReLU kernel."""
    return jnp.sqrt(2.0) * jax.nn.relu(f)


def draw_correlations(
    path: Path, config: Any, machine: Machine, order: np.ndarray | slice = slice(None)
) -> None:
    """Draws the correlations of the inducing points in each hidden layer, side by side.

    Args:
      path: The PNG to write.
      config: The run's config.
      machine: A machine of that config.
      order: Inducing points in the order in which they are drawn.
    """
    correlations = np.asarray(_correlations(machine, **propagation(config)))
    figures.heatmap(
        path, correlations[:, order][:, :, order], None,
        [f"layer {i + 1}" for i in range(len(correlations))], value_label="correlation", gap=2,
        xlabel="inducing points", ylabel="inducing points",
    )  # fmt: skip


@partial(jax.jit, static_argnames=("kernel", "normalization", "jitter"))
def _correlations(machine: Machine, **options: Any) -> jax.Array:
    """Correlations [layers, m, m] of the inducing points, compiled once a shape."""
    if isinstance(machine, kernels.ConvMachine):
        grams = kernels.conv_inducing_grams(machine, **options)
    else:
        grams = kernels.inducing_grams(machine, **options)
    return jax.vmap(partial(kernels.gram, kernels.build("linear_normalized")))(grams)
