"""Device meshes and partition rules: the same program on one device and on a pod."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rml.errors import UserError, unknown

# Slowest network first: replicas sit on slices, the model axis on neighbouring chips.
MESH_AXES = ("replica", "data", "fsdp", "model")
BATCH_AXES = ("replica", "data", "fsdp")

UNSPLIT = ("batch", "layers")
"""Logical axes that are split by their own rules alone."""
Rules = Sequence[tuple[str, Any]]

DEFAULT_RULES: Rules = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("mlp", "model"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("vocab", "model"),
    ("classes", "model"),
    ("queue", "model"),
    ("features", "fsdp"),
    # Of convolutions one mesh axis splits the kernel: XLA gathers it where it is used, and over
    # two of them it would rather exchange images.
    ("channels_out", "fsdp"),
    ("channels_out", "model"),
    ("channels_in", None),
    ("kv", None),
    ("length", None),
    ("layers", None),
)
"""Logical axis of an array, and the mesh axes that it is split over, or None where it stays whole.

Of several rules for an axis the first holds whose mesh axes are free and divide it. A mesh axis
that divides no axis of its rules goes to the last one of the array that it does divide.
"""


def make_mesh(
    shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Makes a mesh with the axes replica, data, fsdp, model.

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
    """Returns the index of a TPU's slice, 0 of everything else."""
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
def use_mesh(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Iterator[None]:
    """Opens a context in which logical axis names of activations mean axes of this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(of_activations(rules)):
        yield


@contextmanager
def split_tokens() -> Iterator[None]:
    """Opens a context in which batch axes split the tokens of activations, and rows stay whole.

    It is for texts so long that one is spread over all devices; inside `use_mesh`. What attends
    must exchange keys and values itself, see `rml.attention.attend_over_mesh`.
    """
    others = [(name, axes) for name, axes in nn.get_logical_axis_rules()
              if name not in ("batch", "length")]  # fmt: skip
    with nn.logical_axis_rules([("batch", None), ("length", BATCH_AXES), *others]):
        yield


def of_activations(rules: Rules) -> Rules:
    """Selects the rules of activations: rows take the batch axes, what shares those stays whole."""
    stored = {name for name, axes in rules if not set(BATCH_AXES).isdisjoint(_tuple(axes))}
    return [(name, axes) for name, axes in rules if name == "batch" or name not in stored]


def _tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def place(
    boxed: PyTree, mesh: Mesh | AbstractMesh, rules: Rules = DEFAULT_RULES
) -> tuple[PyTree, Rules]:
    """Chooses where arrays lie, by the logical names of their axes.

    Args:
      boxed: Shapes of arrays, boxed by logical axes where they have names.
      mesh: Devices.
      rules: Pairs of logical axis and mesh axes.

    Returns:
      A `NamedSharding` for each array, and the rules without those that divide no array: what is
      computed with these arrays is not split by them either.

    Raises:
      UserError: An axis has a name without a rule.
    """
    specs, shapes = nn.get_partition_spec(boxed), nn.meta.unbox(boxed)
    tried: dict[tuple[str, Any], bool] = {}
    alike: dict[Any, NamedSharding] = {}  # blocks and moments have the shapes of others

    def one(path: Any, leaf: Any, names: PartitionSpec) -> NamedSharding:
        if (leaf.shape, names) in alike:
            return alike[leaf.shape, names]
        for name in names:
            if name is not None and all(name != known for known, _ in rules):
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                known = sorted({name for name, _ in rules})
                raise unknown(f"logical axis of {where}", name, known)
        found = NamedSharding(mesh, _spec(leaf.shape, names, mesh, rules, tried))
        return alike.setdefault((leaf.shape, names), found)

    shardings = jax.tree_util.tree_map_with_path(one, shapes, specs)
    return shardings, [rule for rule in rules if tried.get((rule[0], rule[1]), True)]


def _spec(
    shape: Sequence[int],
    names: PartitionSpec,
    mesh: Mesh | AbstractMesh,
    rules: Rules,
    tried: dict[tuple[str, Any], bool],
) -> PartitionSpec:
    """The mesh axes of one array; `tried` learns which rules divide any."""
    found: list[tuple[str, ...]] = [()] * len(names)
    used: set[str] = set()
    wanted: dict[str, int] = {}
    for name, axes in rules:
        split = _tuple(axes)
        several = math.prod(mesh.shape[axis] for axis in split)
        if name not in names or several == 1:
            continue
        at = list(names).index(name)
        wanted |= dict.fromkeys(split, at)
        if found[at] or used & set(split):
            continue
        divides = shape[at] % several == 0
        tried[name, axes] = tried.get((name, axes), False) or divides
        if divides:
            found[at] = split
            used |= set(split)
    for axis in [axis for axis, at in wanted.items() if axis not in used and not found[at]]:
        for at in reversed(range(len(names))):
            parts = math.prod(mesh.shape[own] for own in (axis, *found[at]))
            if names[at] not in (None, *UNSPLIT) and shape[at] % parts == 0:
                found[at] = (axis, *found[at])
                break
    return PartitionSpec(*(axes[0] if len(axes) == 1 else axes or None for axes in found))


def device_bytes(arrays: PyTree, shardings: PyTree) -> int:
    """Counts the bytes of arrays that the device with the most of them holds."""
    each = jax.tree.map(
        lambda leaf, own: math.prod(own.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        arrays,
        shardings,
    )
    return sum(jax.tree.leaves(each))


def check_divisible(tree: PyTree, shardings: PyTree) -> None:
    """Raises `UserError` where a sharding does not divide the array that it splits."""

    def check(path: Any, leaf: Any, sharding: NamedSharding) -> None:
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            devices = math.prod(sharding.mesh.shape[axis] for axis in BATCH_AXES)
            of_batch = sharding.spec == PartitionSpec(BATCH_AXES)
            shared = f", and {devices} devices share the rows of a batch" if of_batch else ""
            raise UserError(
                f"{jax.tree_util.keystr(path)} of shape {tuple(leaf.shape)} cannot be split by "
                f"{sharding.spec} over the mesh {dict(sharding.mesh.shape)}: "
                f"a mesh axis must divide the array axis that it splits{shared}"
            ) from None

    jax.tree_util.tree_map_with_path(check, tree, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Makes the sharding of batches over all data axes of the mesh, along their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_axes() -> tuple[str, ...]:
    """Lists batch axes of the mesh in use along which this program still has several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1 and axis not in mesh.manual_axes
    )


def over_batch(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Spreads a loss that takes `axis_name` over the batch axes of the mesh in use when called.

    Left to the partitioner, a pass over all pairs of a batch gathers the whole of it on every
    device; told its axes, the loss exchanges what it needs itself, see `rml.ops.ring`. Other axes
    of the mesh stay with the partitioner: class vectors that the loss closes over, whole for every
    row, are not gathered over `model`.

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
        by_rows = partial(jax.shard_map, axis_names=set(axes), in_specs=PartitionSpec(axes))
        return by_rows(partial(loss, axis_name=axes), out_specs=PartitionSpec())(*arrays)

    return spread
