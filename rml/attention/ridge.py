"""Ridge and minimum-norm regression on features: primal or dual, streamed, with leave-one-out.

Features of half precision are summed and solved for in float32.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rml.errors import UserError
from rml.ops import full_precision, wide
from rml.ops.shapes import check_above_0, check_between, check_shapes

FeatureMap = Callable[[Any, Any], Array]


def streamed_gram(
    feature_map: FeatureMap,
    blocks: PyTree,
    left: PyTree,
    right: PyTree | None = None,
    *,
    strips: int = 8,
) -> Float[Array, "m n"]:
    """Computes inner products of features that never exist at once, block by block of heads.

    Args:
      feature_map: Maps (one block, inputs) to features [n, ...] scaled as if the block were all.
      blocks: Arrays whose first axis counts blocks: weights, or keys from which the map draws
        them, so that not even the weights of all heads exist at once.
      left: Inputs of the rows.
      right: Inputs of the columns; those of the rows by default, and then only products below
        the diagonal are computed.
      strips: Strips of rows of the symmetric case; of k strips, (k + 1) / 2k is computed.

    Returns:
      Inner products of the features of all blocks, divided by their number.

    Raises:
      ValueError: If the number of blocks or of strips is not above 0.
    """
    count = len(jax.tree.leaves(blocks)[0])
    check_above_0(blocks=count, strips=strips)
    first = jax.tree.map(lambda x: x[0], blocks)
    shape = jax.eval_shape(feature_map, first, left)
    rows = shape.shape[0]
    if right is not None:
        columns = jax.eval_shape(feature_map, first, right).shape[0]
        edges = [(0, rows, columns)]
    else:
        bounds = [rows * i // strips for i in range(strips + 1)]
        edges = [(a, b, b) for a, b in itertools.pairwise(bounds) if b > a]

    def add(totals: list[Array], block: PyTree) -> tuple[list[Array], None]:
        x = _flat(feature_map(block, left))
        y = x if right is None else _flat(feature_map(block, right))
        return [
            total + _product(x[a:b], y[:c].T)
            for total, (a, b, c) in zip(totals, edges, strict=True)
        ], None

    dtype = jnp.promote_types(shape.dtype, jnp.float32)
    start = [jnp.zeros((b - a, c), dtype) for a, b, c in edges]
    totals = jax.lax.scan(add, start, blocks)[0]
    if right is not None:
        return totals[0] / count
    lower = jnp.zeros((rows, rows), dtype)
    for total, (a, _, _) in zip(totals, edges, strict=True):
        lower = jax.lax.dynamic_update_slice(lower, total, (a, 0))
    lower = jnp.tril(lower)
    return (lower + jnp.tril(lower, -1).T) / count


def streamed_weights(
    feature_map: FeatureMap, blocks: PyTree, inputs: PyTree, dual: Float[Array, "n t"]
) -> Float[Array, "blocks f t"]:
    """Computes the weights of the features, block by block, of the dual coefficients `dual`."""
    count = len(jax.tree.leaves(blocks)[0])

    def one(block: PyTree) -> Array:
        return _product(_flat(feature_map(block, inputs)).T, dual) / count

    return jax.lax.map(one, blocks)


@full_precision
def solve_ridge(
    gram: Float[Array, "n n"], targets: Float[Array, "n t"], regularization: float | Array
) -> Float[Array, "n t"]:
    """Solves (gram + regularization I) a = targets by Cholesky.

    Regularization is absolute, not a fraction of n; below rounding of the Gram matrix it does not
    make it positive definite and the answer is NaN: use `solve_min_norm` there.

    Raises:
      ValueError: If shapes do not fit, or a regularization that is not traced is negative.
    """
    check_shapes(gram=(gram, "n n"), targets=(targets, "n t"))
    _check_penalty(regularization)
    gram, targets = wide(gram, targets)
    gram = gram + regularization * jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram, lower=True), targets)


@full_precision
def solve_min_norm(
    gram: Float[Array, "n n"], targets: Float[Array, "n t"], *, rcond: float | None = None
) -> Float[Array, "n t"]:
    """Finds the least-squares solution of gram a = targets of least norm, the limit of no ridge.

    Args:
      gram: Symmetric positive semi-definite matrix, singular or not.
      targets: Right-hand sides.
      rcond: Eigenvalues below this share of the largest count as zero; n times the rounding unit
        by default.

    Raises:
      ValueError: If shapes do not fit, or the share is not from 0 to 1.
    """
    check_shapes(gram=(gram, "n n"), targets=(targets, "n t"))
    check_between(0, 1, rcond=rcond)
    gram, targets = wide(gram, targets)
    values, vectors = jnp.linalg.eigh(gram)
    if rcond is None:
        rcond = gram.shape[0] * float(jnp.finfo(gram.dtype).eps)
    kept = values > rcond * values[-1]
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    return vectors @ (inverse[:, None] * (vectors.T @ targets))


@full_precision
def fit_ridge(
    features: Float[Array, "n f"],
    targets: Float[Array, "n t"],
    *,
    regularization: float | Array | None,
) -> Float[Array, "f t"]:
    """Fits min |features w - targets|² + regularization |w|² by the smaller of the two systems.

    Args:
      features: One row an example.
      targets: One column an output.
      regularization: Weight of the penalty; None interpolates with the least norm.

    Returns:
      Weights of the features.

    Raises:
      ValueError: If shapes do not fit, or a regularization that is not traced is negative.
    """
    check_shapes(features=(features, "n f"), targets=(targets, "n t"))
    n, f = features.shape
    primal = f <= n
    gram = _product(features.T, features) if primal else _product(features, features.T)
    right = _product(features.T, targets) if primal else targets
    if regularization is None:
        solution = solve_min_norm(gram, right)
    else:
        solution = solve_ridge(gram, right, regularization)
    return solution if primal else _product(features.T, solution)


@full_precision
def leave_one_out(
    gram: Float[Array, "n n"], targets: Float[Array, "n t"], regularizations: Float[Array, " r"]
) -> Float[Array, "r t"]:
    """Computes the mean squared error of predicting each example from all others, by penalty.

    In closed form, from one eigendecomposition: with a = (gram + λ)⁻¹ targets, the residual of
    example i is a_i / [(gram + λ)⁻¹]_ii. In float32 it keeps some digits from a penalty of 1e-6 of
    the largest eigenvalue on; below, rounding of the eigenvalues decides.

    Args:
      gram: Inner products of the examples' features.
      targets: One column an output.
      regularizations: Penalties, positive.

    Raises:
      ValueError: If shapes do not fit, or penalties that are not traced are negative.
    """
    check_shapes(gram=(gram, "n n"), targets=(targets, "n t"))
    _check_penalty(regularizations)
    gram, targets = wide(gram, targets)
    values, vectors = jnp.linalg.eigh(gram)
    rotated = vectors.T @ targets

    def error(regularization: Array) -> Array:
        inverse = 1 / (jnp.maximum(values, 0) + regularization)
        dual = vectors @ (inverse[:, None] * rotated)
        diagonal = jnp.square(vectors) @ inverse
        return jnp.mean(jnp.square(dual / diagonal[:, None]), axis=0)

    return jax.lax.map(error, regularizations)


@full_precision
def leave_one_out_primal(
    features: Float[Array, "n f"], targets: Float[Array, "n t"], regularizations: Float[Array, " r"]
) -> Float[Array, "r t"]:
    """Computes `leave_one_out` from features, where they are fewer than the examples.

    The residual of example i is its own over 1 - h_i, with h_i its leverage. Where that rounds to 0
    it is its target, as is that of an example alone in its direction. In float32 this happens at a
    penalty of 1e-7 of the squares of such an example; up to 1e-6 few digits are left.

    Raises:
      ValueError: If shapes do not fit, or penalties that are not traced are negative.
    """
    check_shapes(features=(features, "n f"), targets=(targets, "n t"))
    _check_penalty(regularizations)
    features, targets = wide(features, targets)
    values, vectors = jnp.linalg.eigh(_product(features.T, features))
    rotated = _product(features, vectors)
    right = _product(rotated.T, targets)

    def error(regularization: Array) -> Array:
        inverse = 1 / (jnp.maximum(values, 0) + regularization)
        residual = targets - rotated @ (inverse[:, None] * right)
        left = (1 - jnp.square(rotated) @ inverse)[:, None]
        alone = left <= 0
        residual = jnp.where(alone, targets, residual / jnp.where(alone, 1, left))
        return jnp.mean(jnp.square(residual), axis=0)

    return jax.lax.map(error, regularizations)


def solve_prefixes(
    gram: Float[Array, "n n"],
    targets: Float[Array, "n t"],
    regularization: float | Array,
    sizes: Sequence[int],
    *,
    block: int = 1024,
) -> list[tuple[Float[Array, "m t"], Float[Array, " t"]]]:
    """Solves ridge regression on the first m examples for each m of `sizes`, factorising once.

    The Cholesky factor of a leading block, and its inverse, are leading blocks of the whole's. Of
    the inverse only norms of columns are needed, so it exists `block` columns at a time. Where
    `gram` takes much of the memory call it outside `jit`, which copies more of the factor at once.

    Args:
      gram: Inner products of the examples' features; only the part below the diagonal is read.
      targets: One column an output.
      regularization: Penalty, as in `solve_ridge`.
      sizes: Numbers of examples, at most n.
      block: Columns of the inverse at a time.

    Returns:
      For each size the dual coefficients, as `solve_ridge`, and the mean squared leave-one-out
      error, as `leave_one_out`.

    Raises:
      ValueError: If shapes do not fit, a regularization that is not traced is negative, there is
        no size, one is not from 1 to n, or the block is not above 0.
    """
    check_shapes(gram=(gram, "n n"), targets=(targets, "n t"))
    if not sizes or not 1 <= min(sizes) <= max(sizes) <= len(gram):
        raise UserError(f"sizes are {sizes}, expected one or more from 1 to {len(gram)}")
    check_above_0(block=block)
    _check_penalty(regularization)
    gram, targets = wide(gram, targets)
    factor = _shifted_factor(gram, regularization)
    edges = sorted({*range(0, max(sizes), block), *sizes})
    bounds = list(itertools.pairwise(edges))  # every size ends a block
    inverses = [
        jax.scipy.linalg.solve_triangular(
            factor[a:b, a:b], jnp.eye(b - a, dtype=gram.dtype), lower=True
        )
        for a, b in bounds
    ]
    whitened = targets[:0]
    squares: list[list[Array]] = [[] for _ in sizes]
    for first, (start, stop) in enumerate(bounds):
        right = targets[start:stop] - _product(factor[start:stop, :start], whitened)
        whitened = jnp.concatenate([whitened, _product(inverses[first], right)])
        # Rows of the inverse of a lower triangle above these columns' own are zero.
        columns = inverses[first]
        for (a, b), inverse in zip(bounds[first + 1 :], inverses[first + 1 :], strict=True):
            known = _product(factor[a:b, start:a], columns)
            columns = jnp.concatenate([columns, -_product(inverse, known)])
        for own, m in zip(squares, sizes, strict=True):
            if start < m:
                own.append(jnp.sum(columns[: m - start] ** 2, axis=0))

    def solve(m: int, diagonal: Array) -> tuple[Array, Array]:
        dual = targets[:0]
        for (a, b), inverse in zip(reversed(bounds), reversed(inverses), strict=True):
            if b <= m:
                right = whitened[a:b] - _product(factor[b:m, a:b].T, dual)
                dual = jnp.concatenate([_product(inverse.T, right), dual])
        return dual, jnp.mean(jnp.square(dual / diagonal[:, None]), axis=0)

    return [solve(m, jnp.concatenate(own)) for m, own in zip(sizes, squares, strict=True)]


def _check_penalty(regularization: Any) -> None:
    if isinstance(regularization, jax.core.Tracer):
        return
    if not (np.asarray(regularization) >= 0).all():
        raise UserError(f"regularization is {regularization}, expected at least 0")


@jax.jit
def _shifted_factor(gram: Array, regularization: Array) -> Array:
    """Cholesky factor of gram + regularization I, from the part below the diagonal."""
    shifted = gram.at[jnp.diag_indices(gram.shape[0])].add(regularization)
    return jax.lax.linalg.cholesky(shifted, symmetrize_input=False)


def _flat(features: Array) -> Array:
    return features.reshape(features.shape[0], -1)


def _product(a: Array, b: Array) -> Array:
    dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype)
