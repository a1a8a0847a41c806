"""RegMean: linear layers merged by least squares on the inner products of their inputs."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.scipy.linalg import cho_solve
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from rml.errors import UserError
from rml.merging.averages import Weights, array_of_weights, of_floats
from rml.models.conv import Conv
from rml.models.self_attention import HeadDense
from rml.ops import trees
from rml.ops.precision import full_precision
from rml.ops.psd import cholesky

KERNEL = "kernel"
"""Name of the matrix of a linear layer."""
RIDGE = 1e-5
"""Share of the mean diagonal that is added to the summed matrices, ours: float32 bears it."""
KEPT, GRAM, ROWS = "intermediates", "input_gram", "input_rows"
"""Collection that all scanned blocks pass on, and what is sown there."""


@full_precision
def input_grams(
    module: nn.Module,
    variables: PyTree,
    *inputs: Array,
    mask: Bool[Array, "n b t"] | None = None,
    method: str = "__call__",
) -> dict[str, Float[Array, "..."]]:
    """Computes the mean inner products XᵀX / rows of what every linear layer of a model reads.

    One scan over batches keeps a sum for each layer; blocks that are themselves scanned have theirs
    stacked. Rows are tokens, pixels or examples. Models count equally, however many rows each saw.
    Layers are `nn.Dense`, `HeadDense`, and `Conv` without groups, which is linear in its patches.
    Call it inside `jax.jit`: outside of it each call compiles.

        grams = input_grams(module, {"params": params}, images)  # images [n, b, h, w, c]

    Args:
      module: A module.
      variables: Its variables.
      *inputs: What it is called with, each with leading axes of n batches of b examples.
      mask: Which tokens are text rather than padding; layers with other rows count all of theirs.
      method: Name of the module's method that is called, such as "features".

    Returns:
      By the dotted name of a kernel among the parameters, a matrix [d, d] in float32 at least;
      [layers, d, d] where layers are stacked.

    Raises:
      UserError: There is no example.
      ValueError: The mask is not one of the first input's tokens.

    Source: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models,
      arXiv:2212.09849. Division by the number of rows is its public code's
      (bloomberg/dataless-model-merging), convolutions and `mask` are ours.
    """
    if not inputs or 0 in inputs[0].shape[:2]:
        shapes = [list(x.shape) for x in inputs]
        raise UserError(f"inputs {shapes} hold no example, expected at least 1 in each batch")
    if mask is not None and mask.shape != inputs[0].shape[:3]:
        raise ValueError(f"mask is {mask.shape}, expected one of tokens {inputs[0].shape[:3]}")

    def of_batch(given: Sequence[Array], own: Array | None) -> dict[str, Array]:
        with nn.intercept_methods(functools.partial(_sow_sums, own)):
            _, kept = module.apply(variables, *given, method=method, mutable=[KEPT])
        return {
            ".".join((*path[:-1], str(path[-1]))): leaf
            for path, leaf in flatten_dict(dict(kept).get(KEPT, {})).items()
            if path[-1] in (GRAM, ROWS)
        }

    def add(total: dict[str, Array], given: Any) -> tuple[dict[str, Array], None]:
        return jax.tree.map(jnp.add, total, of_batch(*given)), None

    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (inputs, mask))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_batch, *first))
    total, _ = jax.lax.scan(add, zeros, (inputs, mask))
    return {
        name.removesuffix(GRAM) + KERNEL: gram
        / jnp.maximum(total[name.removesuffix(GRAM) + ROWS], 1)[..., None, None]
        for name, gram in total.items() if name.endswith(GRAM)
    }  # fmt: skip


@of_floats
@full_precision
def regmean(
    base: PyTree,
    experts: PyTree,
    *,
    grams: Mapping[str, Float[Array, "n ..."]],
    alpha: ArrayLike = 0.9,
    weights: Weights | None = None,
    ridge: float = RIDGE,
    averaged: str | None = None,
) -> PyTree:
    """Merges kernels so that layers' outputs on all models' inputs change least; averages the rest.

    W = (Σ_i w_i G_i)⁻¹ Σ_i w_i G_i W_i with weights w_i, entries of G_i beside its diagonal times
    α. Where G_i = X_iᵀX_i / n_i of n_i rows, as `input_grams` gives, W minimises
    Σ_i w_i (α |X_i (W - W_i)|² / n_i + (1 - α) Σ_j (G_i)_jj |(W - W_i)_j|²). The system is solved
    for W less the average of the W_i, so that the ridge draws towards the average, which inputs
    that are always zero get.

    Args:
      base: Parameters of the common base, which give types alone.
      experts: Parameters of n models, stacked on a leading axis.
      grams: Inner products G_i of the inputs of each, stacked likewise, by the dotted names of
        leaves; see `input_grams`.
      alpha: Factor α from 0, where matrices are diagonal, to 1, where little data makes the sum
        nearly singular. Configs of the public code have 0.9 or 0.1.
      weights: Weights of models of at least 0, of which one is above 0; equal ones if not given.
      ridge: Share of the mean diagonal of the sum that is added to it.
      averaged: Regular expression of dotted names of kernels that are averaged.

    Returns:
      Parameters of one model.

    Raises:
      UserError: `alpha` or `ridge` is out of its range; a kernel that is not averaged has no
        matrix; a matrix has the wrong shape, or belongs to no leaf; experts are not stacked; or as
        `check_weights` or `check_integers`.

    Source: Jin et al., arXiv:2212.09849; weights as in its public code, the ridge is ours.
    """
    for name, value in (("alpha", alpha), ("ridge", ridge)):
        if not isinstance(value, jax.core.Tracer) and not 0 <= float(np.asarray(value)) <= 1:
            raise UserError(f"{name} is {value}, expected a number from 0 to 1")
    count = trees.check_stacked(base, "experts", experts)
    share = jnp.full(count, 1 / count)
    if weights is not None:
        given = array_of_weights(weights, count)
        share = given / jnp.sum(given)
    check_grams(base, "grams", grams, averaged=averaged, lead=(count,))
    solve = functools.partial(_solve, share, alpha=alpha, ridge=ridge)

    def of_leaf(path: Sequence[Any], start: Array, own: Array) -> Array:
        own, name = trees.wide(own), trees.leaf_name(path)
        mean = jnp.tensordot(share, own, axes=1)
        if name in grams and not _matches(averaged, name):
            gram, lead = trees.wide(grams[name]), 1 + trees.is_stacked(path)
            moved = (own - mean).reshape(*own.shape[:lead], gram.shape[-1], -1)
            each = jax.vmap(solve, in_axes=1) if lead == 2 else solve
            mean = mean + each(gram, moved).reshape(mean.shape)
        return mean.astype(start.dtype)

    return jax.tree_util.tree_map_with_path(of_leaf, base, experts)


def check_grams(
    base: PyTree, label: str, grams: Mapping[str, Any], *, averaged: str | None = None,
    lead: tuple[int, ...] = (),
) -> None:  # fmt: skip
    """Checks that every kernel has the matrix of its inputs, by names and shapes alone.

    Args:
      base: Parameters of one model.
      label: What messages call the matrices.
      grams: Matrices by dotted names of leaves.
      averaged: Regular expression of names of kernels that need none.
      lead: Leading axes that matrices have beside that of stacked layers.

    Raises:
      UserError: One is missing, belongs to no leaf, or has another shape; or `averaged` is no
        regular expression.
    """
    try:
        re.compile(averaged or "")
    except re.error as error:
        raise UserError(
            f"averaged is {averaged!r}, expected a regular expression: {error}"
        ) from None
    names = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(base):
        name, shape = trees.leaf_name(path), np.shape(leaf)
        names.add(name)
        if name not in grams:
            if name.rpartition(".")[2] == KERNEL and not _matches(averaged, name):
                raise UserError(
                    f"{label} has no matrix for {name!r}, expected one for every kernel that "
                    "`averaged` does not match"
                )
            continue
        at = int(trees.is_stacked(path))
        # Inputs are the first axes of a kernel; how many, the matrix says.
        sides = np.cumprod(shape[at:-1], dtype=int).tolist()
        wanted = [[*lead, *shape[:at], side, side] for side in sides]
        found = list(np.shape(grams[name]))
        if found not in wanted:
            raise UserError(
                f"{label} has {found} for {name!r}, expected "
                f"{' or '.join(map(str, wanted)) or 'none'}: its leaf is {list(shape)}"
            )
    if extra := sorted(set(grams) - names):
        raise UserError(f"{label} has a matrix for {extra[0]!r}, the base has no such leaf")


def stacked_grams(
    base: PyTree, grams: Sequence[Mapping[str, Any]] | Mapping[str, Any], averaged: str | None
) -> Mapping[str, Array]:
    """Checks and stacks matrices of several models, given as a list or stacked."""
    if not isinstance(grams, Mapping):
        if not grams:
            raise UserError("grams is empty, expected the matrices of every expert")
        for i, own in enumerate(grams):
            check_grams(base, f"grams[{i}]", own, averaged=averaged)
        names = set.intersection(*(set(own) for own in grams))
        stacked = trees.stack_trees([{name: own[name] for name in sorted(names)} for own in grams])
    else:
        lead = np.shape(next(iter(grams.values())))[:1] if grams else ()
        check_grams(base, "grams", grams, averaged=averaged, lead=lead)
        stacked = grams
    if not stacked:
        raise UserError(
            "grams has no matrix, expected at least one: without any, models are merged by the "
            "method 'weighted_average'"
        )
    return stacked


def _matches(averaged: str | None, name: str) -> bool:
    return averaged is not None and re.search(averaged, name) is not None


def _solve(
    share: Float[Array, " n"], grams: Float[Array, "n d d"], moved: Float[Array, "n d m"], *,
    alpha: ArrayLike, ridge: float,
) -> Float[Array, "d m"]:  # fmt: skip
    """The solution's difference from the average, of models' differences from it."""
    identity = jnp.eye(grams.shape[-1], dtype=grams.dtype)
    kept = share[:, None, None] * grams * (alpha + (1 - alpha) * identity)
    total = trees.total(kept)
    # Without any input the right side is zero, and every factor will do.
    total = total + jnp.where(jnp.trace(total) > 0, 0, identity)
    factor = cholesky(total, jitter=ridge).factor
    return cho_solve((factor, True), jnp.einsum("nij,njm->im", kept, moved))


def _rows_of_heads(layer: HeadDense, x: Array) -> Array:
    inputs = len(layer.axes) - len(layer.features)
    return x.reshape(*x.shape[: x.ndim - inputs], -1)


def _rows_of_conv(layer: Conv, x: Array) -> Array | None:
    if layer.groups > 1:
        return None
    size, strides = (
        (own, own) if isinstance(own, int) else own for own in (layer.kernel_size, layer.strides)
    )
    padding: Any = layer.padding
    patches = jax.lax.conv_general_dilated_patches(
        x, size, strides, [(padding, padding)] * 2 if isinstance(padding, int) else padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    # Patches have channels first, kernels have them last.
    split = patches.reshape(*patches.shape[:-1], x.shape[-1], -1)
    return split.swapaxes(-1, -2).reshape(patches.shape)


ROWS_OF: dict[type, Callable[[Any, Array], Array | None]] = {
    nn.Dense: lambda _, x: x, HeadDense: _rows_of_heads, Conv: _rows_of_conv,
}  # fmt: skip
"""By kind of layer, its input as rows [..., d] in the order of its kernel's; None if not linear."""


def _sow_sums(mask: Array | None, call: Any, args: Any, options: Any, context: Any) -> Any:
    """An interceptor that sows the inner products of a layer's inputs, and how many they were."""
    layer = context.module
    if type(layer) in ROWS_OF and context.method_name == "__call__":
        x = ROWS_OF[type(layer)](layer, trees.wide(args[0]))
        if x is not None:
            lead = x.shape[:-1]
            where = jnp.ones(lead) if mask is None or mask.shape != lead else mask
            axes = list(range(len(lead)))
            counted = x * where[..., None].astype(x.dtype)
            gram = jnp.tensordot(counted, x, axes=(axes, axes))
            for name, value in ((GRAM, gram), (ROWS, jnp.sum(where, dtype=x.dtype))):
                layer.sow(KEPT, name, value, reduce_fn=jnp.add, init_fn=lambda: 0.0)
    return call(*args, **options)
