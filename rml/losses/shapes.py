"""Whether arrays have the axes that a loss names, which broadcasting would hide."""

from jaxtyping import Array


def check_shapes(**arrays: tuple[Array | None, str]) -> None:
    """Compares the axes that arrays share.

        check_shapes(images=(images, "n d"), texts=(texts, "n d"))

    Args:
      **arrays: Arrays by name, each with the names of its axes; a number is a length, and "..."
        stands for any axes, the same in all arrays. None is an array that was not given.

    Raises:
      ValueError: If an array has another number of axes, or axes of one name differ in length.
    """
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
            seen = ", ".join(f"{name} {x} as [{', '.join(a)}]" for name, (x, a) in given.items())
            raise ValueError(f"shapes do not fit: {seen}")
