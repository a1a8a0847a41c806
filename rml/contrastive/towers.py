"""How an encoder is applied to views in training: each view, or each group, normalised apart."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rml.training.mesh import BATCH_AXES


def apply_in_groups(
    model: nn.Module,
    variables: Any,
    images: Float[Array, "b h w c"],
    *,
    groups: int,
    rngs: Mapping[str, Key[Array, ""]] | None = None,
    **options: Any,
) -> tuple[Float[Array, "b p"], Any]:
    """Applies a model, in training, to groups of a batch that are normalised apart.

    Args:
      model: Called as `model(images, train=True)`.
      variables: Its variables.
      images: The batch; group g is its g-th part.
      groups: Number of groups, which divides the batch. BatchNorm takes the statistics of each.
      rngs: Keys by name, such as "dropout", of which each group has its own.
      **options: Further options of `model.apply`.

    Returns:
      The outputs of the whole batch, and the changed collections, their mean over groups.

    Raises:
      ValueError: If `groups` is below 1 or does not divide the batch.
    """
    if groups < 1 or len(images) % groups:
        raise ValueError(f"groups is {groups}, expected a divisor of the {len(images)} images")
    mutable = [name for name in variables if name != "params"]

    def apply(part: Array, keys: dict[str, Array]) -> Any:
        return model.apply(
            variables, part, train=True, mutable=mutable, rngs=keys or None, **options
        )

    keys = {name: jax.random.split(key, groups) for name, key in (rngs or {}).items()}
    outer, rules = _split_groups(groups)
    with nn.logical_axis_rules(rules):
        out, changed = jax.vmap(apply, spmd_axis_name=outer or None)(
            images.reshape(groups, -1, *images.shape[1:]), keys
        )
    return out.reshape(-1, *out.shape[2:]), jax.tree.map(lambda x: x.mean(axis=0), changed)


def _split_groups(groups: int) -> tuple[tuple[str, ...], list[tuple[str, Any]]]:
    """Finds the axes of the mesh in use that split the groups, and rules for the images of one.

    Left without rules, the partitioner was seen to halve gradients on a mesh that splits parameters
    and model.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    outer: list[str] = []
    for axis in BATCH_AXES:  # in their order, so that no image moves
        size = sizes.get(axis, 1)
        if groups % size:
            break
        groups //= size
        outer.append(axis)
    inner = tuple(axis for axis in BATCH_AXES if axis not in outer)
    rules = [
        (name, inner if name == "batch" else axes) for name, axes in nn.get_logical_axis_rules()
    ]
    return tuple(outer), [(name, axes) for name, axes in rules if axes not in outer]


def apply_to_views(
    model: nn.Module,
    variables: Any,
    views: Float[Array, "n b h w c"],
    *,
    rngs: Mapping[str, Key[Array, ""]] | None = None,
    **options: Any,
) -> tuple[PyTree, Any]:
    """Applies a model, in training, to views of a batch, each normalised by its own statistics.

    Args:
      model: Called as `model(images, train=True)`.
      variables: Its variables.
      views: Views of the images; each device has all views of its images.
      rngs: Keys by name, such as "dropout", of which each view has its own.
      **options: Further options of `model.apply`.

    Returns:
      The outputs of all views, [n, b, p] or a tree of such, and the changed collections, their mean
      over views.
    """
    mutable = [name for name in variables if name != "params"]

    def apply(i: int, view: Array) -> Any:
        keys = {name: jax.random.fold_in(key, i) for name, key in (rngs or {}).items()}
        return model.apply(
            variables, view, train=True, mutable=mutable, rngs=keys or None, **options
        )

    # Not a vmap: it folds views and images into one axis, of which no device has a whole part.
    made = [apply(i, view) for i, view in enumerate(views)]
    outputs, changed = zip(*made, strict=True)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *outputs)
    return stacked, jax.tree.map(lambda *x: jnp.mean(jnp.stack(x), axis=0), *changed)
