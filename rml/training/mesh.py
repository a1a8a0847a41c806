"""Device meshes and partition rules: the same program on one device and on a pod."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rml.errors import UserError, unknown

# Slowest network first: replicas sit on slices, the model axis on neighbouring chips.
MESH_AXES = ("replica", "data", "fsdp", "model")
BATCH_AXES = ("replica", "data", "fsdp")

# Logical axis of an array -> mesh axes that it is split over.
DEFAULT_RULES: tuple[tuple[str, Any], ...] = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("mlp", "model"),
    ("heads", "model"),
    ("classes", "model"),
    ("channels_out", "fsdp"),
)


def make_mesh(
    shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the axes replica, data, fsdp, model.

    Args:
      shape: Devices along each axis; one axis may be -1 and takes what is left. Axes that are
        not named have one device, `data` has what is left.
      devices: Defaults to all devices.

    Returns:
      The mesh. Where TPUs form several slices, `replica` is a multiple of their number and replicas
      lie on different ones: between slices the network is slow.

    Raises:
      UserError: An unknown axis, or a product that is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = dict(shape or {})
    slices = sorted({slice_of(device) for device in devices})
    if len(slices) > 1:
        return _join_slices(shape, devices, slices)
    for axis in shape:
        if axis not in MESH_AXES:
            raise unknown("mesh axis", axis, MESH_AXES)
    sizes = {axis: shape.get(axis, -1 if axis == "data" else 1) for axis in MESH_AXES}
    asked = ", ".join(f"{k}={v}" for k, v in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"mesh {asked}: expected sizes of at least 1, and at most one of -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(f"mesh {asked} does not divide the {len(devices)} devices that exist")
    if free:
        sizes[free[0]] = len(devices) // fixed
    return jax.make_mesh(
        tuple(sizes.values()),
        MESH_AXES,
        devices=devices,
        axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
    )


def slice_of(device: Any) -> int:
    """Index of a TPU's slice, 0 of everything else."""
    tpu = getattr(device, "platform", None) == "tpu"
    return getattr(device, "slice_index", 0) if tpu else 0


def _join_slices(shape: dict[str, int], devices: list[Any], slices: list[int]) -> Mesh:
    replicas = shape.get("replica", 1)
    if replicas % len(slices):
        raise UserError(
            f"mesh.replica is {replicas}, expected a multiple of the {len(slices)} slices: "
            f"set --config.mesh.replica={len(slices)}"
        )
    inner = {**shape, "replica": replicas // len(slices)}
    parts = [make_mesh(inner, [d for d in devices if slice_of(d) == one]) for one in slices]
    joined = np.concatenate([part.devices for part in parts])
    return Mesh(joined, MESH_AXES, axis_types=parts[0].axis_types)


@contextmanager
def use_mesh(mesh: Mesh, rules: Sequence[tuple[str, Any]] = DEFAULT_RULES) -> Iterator[None]:
    """Context in which logical axis names mean axes of this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def check_divisible(tree: PyTree, shardings: PyTree) -> None:
    """Raises `UserError` where a sharding does not divide the array that it splits."""

    def check(path: Any, leaf: Any, sharding: NamedSharding) -> None:
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            raise UserError(
                f"{jax.tree_util.keystr(path)} of shape {tuple(leaf.shape)} cannot be split by "
                f"{sharding.spec} over the mesh {dict(sharding.mesh.shape)}: "
                "a mesh axis must divide the array axis that it splits"
            ) from None

    jax.tree_util.tree_map_with_path(check, tree, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over all data axes of the mesh, along their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_axes() -> tuple[str, ...]:
    """Batch axes of the mesh in use along which the present program still has several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1 and axis not in mesh.manual_axes
    )


def over_batch(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss that takes `axis_name`, over the batch axes of the mesh in use when it is called.

    Left to the partitioner, a pass over all pairs of a batch gathers the whole of it on every
    device; told its axes, the loss exchanges what it needs itself, see `rml.ops.ring`.

    Args:
      loss: `loss(*arrays, axis_name=...) -> scalar`, the arrays sharded along their first axis.

    Returns:
      `loss(*arrays)`; without a mesh, on one device, or inside a `shard_map` over these axes, the
      loss itself.
    """

    def spread(*arrays: Any) -> Any:
        axes = batch_axes()
        if not axes:
            return loss(*arrays, axis_name=None)
        own = partial(loss, axis_name=axes)
        return jax.shard_map(own, in_specs=PartitionSpec(axes), out_specs=PartitionSpec())(*arrays)

    return spread
