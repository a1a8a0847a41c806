"""Products of matrices that a device may round: found in a program's trace, on any machine."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST
PRODUCTS = ("dot_general", "conv_general_dilated")


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a trace, those of inner functions included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def rounded(function: Callable[..., Any], *args: Any, gradient: bool = True) -> list[str]:
    """Products of float32 that a GPU or TPU would round, in a function and in its gradient.

    Args:
      function: Function of arrays.
      *args: Its arguments; the gradient is by those of floats.
      gradient: Whether the gradient of the sum of all floats that it returns is looked at too.

    Returns:
      The products as they are written in the trace, empty if there are none.
    """
    floats = [i for i, leaf in enumerate(args) if _differentiable(leaf)]

    def total(*args: Any) -> Any:
        leaves = jax.tree.leaves(function(*args))
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in leaves if _is_float(leaf))

    program = jax.value_and_grad(total, argnums=floats) if gradient and floats else function
    return [
        str(equation)
        for equation in equations(jax.make_jaxpr(program)(*args).jaxpr)
        if equation.primitive.name in PRODUCTS
        and all(variable.aval.dtype == jnp.float32 for variable in equation.invars)
        and equation.params["precision"] not in (HIGHEST, (HIGHEST, HIGHEST))
    ]


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _differentiable(argument: Any) -> bool:
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and all(_is_float(leaf) for leaf in leaves)
