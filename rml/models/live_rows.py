"""The gated MLP of one token, from the rows of its live channels alone.

A channel whose gate is exactly zero needs neither its column of the matrix that the gate is
multiplied by nor its row of the matrix back. `live_rows` lays both out so that a channel is one row
of each, and a `Llama` that is given them decodes so.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from rml.models.block_hooks import cut

PIECE = 2**18
"""Bytes of a matrix's rows that are read at a time: two such pieces stay in a processor's cache,
and copying one is work for more than one thread."""
SHARE = 0.6
"""Share of live channels beyond which whole matrices are read, which is then faster on a CPU."""


class LiveRows(struct.PyTreeNode):
    """What a decoder's MLPs read where one token is read, the row of a channel contiguous.

    They are arguments rather than parameters, as thresholds are. The matrix to the hidden width
    is a second, turned copy of that in the parameters.

    Attributes:
      up: [layers * f, d], matrices of what gates are multiplied by, one below the other.
      down: [layers * f, d], matrices back to the width, likewise.
      budget: Largest number of live channels of a layer whose rows are read. Where more are live,
        that layer reads whole matrices for this token.
    """

    up: Any
    down: Any
    budget: int = struct.field(pytree_node=False)


def live_rows(module: Any, variables: Any, *, budget: int | None = None) -> LiveRows:
    """Lays out the MLPs of a `Llama` for decoding, see `Llama.__call__`.

    Args:
      module: The decoder, its MLPs without biases.
      variables: Its variables.
      budget: Largest number of live channels whose rows are read; six in ten if not given.

    Raises:
      ValueError: The MLPs have biases, or the budget is below 0.
    """
    if module.mlp_bias:
        raise ValueError("the MLPs have biases, which a feed-forward of live rows does not add")
    params = variables["params"]

    def kernels(name: str) -> jax.Array:
        if "blocks" in params:
            found = params["blocks"][name]["kernel"]
        else:
            found = jnp.stack([params[f"block{i}"][name]["kernel"] for i in range(module.depth)])
        return found if module.dtype is None else found.astype(module.dtype)

    up, down = kernels("mlp_in").swapaxes(1, 2), kernels("mlp_out")
    flat = (-1, module.width)
    return LiveRows(up.reshape(flat), down.reshape(flat), budget_of(module.mlp, budget))


def budget_of(channels: int, budget: int | None) -> int:
    """Returns the budget, at most `channels`, or that which is taken where none is given.

    Raises:
      ValueError: It is below 0.
    """
    if budget is not None and budget < 0:
        raise ValueError(f"budget={budget}, expected at least 0 live channels")
    return int(channels * SHARE) if budget is None else min(budget, channels)


def check_rows(rows: LiveRows | None, depth: int, mlp: int, width: int) -> None:
    """Raises ValueError unless rows are those of so many layers and channels."""
    if rows is not None and not rows.up.shape == rows.down.shape == (depth * mlp, width):
        raise ValueError(
            f"rows must have matrices of shape {(depth * mlp, width)}, got {rows.up.shape} and "
            f"{rows.down.shape}"
        )


def from_live_rows(
    x: Float[Array, " d"],
    gate: Float[Array, " f"],
    rows: LiveRows,
    *,
    layer: int | Int[Array, ""] = 0,
    least: Float[Array, "#f"] | None = None,
) -> Float[Array, " d"]:
    """Computes (gate ⊙ U x) D, reading the rows of U and D where the gate is not zero.

    They are read some at a time, as many as there are. With more live channels than the budget
    both matrices are read whole, which gives the same up to rounding.

    Args:
      x: What the MLP reads.
      gate: Its gate, exactly zero where a channel is left out.
      rows: The matrices U and D of all layers.
      layer: Number of the layer, from 0.
      least: Magnitude of the product of gate and U x below which it is set to zero too.

    Returns:
      The output. It has no gradient in reverse mode: the number of loops depends on the token.
    """
    f, d = gate.shape[0], x.shape[0]
    live, first = gate != 0, layer * f
    count = live.sum()
    size = max(1, min(rows.budget, PIECE // (d * rows.up.dtype.itemsize)))
    threshold = None if least is None else jnp.broadcast_to(least, (f,))

    def of_rows() -> jax.Array:
        room = size * max(1, math.ceil(rows.budget / size))
        (places,) = jnp.nonzero(live, size=room, fill_value=0)
        kept = jnp.where(jnp.arange(room) < count, gate[places], 0)

        def read(i: jax.Array, y: jax.Array) -> jax.Array:
            own, factor = (
                jax.lax.dynamic_slice_in_dim(part, i * size, size) for part in (places, kept)
            )
            hidden = factor * (rows.up[first + own] @ x)
            hidden = cut(hidden, None if threshold is None else threshold[own])
            return y + jnp.matmul(hidden, rows.down[first + own], preferred_element_type=y.dtype)

        kind = jnp.result_type(x, gate, rows.up, rows.down)
        start = jnp.zeros(d, jnp.promote_types(kind, jnp.float32))
        return jax.lax.fori_loop(0, (count + size - 1) // size, read, start).astype(kind)

    def whole() -> jax.Array:
        up, down = (jax.lax.dynamic_slice_in_dim(part, first, f) for part in (rows.up, rows.down))
        return cut(gate * (up @ x), threshold) @ down

    return jax.lax.cond(count <= rows.budget, of_rows, whole)
