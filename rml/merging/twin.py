"""Twin-merging: what experts share in one model, what each has beyond it in few numbers.

Weights of experts that a router gives for every input put the two together again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree

from rml.errors import UserError, unknown
from rml.merging.averages import task_arithmetic
from rml.merging.dare import drop_and_rescale
from rml.merging.ties import trim
from rml.models.conv import Conv, conv2d
from rml.models.self_attention import HeadDense
from rml.ops import trees
from rml.ops.shapes import check_shapes
from rml.ops.trees import LowRank

COMPRESS = ("svd", "magnitude", "drop", "none")
LEFT, RIGHT = "exclusive_left", "exclusive_right"
"""Names that factors have beside a layer's own parameters."""


class Own(NamedTuple):
    """Vectors of a leaf that takes no part in merging, whole, to the base's leaf.

    Attributes:
      vectors: [n, ...].
    """

    vectors: Array


class Twin(NamedTuple):
    """Experts in parts.

    Attributes:
      shared: Parameters θ* of one model.
      exclusive: Vectors v_t of all experts to it: in the place of each leaf an array [n, ...], a
        `LowRank` whose leading axis is n, or an `Own`.
    """

    shared: PyTree
    exclusive: PyTree


def modularise(
    base: PyTree,
    experts: PyTree,
    *,
    shared: PyTree | None = None,
    scale: ArrayLike = 0.3,
    compress: str = "svd",
    fraction: float = 0.1,
    rank: int | None = None,
    key: Key[Array, ""] | None = None,
    excluded: Sequence[str] = (),
    farthest: float = 1.0,
) -> Twin:
    """Takes experts apart into a shared one and compressed exclusive vectors v_t ≈ θ_t - θ*.

    Vectors and biases stay whole. A truncated SVD of rank r needs r (m + n) numbers of
    a matrix [m, n]: at a fraction of 0.1, a fifth of a square one. A mask makes zeros and
    saves nothing until the vectors are stored as sparse ones. Experts that are adapters are
    multiplied out first, as `rml.models.apply_lora` does: with factors A and B merged one by one,
    as in the public code of its generative part, AB has products of different experts.

    Args:
      base: Parameters θ_0 of the common base.
      experts: Parameters of n experts, stacked on a leading axis.
      shared: Parameters θ* of any merged model; task arithmetic if not given.
      scale: Factor of task arithmetic.
      compress: "svd" (the largest singular values of each matrix), "magnitude" (the largest entries
        of each block), "drop" (entries by chance, rescaled, as in `drop_and_rescale`) or "none".
      fraction: Share of singular values or entries that is kept, above 0 and at most 1.
      rank: Number of singular values kept of every matrix by "svd", in the place of `fraction`.
      key: Key of the entries that "drop" keeps.
      excluded: Parts of dotted names of leaves that are not merged, such as ("bias",): the shared
        expert has the base's, and their vectors stay whole, as `Own`.
      farthest: Largest distance of an expert from the base, as a share of the base's norm; see
        `rml.ops.trees.check_values`.

    Raises:
      UserError: `compress` is unknown or has no rank, "drop" lacks a key, `fraction` or `rank` is
        out of its range, a part of `excluded` is in no name, a leaf of the experts or of `shared`
        is missing, is too many, or has another shape, a tree holds NaN or infinite values, or an
        expert is too far from the base. Values of traced trees are not looked at.
      ValueError: `scale` is not finite, and no shared expert is given.

    Source: Lu et al., Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging,
      arXiv:2406.15479.
    """
    if compress not in COMPRESS:
        raise unknown("compress", compress, COMPRESS)
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}, expected a share in (0, 1]")
    if rank is not None and compress != "svd":
        raise UserError(f"rank is {rank} with compress={compress!r}, expected compress='svd'")
    names = [trees.leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(base)]
    for part in excluded:
        if not any(part in name for name in names):
            raise UserError(f"excluded has {part!r}, expected a part of a leaf's name: {names}")
    if compress == "drop" and key is None:
        raise UserError("compress is 'drop' without a key, expected one")
    trees.check_stacked(base, "experts", experts)
    given = {} if shared is None else {"shared": shared}
    trees.check_trees(base, given)
    trees.check_finite(given)
    trees.check_fine_tuned(base, {"experts": experts}, farthest=farthest)
    shared = task_arithmetic(base, experts, scale=scale) if shared is None else shared
    out = jax.tree_util.tree_map_with_path(
        lambda path, _: any(part in trees.leaf_name(path) for part in excluded), base
    )
    shared = jax.tree.map(lambda own, start, other: start if own else other, out, base, shared)
    vectors = trees.task_vectors(shared, experts)
    whole = jax.tree_util.tree_map_with_path(
        lambda path, own, leaf: own or trees.is_vector(path, leaf), out, base
    )
    inside = jax.tree.map(lambda own, leaf: None if own else leaf, whole, vectors)
    compress = compress if jax.tree.leaves(inside) else "none"  # all stay whole
    if compress == "svd":
        share = fraction if rank is None else None
        inside = jax.vmap(functools.partial(trees.low_rank, rank=rank, fraction=share))(inside)
    elif compress == "magnitude":
        largest = functools.partial(trim, keep=fraction)
        of_model = functools.partial(trees.over_blocks, lambda block: largest(block[None])[0])
        inside = jax.vmap(of_model)(inside)
    elif key is not None and compress == "drop":
        inside = drop_and_rescale(inside, key=key, rate=1 - fraction)

    def of_leaf(own: bool, kept: bool, leaf: Array, part: Any) -> Any:
        return Own(leaf) if own else leaf if kept else part

    return Twin(shared, jax.tree.map(of_leaf, out, whole, vectors, inside))


def twin_params(
    shared: PyTree,
    exclusive: PyTree,
    weights: Float[Array, " n"],
    *,
    own: Float[Array, " n"] | None = None,
) -> PyTree:
    """Computes θ = θ* + Σ_t w_t v_t, the parameters for one input.

    Args:
      shared: Parameters θ*.
      exclusive: Vectors, as `modularise` returns them.
      weights: Weight w of each expert.
      own: Weights of leaves that take no part in merging; `weights` if not given. The public code
        gives the true task's expert 1.

    Returns:
      Parameters of the shared expert's types.

    Raises:
      ValueError: Weights are not one for each expert.
    """
    count = jax.tree.leaves(exclusive)[0].shape[0]
    check_shapes(weights=(weights, f"{count}"), own=(own, f"{count}"))

    def of_leaf(leaf: Array, part: Any) -> Array:
        return _moved(leaf, part, weights, weights if own is None else own)

    return jax.tree.map(of_leaf, shared, exclusive)


def twin_apply(
    module: nn.Module,
    shared: PyTree,
    exclusive: PyTree,
    weights: Float[Array, "b n"],
    *inputs: Any,
    own: Float[Array, "b n"] | None = None,
) -> Any:
    """Applies a module to a batch whose every input has parameters θ(x) of its own.

    A Dense layer computes x K* + Σ_t w_t (x U_t) V_t, likewise a convolution and a table of
    embeddings, so that no kernel is made for an input. What else the module has, such as biases,
    scales of norms, positions and vectors that were not factored, is put together for each input:
    that takes the memory of these leaves times the batch.

        weights = route(router.apply(variables, module.apply({"params": shared}, x)))
        y = twin_apply(module, shared, exclusive, weights, x)

    Args:
      module: A module without other collections than parameters.
      shared: Parameters θ*.
      exclusive: Vectors, as `modularise` returns them.
      weights: Weights of experts for each input.
      *inputs: What the module is called with, arrays with a leading axis of the batch.
      own: Weights as for `twin_params`, one row for each input.

    Returns:
      The module's outputs, with the axis of the batch first.

    Raises:
      ValueError: Weights are not one for each input and expert.
    """
    count = jax.tree.leaves(exclusive)[0].shape[0]
    if weights.shape != (inputs[0].shape[0], count):
        raise ValueError(
            f"weights is {weights.shape}, expected ({inputs[0].shape[0]}, {count}): inputs of "
            f"{inputs[0].shape} and experts"
        )
    start, parts = flatten_dict(shared), flatten_dict(exclusive)
    factored = _factored(module, shared, parts, inputs)

    def of_input(mine: Array, other: Array, *given: Any) -> Any:
        params = {}
        for path, leaf in start.items():
            part = parts[path]
            if path in factored:
                params[path] = leaf
                axis = int(trees.STACKED in path)  # that of layers stays first
                for name, factor in zip((LEFT, RIGHT), part, strict=True):
                    params[*path[:-1], name] = jnp.moveaxis(factor, 0, axis)
            else:
                params[path] = _moved(leaf, part, mine, other)
        with nn.intercept_methods(_with_factors(mine)):
            found = module.apply({"params": unflatten_dict(params)}, *(x[None] for x in given))
        return jax.tree.map(lambda y: y[0], found)

    return jax.vmap(of_input)(weights, weights if own is None else own, *inputs)


def _moved(leaf: Array, part: Any, weights: Array, own: Array) -> Array:
    """A leaf of θ* with the weighted vectors of its place added."""
    if isinstance(part, LowRank):
        change = jnp.einsum("t,t...mr,t...rn->...mn", weights, part.left, part.right)
    elif isinstance(part, Own):
        change = jnp.tensordot(own, part.vectors, axes=1)
    else:
        change = jnp.tensordot(weights, part, axes=1)
    return (trees.wide(leaf) + change.reshape(leaf.shape)).astype(leaf.dtype)


def _of_dense(layer: Any, x: Array, left: Array) -> Array:
    return jnp.einsum("...m,tmr->...tr", x, left)


def _of_heads(layer: HeadDense, x: Array, left: Array) -> Array:
    inputs = len(layer.axes) - len(layer.features)
    return _of_dense(layer, x.reshape(*x.shape[: x.ndim - inputs], -1), left)


def _of_conv(layer: Conv, x: Array, left: Array) -> Array:
    size, strides = (
        (own, own) if isinstance(own, int) else own for own in (layer.kernel_size, layer.strides)
    )
    kernel = jnp.moveaxis(left, 0, 1).reshape(*size, x.shape[-1], -1)
    found = conv2d(
        x, kernel, strides=strides, padding=layer.padding, implementation=layer.implementation
    )
    return found.reshape(*found.shape[:-1], left.shape[0], left.shape[-1])


def _of_table(layer: nn.Embed, x: Array, left: Array) -> Array:
    return jnp.moveaxis(left[:, x], 0, -2)


HIDDEN: dict[type, Callable[[Any, Array, Array], Array]] = {
    nn.Dense: _of_dense, HeadDense: _of_heads, Conv: _of_conv, nn.Embed: _of_table,
}  # fmt: skip
"""By kind of layer, what the left factors [n, m, r] make of its input: [..., n, r]."""


def _factored(module: nn.Module, shared: PyTree, parts: dict, inputs: Sequence[Any]) -> set[Any]:
    """Paths of the kernels whose factors are a product each: those of layers that are linear.

    A matrix of another split than that of inputs and features, a grouped convolution, or a table
    that is read in another way as well has no such product.
    """
    fits: dict[tuple[str, ...], bool] = {}

    def watch(call: Any, args: Any, options: Any, context: Any) -> Any:
        layer = context.module
        if type(layer) in HIDDEN and context.method_name != "setup":
            name = "embedding" if isinstance(layer, nn.Embed) else "kernel"
            path = (*layer.path, name)
            part = parts.get(path)
            fits[path] = (
                fits.get(path, True)
                and context.method_name == "__call__"
                and getattr(layer, "groups", 1) == 1
                and isinstance(part, LowRank)
                and part.right.shape[-1] == np.prod(layer.features)
            )
        return call(*args, **options)

    with nn.intercept_methods(watch):
        jax.eval_shape(
            lambda *given: module.apply({"params": shared}, *given), *(x[:1] for x in inputs)
        )
    return {path for path, fit in fits.items() if fit}


def _with_factors(weights: Float[Array, " n"]) -> Callable[..., Any]:
    """An interceptor that adds what factors beside a layer's parameters give."""

    def add(call: Any, args: Any, options: Any, context: Any) -> Any:
        found, layer = call(*args, **options), context.module
        if context.method_name != "__call__" or not layer.has_variable("params", LEFT):
            return found
        kind, x = jax.tree.leaves(found)[0].dtype, args[0]
        left, right = (layer.get_variable("params", name).astype(kind) for name in (LEFT, RIGHT))
        x = x.astype(kind) if jnp.issubdtype(x.dtype, jnp.floating) else x
        hidden = HIDDEN[type(layer)](layer, x, left) * weights[:, None].astype(kind)
        change = jnp.einsum("...tr,trn->...n", hidden, right)
        if isinstance(layer, HeadDense):
            change = change.reshape(*change.shape[:-1], *layer.features)
            if layer.split:
                return tuple(map(jnp.add, found, jnp.unstack(change, axis=-len(layer.features))))
        return found + change

    return add
