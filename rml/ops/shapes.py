"""Whether arrays and numbers are what a function names, which its arithmetic would hide."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def check_shapes(**arrays: tuple[Array | np.ndarray | None, str]) -> None:
    """Compares the axes that arrays share.

        check_shapes(images=(images, "n d"), texts=(texts, "n d"))

    Args:
      **arrays: Arrays by name, each with the names of its axes; a number is a length, and "..."
        stands for any axes, the same in all arrays. None is an array that was not given. Axes
        called "n" and "..." are of examples, those called "d" and "k" of features and classes, of
        which there must be one.

    Raises:
      ValueError: If an array has another number of axes, axes of one name differ in length, or
        there is no example, feature or class.
      TypeError: If something is no array, such as a list.
    """
    for name, (x, _) in arrays.items():
        if x is not None and not hasattr(x, "shape"):
            raise TypeError(f"{name} is a {type(x).__name__}, expected an array")
    given = {name: (x.shape, axes.split()) for name, (x, axes) in arrays.items() if x is not None}
    lengths: dict[str, int | tuple[int, ...]] = {}
    for shape, axes in given.values():
        found: list[int | tuple[int, ...]]
        count = len(axes)
        if "..." in axes:
            first, last = axes.index("..."), len(shape) - (len(axes) - axes.index("...") - 1)
            found = [*shape[:first], shape[first:last], *shape[last:]]
            count = len(shape) if len(shape) >= len(axes) - 1 else -1
        else:
            found = [*shape]
        fits = len(shape) == count and all(
            lengths.setdefault(axis, int(axis) if axis.isdigit() else found[i]) == found[i]
            for i, axis in enumerate(axes)
        )
        if not fits:
            raise ValueError(f"shapes do not fit: {_seen(given)}")
    for what, named in (("example", ("n", "...")), ("feature or class", ("d", "k"))):
        if not all(np.prod(lengths.get(axis, 1)) for axis in named):
            raise ValueError(f"expected at least one {what}, got {_seen(given)}")


def check_indices(name: str, indices: Array, count: int) -> None:
    """Raises `ValueError` unless all lie in [0, count); inside `jit` nothing can be checked."""
    if isinstance(indices, jax.core.Tracer) or not indices.size:
        return
    with jax.ensure_compile_time_eval():  # constants of a jitted function are known
        low, high = map(int, _range(indices))
    if low < 0 or high >= count:
        raise ValueError(
            f"{name} must lie between 0 and {count - 1}, got values from {low} to {high}"
        )


def check_above_0(**numbers: object) -> None:
    """Raises `ValueError` unless numbers, by name, are above 0; arrays are not looked at."""
    for name, number in numbers.items():
        if isinstance(number, int | float | np.number) and not number > 0:
            raise ValueError(f"{name} is {number}, expected a number above 0")


def check_between(low: int | float, high: int | float = math.inf, /, **numbers: object) -> None:
    """Raises `ValueError` unless numbers, by name, lie in [low, high]; arrays are not looked at."""
    for name, number in numbers.items():
        if isinstance(number, int | float | np.number) and not low <= number <= high:
            expected = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise ValueError(f"{name} is {number}, expected a number {expected}")


def check_finite(**numbers: object) -> None:
    """Raises `ValueError` unless numbers, by name, are finite; arrays are not looked at."""
    for name, number in numbers.items():
        if isinstance(number, int | float | np.number) and not np.isfinite(number):
            raise ValueError(f"{name} is {number}, expected a finite number")


def check_whole(**numbers: object) -> None:
    """Raises `ValueError` unless numbers, by name, are whole ones, of Python or NumPy."""
    for name, number in numbers.items():
        if not isinstance(number, int | np.integer):
            raise ValueError(f"{name} is {number}, expected a whole number")


def check_count(low: int, /, **numbers: object) -> None:
    """Raises `ValueError` unless numbers, by name, are whole ones of at least `low`."""
    check_whole(**numbers)
    check_between(low, **numbers)


def _seen(given: dict[str, tuple[tuple[int, ...], list[str]]]) -> str:
    return ", ".join(f"{name} {x} as [{', '.join(axes)}]" for name, (x, axes) in given.items())


@jax.jit  # one program instead of one an operation
def _range(values: Array) -> tuple[Array, Array]:
    return jnp.min(values), jnp.max(values)
