"""Passes over the matrix of all pairs of rows, one strip of rows at a time.

These are the values and gradients that `rml.ops.streaming` makes differentiable.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from rml.ops.precision import full_precision
from rml.ops.shapes import check_shapes

Mask = Callable[..., Array]
"""`mask(row, col, row_label, col_label)`, broadcastable to [rows, cols], true where a pair counts.

`row` is [t, 1] and `col` [1, m]; labels of one dimension come the same way, a `row_label` array
of two dimensions, [n, m], as its [t, m] rows. The function must not close over traced arrays.
"""

# exp(±x), times or divided by ten million rows and as many columns, stays normal in float32.
_SAFE_EXPONENT = 50.0
_STRIP_ELEMENTS = 2**24  # 64 MiB of float32
_DENSE_ELEMENTS = 2**20


Sums = tuple[Array, Array]
"""Sums of exponentials as (maximum or zero, sum of exp(s - maximum))."""


class Pairs(NamedTuple):
    """What masks see: labels of rows and columns, and the global index of the first of each."""

    row_labels: Shaped[Array, "n ..."] | None = None
    col_labels: Shaped[Array, " m"] | None = None
    row_start: int | Int[Array, ""] = 0
    col_start: int | Int[Array, ""] = 0


def check_labels(pairs: Pairs, rows: int, cols: int) -> None:
    """Raises `ValueError` unless labels are one a row and one a column: strips fill up others."""
    check_shapes(row_labels=(pairs.row_labels, f"{rows} ..."))
    check_shapes(col_labels=(pairs.col_labels, f"{cols}"))


@dataclasses.dataclass(frozen=True)
class Stream:
    """The static description of a pass over all pairs.

    Attributes:
      kind: Row value, `log Σ_j exp(s_ij)` or `Σ_j softplus(s_ij)`.
      axes: Values of rows, of rows and columns, or of rows of a symmetric matrix (q is k).
      mask: Mask of the pairs that count; None for all. Symmetric where the matrix is.
      block: Rows of one strip.
    """

    kind: Literal["logsumexp", "softplus"]
    axes: Literal["rows", "both", "symmetric"]
    mask: Mask | None
    block: int


def strip_rows(n: int, m: int, block_size: int | None) -> int:
    """Chooses the rows of a strip; 0 asks for the dense computation.

    Args:
      n: Number of rows.
      m: Number of columns.
      block_size: The caller's choice: rows per strip, or None for automatic.

    Returns:
      Rows per strip, or 0 where the whole matrix is small enough to be held.

    Raises:
      ValueError: If `block_size` is not positive.
    """
    if block_size is not None:
        if block_size < 1:
            raise ValueError(f"block_size must be positive or None, got {block_size}.")
        return min(block_size, n)
    if n * m <= _DENSE_ELEMENTS:
        return 0
    return min(n, max(128, min(512, _STRIP_ELEMENTS // m)))


# ------------------------------------------------------------------------------------ one strip


def expand(labels: Array | None, axis: int) -> Array | None:
    """Lays labels of one dimension along rows (axis 1) or columns (axis 0) of a strip."""
    return jnp.expand_dims(labels, axis) if labels is not None and labels.ndim == 1 else labels


@full_precision
def logits(
    stream: Stream,
    q: Array,
    k: Array,
    bias: Array,
    rows: Array,
    cols: Array,
    pairs: Pairs,
    valid: tuple[int | None, int | None] = (None, None),
) -> Array:
    """Computes logits of a strip, -inf for pairs that do not count; `rows`, `cols` are local."""
    # The gradient of k is then (q^T g)^T; as g^T q it takes a CPU three times as long.
    s = jnp.matmul(q, lax.optimization_barrier(k.T), preferred_element_type=q.dtype) + bias
    return admit(stream.mask, s, rows, cols, pairs, valid)


def admit(
    mask: Mask | None,
    s: Array,
    rows: Array,
    cols: Array,
    pairs: Pairs,
    valid: tuple[int | None, int | None] = (None, None),
) -> Array:
    """Makes logits of pairs that do not count -inf; `rows` and `cols` are local."""
    if mask is None and valid == (None, None):
        return s
    keep = jnp.ones((1, 1), bool)
    if mask is not None:
        keep = mask(
            rows[:, None] + pairs.row_start,
            cols[None, :] + pairs.col_start,
            expand(pairs.row_labels, 1),
            expand(pairs.col_labels, 0),
        )
    if valid[0] is not None:
        keep &= rows[:, None] < valid[0]
    if valid[1] is not None:
        keep &= cols[None, :] < valid[1]
    return jnp.where(keep, s, -jnp.inf)


def finite(x: Array) -> Array:
    """Replaces -inf, the log-sum-exp of nothing, by zero, which makes its exponentials vanish."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def accumulate(state: Sums, start: int | Array, s: Array, axis: int, bounded: bool) -> Sums:
    """Adds exp(s), summed over `axis`, to the sums at `start` of `state` = (maximum, sum)."""
    size = s.shape[1 - axis]
    top = lax.dynamic_slice(state[0], (start,), (size,))
    total = lax.dynamic_slice(state[1], (start,), (size,))
    if bounded:
        total += jnp.sum(jnp.exp(s), axis)
    else:
        new = jnp.maximum(top, jnp.max(s, axis))
        shift = finite(new)
        total = total * jnp.exp(top - shift)
        total += jnp.sum(jnp.exp(s - jnp.expand_dims(shift, axis)), axis)
        top = new
    return (
        lax.dynamic_update_slice(state[0], top, (start,)),
        lax.dynamic_update_slice(state[1], total, (start,)),
    )


def zeros(shape: int | tuple[int, ...], like: Array) -> Array:
    """Makes zeros that vary over the same mesh axes as `like`, as a loop in `shard_map` needs."""
    return jnp.zeros(shape, like.dtype) + jnp.zeros_like(like[0, 0])


def empty(size: int, like: Array, bounded: bool) -> Sums:
    """Returns the (maximum, sum) of no exponentials."""
    return zeros(size, like) + (0.0 if bounded else -jnp.inf), zeros(size, like)


def is_bounded(q: Array, k: Array, bias: Array) -> Array:
    """Tells whether Cauchy-Schwarz keeps every logit within the safe range of the exponential."""
    square = jnp.max(jnp.sum(q * q, -1)) * jnp.max(jnp.sum(k * k, -1))
    return jnp.sqrt(square) + jnp.abs(bias) <= _SAFE_EXPONENT


def probabilities(
    s: Array, row: Array, col: Array, g_row: Array, g_col: Array, bounded: bool
) -> Array:
    """Computes the derivative of `g_row · row + g_col · col` with respect to the logits."""
    row, col = finite(row), finite(col)
    if bounded:
        scale = (g_row * jnp.exp(-row))[:, None] + (g_col * jnp.exp(-col))[None, :]
        return jnp.exp(s) * scale
    return g_row[:, None] * jnp.exp(s - row[:, None]) + g_col[None, :] * jnp.exp(s - col[None, :])


@full_precision
def product_over_rows(q: Array, p: Array) -> Array:
    """Computes qᵀ p with qᵀ laid out first: folded into the product it costs a tenth more."""
    return jnp.matmul(lax.optimization_barrier(q.T), p)


def pad(x: Array, size: int) -> Array:
    """Appends zero rows up to `size`."""
    if x.shape[0] == size:
        return x
    return jnp.pad(x, [(0, size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def split(x: Array | None, strips: int, rows: int) -> Array | None:
    """Cuts rows into strips, padding the last with zeros."""
    return None if x is None else pad(x, strips * rows).reshape(strips, rows, *x.shape[1:])


def scan(body: Callable, init: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """Runs `lax.scan`, without the loop where it would run once."""
    if length > 1:
        return lax.scan(body, init, xs)
    carry, y = body(init, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], y)


# ----------------------------------------------------------------- values and gradients, passes


class _Strips(NamedTuple):
    """Rows cut into strips, and how to compute the logits of one."""

    number: int
    rows: int
    xs: tuple
    logits: Callable[[tuple], Array]


def _strips(stream: Stream, q: Array, k: Array, bias: Array, pairs: Pairs) -> _Strips:
    n, m = q.shape[0], k.shape[0]
    count = -(-n // stream.block)
    rows = -(-n // count)
    # Padded rows have weight zero, so that only sums over rows must leave them out.
    valid = (n if stream.axes == "both" and count * rows != n else None, None)
    cols = jnp.arange(m)

    def strip_logits(x: tuple) -> Array:
        qi, first, labels = x
        local = pairs._replace(row_labels=labels)
        return logits(stream, qi, k, bias, first + jnp.arange(rows), cols, local, valid)

    xs = (split(q, count, rows), jnp.arange(count) * rows, split(pairs.row_labels, count, rows))
    return _Strips(count, rows, xs, strip_logits)


@full_precision
def pair_values(
    stream: Stream, q: Array, k: Array, bias: Array, pairs: Pairs
) -> tuple[Array, Array]:
    """Computes values of rows, and of columns where asked for (zeros where not)."""
    n, m = q.shape[0], k.shape[0]
    strips = _strips(stream, q, k, bias, pairs)

    def run(bounded: bool) -> tuple[Array, Array]:
        def body(col: Sums, x: tuple) -> tuple[Sums, Array]:
            s = strips.logits(x)
            if stream.kind == "softplus":
                return col, jnp.sum(jax.nn.softplus(s), 1)
            if stream.axes == "both":
                col = accumulate(col, 0, s, 0, bounded)
            top, total = accumulate(empty(strips.rows, q, bounded), 0, s, 1, bounded)
            return col, top + jnp.log(total)

        (top, total), row = scan(body, empty(m, k, bounded), strips.xs, strips.number)
        if stream.axes == "rows":
            return row.reshape(-1)[:n], zeros(m, k)
        return row.reshape(-1)[:n], top + jnp.log(total)

    if stream.kind == "softplus":
        return run(True)
    return lax.cond(is_bounded(q, k, bias), partial(run, True), partial(run, False))


def gradient_of_bias(values: tuple[Array, Array], cotangents: tuple[Array, Array]) -> Array:
    """Computes `Σ g` over rows and columns whose log-sum-exp has a term: a bias moves it by one."""
    pairs = zip(values, cotangents, strict=True)
    row, col = (jnp.sum(jnp.where(value == -jnp.inf, 0, g)) for value, g in pairs)
    return row + col


@full_precision
def pair_gradients(
    stream: Stream,
    q: Array,
    k: Array,
    bias: Array,
    pairs: Pairs,
    values: tuple[Array, Array],
    cotangents: tuple[Array, Array],
) -> tuple[Array, Array, Array]:
    """Computes gradients of `Σ g_row · row + Σ g_col · col` with respect to q, k and bias."""
    n = q.shape[0]
    (row, col), (g_row, g_col) = values, cotangents
    strips = _strips(stream, q, k, bias, pairs)
    cut = partial(split, strips=strips.number, rows=strips.rows)

    def run(bounded: bool) -> tuple[Array, Array, Array]:
        def body(carry: tuple, x: tuple) -> tuple[tuple, Any]:
            dk, db = carry
            x, row, g = x
            s = strips.logits(x)
            if stream.axes == "both":
                weight, p = jnp.ones_like(g), probabilities(s, row, col, g, g_col, bounded)
            elif stream.kind == "softplus":
                weight, p = g, jax.nn.sigmoid(s)
                db += g @ jnp.sum(p, 1)
            else:
                weight, p = g, jnp.exp(s - finite(row)[:, None])
            dk += product_over_rows(x[0] * weight[:, None], p)
            return (dk, db), jnp.matmul(p, k) * weight[:, None]

        init = zeros(k.shape[::-1], k), zeros((), q)
        xs = (strips.xs, cut(row), cut(g_row))
        (dk, db), dq = scan(body, init, xs, strips.number)
        if stream.kind == "logsumexp":
            db = gradient_of_bias(values, cotangents)
        return dq.reshape(-1, q.shape[1])[:n], dk.T, db

    if stream.axes == "both":
        return lax.cond(is_bounded(q, k, bias), partial(run, True), partial(run, False))
    return run(True)


@full_precision
def weighted_values(
    stream: Stream, q: Array, k: Array, bias: Array, weights: Array, pairs: Pairs
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Computes row values and, in the same pass, gradients of their weighted sum."""
    n = q.shape[0]
    strips = _strips(stream, q, k, bias, pairs)
    bounded = is_bounded(q, k, bias)

    def body(carry: tuple, x: tuple) -> tuple[tuple, Any]:
        dk, db = carry
        x, w = x
        s = strips.logits(x)
        if stream.kind == "softplus":
            row, p = jnp.sum(jax.nn.softplus(s), 1), jax.nn.sigmoid(s)
            db += w @ jnp.sum(p, 1)
        else:
            shift = lax.cond(
                bounded, lambda s: jnp.zeros_like(s[:, 0]), lambda s: finite(jnp.max(s, 1)), s
            )
            p = jnp.exp(s - shift[:, None])
            total = jnp.sum(p, 1)
            row = shift + jnp.log(total)
            w = jnp.where(total > 0, w / total, 0.0)
        dk += product_over_rows(x[0] * w[:, None], p)
        return (dk, db), (row, jnp.matmul(p, k) * w[:, None])

    init = zeros(k.shape[::-1], k), zeros((), q)
    xs = (strips.xs, split(weights, strips.number, strips.rows))
    (dk, db), (row, dq) = scan(body, init, xs, strips.number)
    if stream.kind == "logsumexp":
        db = jnp.sum(weights)
    return row.reshape(-1)[:n], (dq.reshape(-1, q.shape[1])[:n], dk.T, db)
