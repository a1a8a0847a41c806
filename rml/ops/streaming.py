"""Log-sum-exp and softplus sums over all pairs of rows, without holding the matrix of pairs.

With logits `s[i, j] = q[i] · k[j]`, a strip of rows against all columns is computed, reduced and
dropped: memory is linear in rows and columns, value and gradients are those of the dense
computation. A temperature belongs to the caller, who scales `q` (or both sides of a symmetric
matrix by its square root), so that its derivative is exact and costs nothing here.

How the work is kept small:

* `weighted_sum` needs one pass: a strip holds complete rows, so that its probabilities, and with
  them all gradients, are known before it is dropped. That is three matrix products, as many as
  the dense computation has. The gradients are made together with the value.
* `row_values` and `row_and_column_values`, whose cotangents are not known in advance, keep the
  log-sum-exp and recompute the strip: four products.
* `symmetric_logsumexp` visits each pair of blocks once, for rows and columns: two products.
* A matrix that is small is held, and a symmetric one has one product for its gradient, not two.
* Where `|q| |k|` shows every logit to lie in the range of float32's exponential (for unit rows,
  temperatures above 1/50), nothing is shifted and one exponential serves rows and columns;
  otherwise the maximum is tracked.

Reverse mode only, once: for second derivatives or forward mode use the dense form.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.ops.precision import full_precision
from rml.ops.strips import (
    Mask,
    Pairs,
    Stream,
    admit,
    check_labels,
    expand,
    finite,
    pair_gradients,
    pair_values,
    scan,
    split,
    strip_rows,
    weighted_values,
)
from rml.ops.strips_symmetric import gram, symmetric_gradients, symmetric_values
from rml.ops.varying import vary_alike

__all__ = [
    "Mask",
    "Pairs",
    "masked_sum",
    "row_and_column_values",
    "row_values",
    "symmetric_logsumexp",
    "weighted_sum",
]

Kind = Literal["logsumexp", "softplus"]
NO_LABELS = Pairs()


def weighted_sum(
    q: Float[Array, "n d"],
    k: Float[Array, "m d"],
    weights: Float[Array, " n"],
    *,
    bias: float | Float[Array, ""] = 0.0,
    kind: Kind = "logsumexp",
    mask: Mask | None = None,
    pairs: Pairs = NO_LABELS,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Computes Σ_i weights_i · value_i, with values log Σ_j exp(s_ij) or Σ_j softplus(s_ij).

    Args:
      q: Rows; scale them by the inverse temperature.
      k: Columns.
      weights: Weight of each row; rows of weight zero may have no pair that counts.
      bias: Added to every logit.
      kind: Value of a row.
      mask: Mask of the pairs that count, see `rml.ops.strips.Mask`; all by default.
      pairs: Labels and index offsets that the mask sees.
      block_size: Rows of one strip; automatic by default, and dense for small matrices.

    Returns:
      The weighted sum, differentiable in q, k, weights and bias.

    Raises:
      ValueError: If there is not one weight a row, labels are not one a row and one a column, or
        `block_size` is not positive.
    """
    q, k, bias = promote(q, k, bias)
    if weights.shape != q.shape[:1]:
        raise ValueError(f"weights has shape {weights.shape}, expected {q.shape[:1]}: one a row.")
    check_labels(pairs, q.shape[0], k.shape[0])
    block = strip_rows(q.shape[0], k.shape[0], block_size)
    q, k, bias, weights = vary_alike(q, k, bias, weights.astype(q.dtype))
    if block:
        return _weighted_sum(Stream(kind, "rows", mask, block), q, k, bias, weights, pairs)
    row = _counted(_dense_values(_dense(mask, q, k, bias, pairs), kind, 1), weights)
    return jnp.sum(weights * row)


def _counted(row: Array, weights: Array) -> Array:
    """Values of rows, 0 of one that has neither weight nor pair: 0 times -inf would be NaN."""
    return jnp.where((weights == 0) & (row == -jnp.inf), 0.0, row)


def row_values(
    q: Float[Array, "n d"],
    k: Float[Array, "m d"],
    *,
    bias: float | Float[Array, ""] = 0.0,
    kind: Kind = "logsumexp",
    mask: Mask | None = None,
    pairs: Pairs = NO_LABELS,
    block_size: int | None = None,
) -> Float[Array, " n"]:
    """Computes every row's value; `weighted_sum` is cheaper where only a sum is wanted.

    Args:
      q: Rows; scale them by the inverse temperature.
      k: Columns.
      bias: Added to every logit.
      kind: Value of a row, log Σ_j exp(s_ij) or Σ_j softplus(s_ij).
      mask: Mask of the pairs that count; a row in which none does has log-sum-exp -inf and gradient
        zero.
      pairs: Labels and index offsets that the mask sees.
      block_size: Rows of one strip; automatic by default, and dense for small matrices.

    Returns:
      The row values.

    Raises:
      ValueError: If labels are not one a row and one a column, or `block_size` is not positive.
    """
    q, k, bias = promote(q, k, bias)
    check_labels(pairs, q.shape[0], k.shape[0])
    block = strip_rows(q.shape[0], k.shape[0], block_size)
    if block:
        return _pair_values(Stream(kind, "rows", mask, block), q, k, bias, pairs)[0]
    return _dense_values(_dense(mask, q, k, bias, pairs), kind, 1)


def row_and_column_values(
    q: Float[Array, "n d"],
    k: Float[Array, "m d"],
    *,
    mask: Mask | None = None,
    pairs: Pairs = NO_LABELS,
    block_size: int | None = None,
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Computes log Σ_j exp(s_ij) of rows and log Σ_i exp(s_ij) of columns from the same logits.

    Args:
      q: Rows; scale them by the inverse temperature.
      k: Columns.
      mask: Mask of the pairs that count.
      pairs: Labels and index offsets that the mask sees.
      block_size: Rows of one strip; automatic by default, and dense for small matrices.

    Returns:
      The values of rows and of columns.

    Raises:
      ValueError: If labels are not one a row and one a column, or `block_size` is not positive.
    """
    q, k, bias = promote(q, k, 0.0)
    check_labels(pairs, q.shape[0], k.shape[0])
    block = strip_rows(q.shape[0], k.shape[0], block_size)
    if block:
        return _pair_values(Stream("logsumexp", "both", mask, block), q, k, bias, pairs)
    s = _dense(mask, q, k, bias, pairs)
    return _dense_values(s, "logsumexp", 1), _dense_values(s, "logsumexp", 0)


def symmetric_logsumexp(
    z: Float[Array, "n d"],
    *,
    mask: Mask | None = None,
    pairs: Pairs = NO_LABELS,
    block_size: int | None = None,
) -> Float[Array, " n"]:
    """Computes log Σ_j exp(z_i · z_j) of every row, each pair of rows visited once.

    Args:
      z: Rows; scale them by the square root of the inverse temperature.
      mask: Mask of the pairs that count, symmetric in (row, row label) and (column, column label).
      pairs: Labels that the mask sees; only those of rows are read.
      block_size: Rows of one block; automatic by default, and dense for small matrices.

    Returns:
      The row values.

    Raises:
      ValueError: If labels are not one a row, or `block_size` is not positive.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    n = z.shape[0]
    check_labels(Pairs(pairs.row_labels), n, n)
    block = strip_rows(n, max(1, n // 2), block_size)
    pairs = Pairs(pairs.row_labels, pairs.row_labels)
    if block:
        return _symmetric(Stream("logsumexp", "symmetric", mask, block), z, pairs)
    index = jnp.arange(n)
    return _dense_values(admit(mask, gram(z), index, index, pairs), "logsumexp", 1)


def masked_sum(
    k: Float[Array, "m d"],
    rows: int,
    *,
    mask: Mask,
    pairs: Pairs = NO_LABELS,
    block_size: int | None = None,
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Computes, for every row, the sum and the number of the columns that its mask admits.

    The mean logit of a row's positives is `q_i · sum_i / number_i`: linear in k, without logits.

    Args:
      k: Columns, all finite: NaN or infinity in one that a mask excludes still reaches every row.
      rows: Number of rows.
      mask: Mask of the pairs that count.
      pairs: Labels and index offsets that the mask sees.
      block_size: Rows of one strip; automatic by default.

    Returns:
      The sums [n, d] and the numbers [n].

    Raises:
      ValueError: If labels are not one a row and one a column, or `block_size` is not positive.
    """
    m = k.shape[0]
    check_labels(pairs, rows, m)
    dtype = jnp.promote_types(k.dtype, jnp.float32)
    ones = jnp.ones((m, 1), dtype)  # counts are exact in float32 up to 2²⁴ columns
    total = _masked_sum(mask, rows, strip_rows(rows, m, block_size) or rows, k, ones, pairs)
    return total[:, :-1], jax.lax.stop_gradient(total[:, -1])


def promote(q: Array, k: Array, bias: float | Array) -> tuple[Array, Array, Array]:
    """Brings operands to one type, float32 or wider, and to the same axes of a mesh."""
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"queries and keys must share their width, got {q.shape} and {k.shape}.")
    dtype = jnp.promote_types(jnp.promote_types(q.dtype, k.dtype), jnp.float32)
    q, k, bias = vary_alike(q.astype(dtype), k.astype(dtype), jnp.asarray(bias, dtype))
    return q, k, bias


# ------------------------------------------------------------------------------------ dense form


@full_precision
def _dense(mask: Mask | None, q: Array, k: Array, bias: Array, pairs: Pairs) -> Array:
    s = jnp.matmul(q, k.T) + bias  # k is not laid out first, which pays for many strips only
    return admit(mask, s, jnp.arange(q.shape[0]), jnp.arange(k.shape[0]), pairs)


def _dense_values(s: Array, kind: Kind, axis: int) -> Array:
    if kind == "softplus":
        return jnp.sum(jax.nn.softplus(s), axis)
    shift = jax.lax.stop_gradient(finite(jnp.max(s, axis)))
    total = jnp.sum(jnp.exp(s - jnp.expand_dims(shift, axis)), axis)
    # Chosen, so that an empty row has slope 0; backwards its slope ends in pairs left out.
    return jnp.where(total == 0, -jnp.inf, shift + jnp.log(total))


# --------------------------------------------------------------------------------- streamed form


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair_values(
    stream: Stream, q: Array, k: Array, bias: Array, pairs: Pairs
) -> tuple[Array, Array]:
    return pair_values(stream, q, k, bias, pairs)


def _pair_values_forward(
    stream: Stream, q: Array, k: Array, bias: Array, pairs: Pairs
) -> tuple[tuple[Array, Array], tuple]:
    values = pair_values(stream, q, k, bias, pairs)
    return values, (q, k, bias, pairs, values)


def _pair_values_backward(stream: Stream, residuals: tuple, cotangents: tuple) -> tuple:
    q, k, bias, pairs, values = residuals
    return (*pair_gradients(stream, q, k, bias, pairs, values, cotangents), None)


_pair_values.defvjp(_pair_values_forward, _pair_values_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(
    stream: Stream, q: Array, k: Array, bias: Array, weights: Array, pairs: Pairs
) -> Array:
    row, _ = pair_values(stream, q, k, bias, pairs)
    return jnp.sum(weights * _counted(row, weights))


def _weighted_sum_forward(
    stream: Stream, q: Array, k: Array, bias: Array, weights: Array, pairs: Pairs
) -> tuple[Array, tuple]:
    row, gradients = weighted_values(stream, q, k, bias, weights, pairs)
    row = _counted(row, weights)
    return jnp.sum(weights * row), (*gradients, row)


def _weighted_sum_backward(stream: Stream, residuals: tuple, cotangent: Array) -> tuple:
    return (*(cotangent * x for x in residuals), None)


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _symmetric(stream: Stream, z: Array, pairs: Pairs) -> Array:
    return symmetric_values(stream, z, pairs)


def _symmetric_forward(stream: Stream, z: Array, pairs: Pairs) -> tuple[Array, tuple]:
    row = symmetric_values(stream, z, pairs)
    return row, (z, pairs, row)


def _symmetric_backward(stream: Stream, residuals: tuple, cotangent: Array) -> tuple:
    z, pairs, row = residuals
    return symmetric_gradients(stream, z, pairs, row, cotangent), None


_symmetric.defvjp(_symmetric_forward, _symmetric_backward)


@full_precision
def _masked_sum(mask: Mask, rows: int, block: int, k: Array, ones: Array, pairs: Pairs) -> Array:
    k = jnp.concatenate([k.astype(ones.dtype), ones], 1)
    count = -(-rows // block)
    size = -(-rows // count)
    col = jnp.arange(k.shape[0])[None] + pairs.col_start

    # Recomputed in the backward pass: kept, the mask would be the matrix of pairs.
    @partial(jax.checkpoint, prevent_cse=False)
    def body(_: None, x: tuple) -> tuple[None, Array]:
        first, labels = x
        row = (first + jnp.arange(size))[:, None] + pairs.row_start
        keep = mask(row, col, expand(labels, 1), expand(pairs.col_labels, 0))
        keep = jnp.broadcast_to(keep, (size, k.shape[0]))
        return None, keep.astype(k.dtype) @ k

    xs = (jnp.arange(count) * size, split(pairs.row_labels, count, size))
    return scan(body, None, xs, count)[1].reshape(count * size, -1)[:rows]
