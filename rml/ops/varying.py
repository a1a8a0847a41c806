"""Over which axes of a mesh an array differs between devices, inside `jax.shard_map`."""

import jax
from jaxtyping import Array


def varying(array: Array) -> set[str]:
    """Finds the mesh axes over which an array may differ; none outside of `jax.shard_map`."""
    kind = jax.typeof(array)
    older = getattr(kind, "vma", ())  # JAX before 0.10
    return {*getattr(getattr(kind, "manual_axis_type", None), "varying", older)}


def varies_over(array: Array, axis_name: str | tuple[str, ...]) -> bool:
    """Returns whether an array may differ between devices along any of these axes."""
    names = {axis_name} if isinstance(axis_name, str) else {*axis_name}
    return not names.isdisjoint(varying(array))


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """Has arrays differ over the same mesh axes, those of any of them.

    A rule of differentiation and the carry of a loop keep the axes of their operands, which JAX
    does not bring together itself. The gradient of an array that was the same on all devices is
    summed over them once, here.

    Args:
      arrays: Arrays of one computation.

    Returns:
      The same numbers.
    """
    every = set[str]().union(*map(varying, arrays))
    missing = [tuple(sorted(every - varying(x))) for x in arrays]
    return tuple(
        jax.lax.pcast(x, axes, to="varying") if axes else x
        for x, axes in zip(arrays, missing, strict=True)
    )
