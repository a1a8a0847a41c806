"""How values of examples become a loss."""

import jax.numpy as jnp
from jaxtyping import Array, Float

REDUCTIONS = ("mean", "none")


def check_reduction(reduction: str) -> None:
    """Raises a ValueError if there is no such reduction."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}.")


def reduced(values: Float[Array, "*n"], reduction: str) -> Float[Array, "*m"]:
    """Returns the mean of values ("mean"), or the values themselves ("none").

    Raises:
      ValueError: If `reduction` is unknown.
    """
    check_reduction(reduction)
    return jnp.mean(values) if reduction == "mean" else values
