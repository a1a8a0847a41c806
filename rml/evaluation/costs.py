"""How many floating-point operations a program asks for, counted before any compiler sees it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr


def program_flops(function: Callable, *args: Any, platform: str = "tpu") -> float:
    """Counts the matrix products and convolutions of a function, loops by their length.

    Args:
      function: Traceable.
      *args: Arrays or `jax.ShapeDtypeStruct`.
      platform: Platform whose branch counts where they differ.

    Returns:
      Twice the multiplications, over all devices; of a kernel what it says of itself. Of a
      conditional's branches the largest counts; a loop of unknown length counts once. What no
      result is made of counts nothing, such as the gradient of a first layer's input.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _count(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0], platform)


def _count(jaxpr: Jaxpr, platform: str) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, options = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation, equation.params["dimension_numbers"])
        elif name == "ragged_dot_general":
            total += _ragged_dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "pallas_call":  # by the kernel's own count
            stated = equation.params["cost_estimate"]
            total += stated.flops if stated else 0.0
        elif name == "cond":
            total += max(_count(branch, platform) for branch in _branches(options, platform))
        else:
            inner = sum(_count(sub, platform) for sub in _inner(options))
            if name == "scan":
                inner *= options["length"]
            elif name == "shard_map":  # shapes inside are those of one shard
                axes = options.get("newly_manual_axes", options.get("manual_axes", ()))
                inner *= math.prod(options["mesh"].shape[axis] for axis in axes)
            total += inner
    return total


def _branches(options: dict[str, Any], platform: str) -> list[Jaxpr]:
    """The branches of a conditional, or the one for a platform."""
    branches = [branch.jaxpr for branch in options["branches"]]
    named = options.get("branches_platforms")
    if not named:
        return branches
    own = [b for b, names in zip(branches, named, strict=True) if names and platform in names]
    return own or [b for b, names in zip(branches, named, strict=True) if names is None]


def _inner(options: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs that an equation's parameters hold; functions that make such are left out."""
    for value in options.values():
        if hasattr(value, "solve"):  # of a linear solve's programs, the one that runs
            value = (value.solve,)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _dot(equation: Any, numbers: Any) -> float:
    (contracted, _), _ = numbers
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)


def _ragged_dot(equation: Any) -> float:
    """A product of rows with the matrix of their group, or a sum over the rows of each group."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    # Of a dimension that is contracted, each group has a part of its own.
    apart = set(contracted) & set(numbers.lhs_ragged_dimensions)
    groups = equation.invars[2].aval.shape[-1] if apart else 1
    return _dot(equation, numbers.dot_dimension_numbers) / groups


def _convolution(equation: Any) -> float:
    options = equation.params
    numbers = options["dimension_numbers"]
    left, right = (var.aval.shape for var in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    pairs = 1
    for d, (lhs, rhs, o) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        pairs *= window_pairs(
            left[lhs],
            right[rhs],
            out[o],
            stride=options["window_strides"][d],
            low=options["padding"][d][0],
            holes=options["lhs_dilation"][d],
            spread=options["rhs_dilation"][d],
        )
    batch = left[numbers.lhs_spec[0]] // options["batch_group_count"]
    features = right[numbers.rhs_spec[0]] * right[numbers.rhs_spec[1]]
    return 2.0 * batch * features * pairs


def window_pairs(
    size: int, kernel: int, out: int, *, stride: int = 1, low: int = 0, holes: int = 1,
    spread: int = 1,
) -> int:  # fmt: skip
    """Counts pairs of a place of the output and one of the window that meet an input's element.

    XLA writes batched matrix products as convolutions, most of whose window lies in holes or
    padding: only pairs that meet an element are work.

    Args:
      size: Size of the input along this dimension.
      kernel: Size of the window.
      out: Size of the output.
      stride: Stride of the window.
      low: Padding before the input.
      holes: Distance of the input's elements.
      spread: Distance of the window's elements.

    Returns:
      Number of pairs.
    """
    place = range(-low, out * stride - low, stride)
    return sum(
        (start + j * spread) % holes == 0 and 0 <= start + j * spread < size * holes
        for start in place
        for j in range(kernel)
    )


def transformer_flops(
    *, tokens: int, width: int, depth: int, mlp_ratio: int = 4, patch_values: int = 0
) -> float:
    """Counts matrix products of a vision transformer's forward pass in closed form, one image.

    Args:
      tokens: Tokens, a class token included.
      width: Width of a token.
      depth: Blocks.
      mlp_ratio: Width of the MLP over that of a token.
      patch_values: Numbers in a patch; with it, patches are projected (the class token is none).

    Returns:
      Twice the multiplications: per token and block 3w² for queries, keys, values, w² for the
      output, 2rw² for the MLP, and 2tw for the attention's two products.
    """
    block = tokens * (4 + 2 * mlp_ratio) * width**2 + 2 * tokens**2 * width
    return 2.0 * (depth * block + (tokens - 1) * patch_values * width)
