"""Work on rows that the devices of a mesh share, those of other processes included."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

WHOLE = PartitionSpec()


def over_devices(
    function: Callable[..., Array],
    whole: tuple[PyTree, ...],
    rows: Array,
    mesh: Mesh,
    **options: Any,
) -> Array:
    """Applies a function of rows to a part of them on each device of a mesh.

    Args:
      function: `function(*whole, rows, **options) -> [n, ...]`, each row for itself.
      whole: Arrays that each device has whole.
      rows: The rows [n, d], the same in every process.
      mesh: The devices.
      **options: Hashable options; each combination is compiled once.

    Returns:
      The results of all rows, on this process's first device.
    """
    spread = _spread(function, mesh, len(whole), tuple(sorted(options.items())))
    return on_this(spread(*on_each(whole, mesh), in_parts(rows, mesh)))[: rows.shape[0]]


@lru_cache(maxsize=32)
def _spread(
    function: Callable[..., Array], mesh: Mesh, whole: int, options: tuple[tuple[str, Any], ...]
) -> Callable[..., Array]:
    rows = PartitionSpec(mesh.axis_names)
    mapped = jax.shard_map(
        partial(function, **dict(options)), mesh=mesh, in_specs=(WHOLE,) * whole + (rows,),
        out_specs=rows, check_vma=False,
    )  # fmt: skip
    return jax.jit(mapped, out_shardings=NamedSharding(mesh, WHOLE))


def in_parts(rows: Array, mesh: Mesh) -> Array:
    """Shares rows out among all devices of a mesh, filled up with zeros to equally many."""
    filled = jnp.pad(rows, [(0, -rows.shape[0] % mesh.size)] + [(0, 0)] * (rows.ndim - 1))
    return _put(filled, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def on_each(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays, or numbers, whole on every device of a mesh."""
    place = NamedSharding(mesh, WHOLE)
    return jax.tree.map(lambda leaf: _put(jnp.asarray(leaf), place), arrays)


def _put(array: Array, place: NamedSharding) -> Array:
    """An array that every process has, on devices of all of them."""
    if place.is_fully_addressable:
        return jax.device_put(array, place)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def on_this(arrays: PyTree) -> PyTree:
    """Takes arrays that are whole on every device from this process's first one.

    They are bound to no device, so that they fit to others of the caller's, wherever those are.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf.addressable_data(0))), arrays)
