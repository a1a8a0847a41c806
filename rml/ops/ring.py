"""Log-sum-exp and softplus sums over all pairs of rows spread over the devices of a mesh.

Inside `jax.shard_map` every device holds its shard of queries and of keys. The keys travel round
the ring; the next shard is sent for before the present one is used, so that the transfer can hide
behind the matrix products. Column sums and the gradient of the keys follow the keys one step
behind, when their transfer hides there too, and are home after a full turn. A device holds two
shards of keys at a time, never all of them.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rml.ops.streaming import promote
from rml.ops.strips import (
    Mask,
    Pairs,
    Stream,
    check_labels,
    gradient_of_bias,
    pair_gradients,
    pair_values,
    strip_rows,
)


def ring_values(
    q: Float[Array, "n d"],
    k: Float[Array, "m d"],
    *,
    axis_name: str,
    columns: bool = False,
    bias: float | Float[Array, ""] = 0.0,
    kind: Literal["logsumexp", "softplus"] = "logsumexp",
    mask: Mask | None = None,
    pairs: Pairs | None = None,
    block_size: int | None = None,
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Computes the values of this device's rows over the columns of all devices.

    Call it inside `jax.shard_map`, each device with its shard of equal size.

    Args:
      q: This device's rows; scale them by the inverse temperature.
      k: This device's columns.
      axis_name: Mesh axis, or axes, over which rows and columns are sharded.
      columns: Whether log Σ_i exp(s_ij) of this device's columns over all rows is wanted too.
      bias: Added to every logit.
      kind: Value of a row, log Σ_j exp(s_ij) or Σ_j softplus(s_ij).
      mask: Mask of the pairs that count, in indices of the whole (device order) and labels.
      pairs: Labels of this device's rows and columns; its offsets are set here.
      block_size: Rows of one strip; automatic by default.

    Returns:
      The values of this device's rows, and of its columns (zeros where not wanted).

    Raises:
      ValueError: If `block_size` is not positive, labels are not one a row and one a column, or
        `columns` is asked of `softplus`.
    """
    if columns and kind == "softplus":
        raise ValueError("column values are of kind 'logsumexp' only, got kind='softplus'.")
    q, k, bias = promote(q, k, bias)
    n, m = q.shape[0], k.shape[0]
    block = strip_rows(n, m, block_size) or n
    here = lax.axis_index(axis_name)
    pairs = pairs or Pairs()
    check_labels(pairs, n, m)
    pairs = pairs._replace(row_start=here * n, col_start=here * m)
    stream = Stream(kind, "both" if columns else "rows", mask, block)
    return _ring(stream, axis_name, q, k, bias, pairs)


def shift(x: Any, axis_name: str | tuple[str, ...]) -> Any:
    """Sends everything to the previous device, so that shard `here + step` arrives at `here`."""
    size = lax.axis_size(axis_name)
    permutation = [(i, (i - 1) % size) for i in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis_name, permutation), x)


def _visiting(pairs: Pairs, labels: Array | None, step: Array, m: int, axis_name: str) -> Pairs:
    source = (lax.axis_index(axis_name) + step) % lax.axis_size(axis_name)
    return pairs._replace(col_labels=labels, col_start=source * m)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(
    stream: Stream, axis_name: str, q: Array, k: Array, bias: Array, pairs: Pairs
) -> tuple[Array, Array]:
    merge = jnp.logaddexp if stream.kind == "logsumexp" else jnp.add
    empty = -jnp.inf if stream.kind == "logsumexp" else 0.0

    def body(carry: tuple, step: Array) -> tuple[tuple, None]:
        row, col, k, labels = carry
        col, *following = shift((col, k, labels), axis_name)
        there = _visiting(pairs, labels, step, k.shape[0], axis_name)
        new_row, new_col = pair_values(stream, q, k, bias, there)
        return (merge(row, new_row), merge(col, new_col), *following), None

    init = (jnp.full_like(q[:, 0], empty), jnp.full_like(k[:, 0], empty), k, pairs.col_labels)
    (row, col, *_), _ = lax.scan(body, init, jnp.arange(lax.axis_size(axis_name)))
    return row, shift(col, axis_name) if stream.axes == "both" else jnp.zeros_like(col)


def _ring_forward(
    stream: Stream, axis_name: str, q: Array, k: Array, bias: Array, pairs: Pairs
) -> tuple[tuple[Array, Array], tuple]:
    values = _ring(stream, axis_name, q, k, bias, pairs)
    return values, (q, k, bias, pairs, values)


def _ring_backward(stream: Stream, axis_name: str, residuals: tuple, cotangents: tuple) -> tuple:
    q, k, bias, pairs, (row, col) = residuals
    g_row, g_col = cotangents

    def body(carry: tuple, step: Array) -> tuple[tuple, None]:
        dq, db, dk, travelling = carry
        dk, following = shift((dk, travelling), axis_name)
        k, col, g_col, labels = travelling
        there = _visiting(pairs, labels, step, k.shape[0], axis_name)
        new = pair_gradients(stream, q, k, bias, there, (row, col), (g_row, g_col))
        return (dq + new[0], db + new[2], dk + new[1], following), None

    travelling = (k, col, g_col, pairs.col_labels)
    init = (jnp.zeros_like(q), 0 * q[0, 0], jnp.zeros_like(k), travelling)
    (dq, db, dk, _), _ = lax.scan(body, init, jnp.arange(lax.axis_size(axis_name)))
    if stream.kind == "logsumexp":  # of which every visit gives the bias all
        db = gradient_of_bias((row, col), (g_row, g_col))
    return dq, shift(dk, axis_name), db, None


_ring.defvjp(_ring_forward, _ring_backward)
