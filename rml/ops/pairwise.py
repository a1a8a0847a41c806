"""Distances between rows of two arrays, and folds over blocks of rows that bound memory."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.ops.similarity import normalize

Carry = TypeVar("Carry")


def _check_widths(x: Array, y: Array) -> None:
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"rows must have the same number of features, got shapes {x.shape} and {y.shape}"
        )


def dot_product(x: Float[Array, "m d"], y: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Computes inner products of all rows of `x` and of `y`, accumulated in float32 or wider.

    Full precision is requested, so accelerators do not round float32 inputs to fewer bits.

    Raises:
      ValueError: If the rows differ in length.
    """
    _check_widths(x, y)
    given = jnp.promote_types(x.dtype, y.dtype)
    # Without a transpose: of bfloat16, a CPU with instructions for it takes half the time.
    return jax.lax.dot_general(
        x.astype(given), y.astype(given), (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(given, jnp.float32),
    )  # fmt: skip


def cosine_similarity(x: Float[Array, "m d"], y: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Computes cosines between all rows of `x` and of `y`; a zero row has cosine 0 with every row.

    Raises:
      ValueError: If the rows differ in length.
    """
    return dot_product(normalize(x), normalize(y))


def finite_mean(
    rows: Float[Array, "n d"], among: Bool[Array, " n"] | None = None
) -> Float[Array, " d"]:
    """Computes the mean of the rows without NaN and infinities; 0 where there are none.

    Args:
      rows: Rows, float32 or wider.
      among: Mask of the rows that are asked for; all by default.
    """
    kept = jnp.isfinite(rows).all(axis=1)
    kept = kept if among is None else kept & among
    # Where all rows are kept this is 1, and the mean is the plain one to the bit.
    raised = (len(rows) / jnp.maximum(jnp.sum(kept), 1)).astype(rows.dtype)
    return raised * jnp.mean(jnp.where(kept[:, None], rows, 0), axis=0)


def squared_euclidean(x: Float[Array, "m d"], y: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Computes squared Euclidean distances between all rows of `x` and of `y`, never negative.

    They are |x|² + |y|² - 2x·y by one matrix product, after moving the mean of the finite rows of
    `y` to the origin so that a common offset costs no digits. The absolute error is that of
    rounding |x|²: rows much closer to each other than to the mean keep few correct digits. A row
    with NaN or infinities spoils its own distances alone.

    Raises:
      ValueError: If the rows differ in length.
    """
    _check_widths(x, y)
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    # The distances do not depend on the origin, so neither does their gradient.
    origin = jax.lax.stop_gradient(finite_mean(y.astype(dtype)))
    x, y = x - origin, y - origin
    squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)
    return jnp.maximum(squares - 2 * dot_product(x, y), 0)


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes the square root; its gradient at 0 is 0, not infinite. Without a root it is NaN."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def safe_norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """Computes Euclidean lengths of rows; the gradient of a row of length 0 is 0, not NaN."""
    zero = jnp.all(x * x == 0, axis=-1, keepdims=True)
    return jnp.where(zero[..., 0], 0, jnp.linalg.norm(jnp.where(zero, 1, x), axis=-1))


def euclidean(x: Float[Array, "m d"], y: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Computes Euclidean distances between all rows of `x` and of `y`; gradient 0 at distance 0.

    Raises:
      ValueError: If the rows differ in length.
    """
    return safe_sqrt(squared_euclidean(x, y))


def fold_blocks(
    step: Callable[
        [Carry, Float[Array, "b d"], Int[Array, " b"], Bool[Array, " b"]],
        Carry,
    ],
    init: Carry,
    rows: Float[Array, "n d"],
    *,
    block: int,
) -> Carry:
    """Folds `step` over consecutive blocks of rows; memory grows with the block, not with n.

    No padding and no copy: when `block` does not divide n, the last block reaches back over rows
    already seen, which `step` must ignore. Intermediates are recomputed under differentiation.

    Args:
      step: Maps (carry, block of rows, their indices, which of them are new) to the next carry.
      init: The first carry.
      rows: All rows.
      block: Rows per step.

    Returns:
      The last carry.

    Raises:
      ValueError: If `block` is less than 1 or there are no rows.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    n = rows.shape[0]
    if n == 0:
        raise ValueError(f"at least one row is needed, got an array of shape {rows.shape}")
    size = min(block, n)

    @jax.checkpoint
    def body(carry: Carry, first: Array) -> tuple[Carry, None]:
        start = jnp.minimum(first, n - size)
        index = start + jnp.arange(size)
        part = jax.lax.dynamic_slice_in_dim(rows, start, size)
        return step(carry, part, index, index >= first), None

    return jax.lax.scan(body, init, jnp.arange(0, n, size))[0]
