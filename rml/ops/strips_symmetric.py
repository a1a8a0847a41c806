"""Passes over the matrix of pairs of one set of rows with itself, each pair visited once.

Rows are cut into an odd number T of blocks. Block i meets itself and the blocks i + 1, ...,
i + (T - 1) / 2 modulo T, a window that lies in one piece in the rows laid out twice. Every pair of
blocks comes up exactly once; its logits serve the rows and, transposed, the columns.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from rml.ops import strips
from rml.ops.precision import full_precision
from rml.ops.strips import Pairs, Stream


@jax.custom_jvp
@full_precision
def gram(z: Array) -> Array:
    """Computes the products of all pairs of rows; its gradient is one product instead of two."""
    return jnp.matmul(z, z.T)


@gram.defjvp
@full_precision
def _gram_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (tangent,) = primals, tangents
    half = jnp.matmul(tangent, z.T)
    return gram(z), half + half.T


class _Band(NamedTuple):
    number: int
    rows: int
    z: Array
    labels: Array | None
    size: int

    @property
    def window(self) -> int:
        return self.rows * (self.number // 2)


def _band(stream: Stream, z: Array, pairs: Pairs) -> _Band:
    size = z.shape[0]
    number = -(-size // stream.block)
    number += 1 - number % 2
    rows = -(-size // number)
    z = strips.pad(z, number * rows)
    double = None
    if pairs.row_labels is not None:
        labels = strips.pad(pairs.row_labels, number * rows)
        double = jnp.concatenate([labels, labels])
    return _Band(number, rows, jnp.concatenate([z, z]), double, size)


def _tiles(
    stream: Stream, band: _Band, pairs: Pairs, i: Array
) -> Iterator[tuple[bool, Array, Array, Array]]:
    """The diagonal block and its window, as (on the diagonal?, start, columns, logits)."""
    n = band.number * band.rows
    first = i * band.rows
    rows = lax.dynamic_slice_in_dim(band.z, first, band.rows)
    index = first + jnp.arange(band.rows)

    def labels(start: Array, size: int) -> Array | None:
        if band.labels is None:
            return None
        return lax.dynamic_slice_in_dim(band.labels, start, size)

    def tile(diagonal: bool, start: Array, size: int) -> tuple[bool, Array, Array, Array]:
        cols = lax.dynamic_slice_in_dim(band.z, start, size)
        valid = (band.size, band.size) if n != band.size else (None, None)
        local = pairs._replace(row_labels=labels(first, band.rows), col_labels=labels(start, size))
        where = jnp.mod(start + jnp.arange(size), n)
        bias = strips.zeros((), rows)
        s = strips.logits(stream, rows, cols, bias, index, where, local, valid)
        return diagonal, start, cols, s

    yield tile(True, first, band.rows)
    if band.number > 1:
        yield tile(False, first + band.rows, band.window)


def _fold(x: Array, axis: int = 0) -> Array:
    first, second = jnp.split(x, 2, axis)
    return first + second


@full_precision
def symmetric_values(stream: Stream, z: Array, pairs: Pairs) -> Array:
    """Computes values log Σ_j exp(z_i · z_j) of all rows."""
    band = _band(stream, z, pairs)

    def run(bounded: bool) -> Array:
        def body(state: strips.Sums, i: Array) -> tuple[strips.Sums, None]:
            first = i * band.rows
            for diagonal, start, _, s in _tiles(stream, band, pairs, i):
                state = strips.accumulate(state, first, s, 1, bounded)
                if not diagonal:
                    state = strips.accumulate(state, start, s, 0, bounded)
            return state, None

        empty = strips.empty(2 * band.number * band.rows, z, bounded)
        (top, total), _ = strips.scan(body, empty, jnp.arange(band.number), band.number)
        tops, totals = jnp.split(top, 2), jnp.split(total, 2)
        top = jnp.maximum(*tops)
        shift = strips.finite(top)
        total = totals[0] * jnp.exp(tops[0] - shift) + totals[1] * jnp.exp(tops[1] - shift)
        return (shift + jnp.log(total))[: band.size]

    return lax.cond(strips.is_bounded(z, z, jnp.zeros(())), partial(run, True), partial(run, False))


@full_precision
def symmetric_gradients(
    stream: Stream, z: Array, pairs: Pairs, row: Array, cotangent: Array
) -> Array:
    """Computes the gradient of `Σ cotangent · row` with respect to z, which is on both sides."""
    band = _band(stream, z, pairs)
    n = band.number * band.rows

    def double(x: Array) -> Array:
        x = strips.pad(x, n)
        return jnp.concatenate([x, x])

    row, cotangent = double(row), double(cotangent)

    def run(bounded: bool) -> Array:
        def body(grad: Array, i: Array) -> tuple[Array, Array]:
            first = i * band.rows
            here = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=band.rows)
            rows, total = here(band.z), jnp.zeros((), z.dtype)
            for diagonal, start, cols, s in _tiles(stream, band, pairs, i):
                there = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=s.shape[1])
                p = strips.probabilities(
                    s, here(row), there(row), here(cotangent), there(cotangent), bounded
                )
                total += jnp.matmul(p, cols)
                if not diagonal:
                    window = lax.dynamic_slice_in_dim(grad, start, s.shape[1], 1)
                    window += strips.product_over_rows(rows, p)
                    grad = lax.dynamic_update_slice_in_dim(grad, window, start, 1)
            return grad, total

        init = strips.zeros((z.shape[1], 2 * n), z)
        grad, own = strips.scan(body, init, jnp.arange(band.number), band.number)
        return (_fold(grad, 1).T + own.reshape(n, -1))[: band.size]

    return lax.cond(strips.is_bounded(z, z, jnp.zeros(())), partial(run, True), partial(run, False))
