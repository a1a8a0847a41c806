"""Precision of products of matrices on devices that round float32 unless they are told not to."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import jax

from rml.errors import unknown

Function = TypeVar("Function", bound=Callable)

POLICIES: dict[str, str | None] = {"highest": "highest", "default": None}
"""By the name in a config, the precision of JAX that products have where nothing else is said."""


def full_precision(function: Function) -> Function:
    """Makes every product of a function, and of its gradient, keep all bits of float32.

    GPUs would round factors to TF32 and TPUs to bfloat16, which Gram matrices, kernels, solvers and
    logits at low temperatures do not bear. On CPUs and for half precision it changes nothing.

        @full_precision
        def gram(x):
            return x @ x.T

    The backward function of a `jax.custom_vjp` is traced apart from it and needs its own.
    """
    return jax.default_matmul_precision("highest")(function)


def use_precision(policy: str) -> AbstractContextManager[None]:
    """Opens the context of a run whose config says `precision=policy`.

    Args:
      policy: "highest", or "default" for what is fastest on a device; functions of `full_precision`
        are as they are in either.

    Raises:
      UserError: An unknown policy.
    """
    if policy not in POLICIES:
        raise unknown("precision", policy, POLICIES)
    return jax.default_matmul_precision(POLICIES[policy])
