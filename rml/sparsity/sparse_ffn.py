"""A gated feed-forward of one token that reads only the rows of live channels."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rml.models.layers import activation as activation_of
from rml.models.live_rows import LiveRows, budget_of, from_live_rows


class FeedForward(NamedTuple):
    """Weights of a gated MLP, the row of a channel contiguous in each matrix.

    Attributes:
      gate: Matrix of the gate.
      up: Matrix of what the gate is multiplied by.
      down: Matrix back to the width.
    """

    gate: Float[Array, "f d"]
    up: Float[Array, "f d"]
    down: Float[Array, "f d"]


def feed_forward_of(params: Mapping[str, Any], layer: int) -> FeedForward:
    """Selects weights of one layer of a `Llama` with scanned blocks and an MLP without biases.

    Args:
      params: Parameters of the model.
      layer: Number of the layer, from 0.

    Raises:
      ValueError: The MLP has biases.
    """
    block = params["blocks"]
    if any("bias" in block[name] for name in ("gate", "mlp_in", "mlp_out")):
        raise ValueError("the MLP has biases, which a feed-forward of live rows does not add")
    gate, up, down = (block[name]["kernel"][layer] for name in ("gate", "mlp_in", "mlp_out"))
    return FeedForward(gate.T, up.T, down)


def dense_ffn(
    x: Float[Array, " d"],
    weights: FeedForward,
    threshold: Float[Array, "#f"] | None = None,
    *,
    activation: str | Callable[[jax.Array], jax.Array] = "silu",
) -> Float[Array, " d"]:
    """Computes the feed-forward of one token as three products of whole matrices.

    Args:
      x: The token.
      weights: The weights.
      threshold: Magnitude of the gate below which a channel is left out; none if not given.
      activation: Nonlinearity of the gate, or its name.
    """
    gate, live = _gate(x, weights, threshold, activation)
    return (jnp.where(live, gate, 0) * (weights.up @ x)) @ weights.down


def sparse_ffn(
    x: Float[Array, " d"],
    weights: FeedForward,
    threshold: Float[Array, "#f"] | None = None,
    *,
    activation: str | Callable[[jax.Array], jax.Array] = "silu",
    budget: int | None = None,
) -> Float[Array, " d"]:
    """Computes the same up to rounding, reading of two matrices only what live channels need.

    The gate's matrix is read whole. Channels whose gate is not zero and reaches the threshold are
    live; their rows of the two other matrices are read a few at a time, as many as there are. With
    more live channels than the budget, whole matrices are read, which is then faster. A decoder
    does the same in every block where it is given `rml.models.live_rows`.

    Args:
      x: The token.
      weights: The weights.
      threshold: Magnitude of the gate below which a channel is left out; none if not given.
      activation: Nonlinearity of the gate, or its name.
      budget: Largest number of live channels whose rows are read; six in ten of all channels if
        not given, where reading rows stops being faster on the CPU it was measured on.

    Returns:
      The output. It has no gradient in reverse mode: the number of loops depends on the token.

    Raises:
      ValueError: The budget is below 0.
    """
    gate, live = _gate(x, weights, threshold, activation)
    rows = LiveRows(weights.up, weights.down, budget_of(len(gate), budget))
    return from_live_rows(x, jnp.where(live, gate, 0), rows)


def _gate(
    x: Array,
    weights: FeedForward,
    threshold: Array | None,
    activation: str | Callable[[jax.Array], jax.Array],
) -> tuple[Float[Array, " f"], Bool[Array, " f"]]:
    """The gate after its nonlinearity, and which channels are live."""
    function = activation_of(activation) if isinstance(activation, str) else activation
    gate = function(weights.gate @ x)
    live = gate != 0
    return gate, live if threshold is None else live & (jnp.abs(gate) >= threshold)


def bytes_read(
    live: int | Int[np.ndarray, "*b"],
    *,
    d_ff: int,
    width: int,
    itemsize: int = 4,
    budget: int | None = None,
) -> Int[np.ndarray, "*b"]:
    """Counts the bytes of weights that `sparse_ffn` reads for a token with so many live channels.

    Args:
      live: Number of live channels, or several.
      d_ff: Number of all channels.
      width: Width of the token.
      itemsize: Bytes of a number.
      budget: Largest number of live channels whose rows are read, as `sparse_ffn` has it.
    """
    rows = np.where(np.asarray(live) <= budget_of(d_ff, budget), live, d_ff)
    return np.asarray((d_ff + 2 * rows) * width * itemsize)
