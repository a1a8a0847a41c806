"""Fisher merging: the diagonal Fisher information of a model, and averages weighted by it."""

import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree

from rml.errors import UserError
from rml.merging.averages import Weights, array_of_weights, check_integers
from rml.ops import trees
from rml.ops.shapes import check_between, check_whole
from rml.ops.trees import is_floating

ALL: Literal["all"] = "all"
SAMPLED: Literal["sampled"] = "sampled"
FLOOR = 1e-6
"""Least Fisher information of an entry in the public code, in squares of nats a parameter."""


def diagonal_fisher(
    log_probs: Callable[[PyTree, Any], Float[Array, " c"]],
    params: PyTree,
    batch: PyTree,
    *,
    classes: Literal["all", "sampled"] | int = ALL,
    key: Key[Array, ""] | None = None,
    block: int = 1,
) -> PyTree:
    """Computes the diagonal of a classifier's Fisher information over unlabelled examples.

    F^(j) = (1/N) Σ_x Σ_y p(y|x) (∂ log p(y|x) / ∂θ^(j))². Squares are taken for each example and
    each class before any sum, so that examples and classes have no cross terms and the result does
    not depend on `block`. The accumulated tree is the only one kept; `block` times the number of
    classes gradients live at once. Call it inside `jax.jit`: outside of it each call compiles.

    Args:
      log_probs: `log_probs(params, x) -> [c]`, normalised log-probabilities of one example.
      params: Parameters θ.
      batch: Arrays with a leading axis of N examples; x is one row of each.
      classes: "all" for the exact expectation; "sampled" for one class a draw from p(y|x), which
        is unbiased; or a number k for the k likeliest classes alone, a lower bound (ours).
      key: Key of the draw, for "sampled".
      block: Examples that are differentiated at once, at least 1.

    Returns:
      Fisher information, a tree like the parameters, in float32 at least.

    Raises:
      UserError: There is no example, arrays of the batch differ in their number, "sampled" has no
        key, `classes` is none of the above, or `block` is below 1.
      ValueError: `classes` or `block` is a number that is not whole.

    Source: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832,
      equation 3; 4,096 examples in the paper's experiments.
    """
    leaves = jax.tree.leaves(batch)
    if not leaves or leaves[0].shape[:1] == (0,):
        raise UserError("batch holds no example, expected at least 1 to estimate the Fisher by")
    counts = {leaf.shape[:1] for leaf in leaves}
    if () in counts or len(counts) > 1:  # rows beyond an array's end would be its last one
        shapes = [list(leaf.shape) for leaf in leaves]
        raise UserError(f"batch holds arrays of {shapes}, expected as many examples in each")
    if classes == SAMPLED and key is None:
        raise UserError("classes is 'sampled' and key is not given, expected a key to draw by")
    if isinstance(classes, str) and classes not in (ALL, SAMPLED):
        raise UserError(f"classes is {classes!r}, expected 'all', 'sampled' or a number")
    check_whole(block=block, classes=1 if isinstance(classes, str) else classes)
    if not isinstance(classes, str) and classes < 1:
        raise UserError(f"classes is {classes}, expected at least 1")
    if block < 1:
        raise UserError(f"block is {block}, expected at least 1 example at once")
    count = leaves[0].shape[0]

    def of_example(x: Any, at: Array) -> PyTree:
        logs, pullback = jax.vjp(lambda own: log_probs(own, x), params)
        (gradients,) = jax.vmap(pullback)(_cotangents(logs, at))
        return jax.tree.map(lambda g: _over_rows(jnp.square(trees.wide(g))), gradients)

    def _cotangents(logs: Array, at: Array) -> Array:
        """The root of each class's probability on a diagonal, of those classes that are summed."""
        number = logs.shape[0]
        if classes == SAMPLED:
            assert key is not None
            drawn = jax.random.categorical(jax.random.fold_in(key, at), logs)
            return jax.nn.one_hot(drawn[None], number, dtype=logs.dtype)
        if isinstance(classes, str) or classes >= number:
            return jnp.diag(jnp.exp(logs / 2))
        largest, places = jax.lax.top_k(logs, classes)
        return jnp.exp(largest / 2)[:, None] * jax.nn.one_hot(places, number, dtype=logs.dtype)

    blocks = -(-count // block)
    rows = jnp.arange(blocks * block).reshape(blocks, block)

    def add(total: PyTree, at: Array) -> tuple[PyTree, None]:
        real = at < count
        own = trees.take_tree(batch, jnp.minimum(at, count - 1))
        each = jax.vmap(of_example)(own, at)
        return jax.tree.map(lambda t, e: t + jnp.tensordot(real.astype(e.dtype), e, 1), total,
                            each), None  # fmt: skip

    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(trees.wide(leaf)), params)
    total, _ = jax.lax.scan(add, zeros, rows)
    return jax.tree.map(lambda leaf: leaf / count, total)


def _over_rows(x: Array) -> Array:
    """Sums over the leading axis by a product.

    Over few rows that are long, XLA's CPU backend takes ten times as long for a reduction, and four
    times for `rml.ops.trees.total`, which would cut gradients of all classes apart again.
    """
    return jnp.tensordot(jnp.ones(x.shape[0], x.dtype), x, 1, precision=jax.lax.Precision.HIGHEST)


def fisher_merge(
    base: PyTree,
    experts: PyTree,
    *,
    fishers: PyTree,
    weights: Weights | None = None,
    floor: ArrayLike = FLOOR,
    favour_first: bool = True,
    normalise: bool = True,
    exclude: str | None = None,
) -> PyTree:
    """Averages parameters entry by entry, weighted by Fisher information.

    θ^(j) = Σ_i λ_i F_i^(j) θ_i^(j) / Σ_i λ_i F_i^(j). With weights equal and Fishers constant it is
    the average. An entry of which no model has information is, ours, averaged by the weights.

    Args:
      base: Parameters of the common base, which give types alone.
      experts: Parameters θ_i of n models, stacked on a leading axis; the first is the target.
      fishers: Fisher information F_i of each, stacked likewise, see `diagonal_fisher`.
      weights: Weights λ of at least 0, of which one is above 0; equal ones if not given.
      floor: Least Fisher information, as max(F, floor), before Fishers are normalised.
      favour_first: Whether the first model's Fisher alone is floored: where all are tiny, its
        parameters stay.
      normalise: Whether λ_i is divided by the Euclidean norm of F_i over all parameters, so that
        sizes of Fishers do not decide.
      exclude: Regular expression of dotted names of leaves that are not merged, such as a head's:
        they are the first model's, and no norm counts them.

    Returns:
      Parameters of one model.

    Raises:
      ValueError: `floor` is below 0.
      UserError: `exclude` is no regular expression, all leaves match it, experts or Fishers are not
        stacked or differ in number, or as `check_weights` or `check_integers`.

    Source: Matena and Raffel, arXiv:2111.09832, equation 4; floor, `favour_first` and `normalise`
      are options of its public code (mmatena/model_merging), on by default there.
    """
    check_between(0, floor=floor)
    count = trees.check_stacked(base, "experts", experts)
    if (own := trees.check_stacked(base, "fishers", fishers)) != count:
        raise UserError(f"fishers are {own}, expected {count}: one for each expert")
    check_integers(base, experts)
    given = jnp.full(count, 1 / count) if weights is None else array_of_weights(weights, count)
    out = _matching(base, exclude)
    scaled = given / _sizes(fishers, out) if normalise else given
    floored = jnp.arange(count) == 0 if favour_first else jnp.ones(count, bool)

    def of_leaf(left: bool, start: Array, own: Array, fisher: Array) -> Array:
        if left:
            return own[0].astype(start.dtype)
        ahead = (count, *(1,) * start.ndim)
        own, fisher = trees.wide(own), trees.wide(fisher)
        least = jnp.where(floored, floor, 0).reshape(ahead)
        share = scaled.reshape(ahead) * jnp.maximum(fisher, least)
        total = trees.total(share)
        known = total > 0
        plain = given.reshape(ahead) / jnp.sum(given)
        share = jnp.where(known, share / jnp.where(known, total, 1), plain)
        return trees.total(share * own).astype(start.dtype)

    return jax.tree.map(of_leaf, out, base, experts, fishers)


def floored_share(fisher: PyTree, *, floor: ArrayLike = FLOOR) -> Float[Array, ""]:
    """Computes the share of entries below a floor: if large, the floor decides and no Fisher.

    Args:
      fisher: Fisher information of one model.
      floor: Least Fisher information, at least 0.

    Raises:
      ValueError: `floor` is below 0.
    """
    check_between(0, floor=floor)
    leaves = jax.tree.leaves(fisher)
    # Counts of rows are added as floats, since int32 would not hold that of a large model.
    rows = [jnp.sum(jnp.atleast_1d(trees.wide(leaf) < floor), axis=-1) for leaf in leaves]
    below = jnp.stack([jnp.sum(own.astype(float)) for own in rows])
    return jnp.sum(below) / float(sum(leaf.size for leaf in leaves))


def _matching(params: PyTree, exclude: str | None) -> PyTree:
    """Whether a leaf has no average, or its dotted name matches a regular expression somewhere."""
    try:
        found = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                not is_floating(leaf)
                or (exclude is not None and bool(re.search(exclude, trees.leaf_name(path))))
            ),
            params,
        )
    except re.error as error:
        raise UserError(f"exclude is {exclude!r}, expected a regular expression: {error}") from None
    if all(jax.tree.leaves(found)):
        raise UserError(f"exclude is {exclude!r}, which matches all leaves; expected one to merge")
    return found


def _sizes(fishers: PyTree, out: PyTree) -> Float[Array, " n"]:
    """Euclidean norms of stacked Fishers, 1 for a zero one; tiny ones do not underflow."""
    flat = [
        trees.wide(leaf).reshape(leaf.shape[0], -1)
        for left, leaf in zip(jax.tree.leaves(out), jax.tree.leaves(fishers), strict=True)
        if not left
    ]
    top = jnp.max(jnp.stack([jnp.max(own, axis=1) for own in flat]), axis=0)
    unit = jnp.where(top > 0, top, 1)
    squares = sum(jnp.sum(jnp.square(own / unit[:, None]), axis=1) for own in flat)
    return jnp.where(top > 0, unit * jnp.sqrt(jnp.where(top > 0, squares, 1)), 1)
