"""What every evaluation function asks of its inputs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rml.ops.shapes import check_indices


def require_finite(name: str, values: Array) -> None:
    """Raises `ValueError` if any value is NaN or infinite; inside `jit` nothing can be checked."""
    if isinstance(values, jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():  # constants of a jitted function are known
        bad = int(_not_finite(values))
    if bad:
        raise ValueError(
            f"{name} must be finite, got {bad} NaN or infinite values in an array of shape "
            f"{values.shape}"
        )


def require_matrix(name: str, values: Array) -> None:
    """Raises `ValueError` unless this is a finite matrix; inside `jit` only axes can be checked."""
    if values.ndim != 2:
        raise ValueError(
            f"{name} must have the shape [n, d], one row per example, got {values.shape}"
        )
    require_finite(name, values)


def require_labels(name: str, labels: Array, *, rows: int, num_classes: int) -> None:
    """Raises `ValueError` unless there is one label in [0, num_classes) for each row."""
    if labels.shape != (rows,):
        raise ValueError(
            f"{name} must hold one label for each of {rows} rows, got shape {labels.shape}"
        )
    check_indices(name, labels, num_classes)


def require_same_width(first: str, x: Array, second: str, y: Array) -> None:
    """Raises `ValueError` unless the rows of two matrices have the same length."""
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{first} and {second} must have the same number of features, got shapes {x.shape} "
            f"and {y.shape}"
        )


@jax.jit  # one program instead of one an operation
def _not_finite(values: Array) -> Array:
    return jnp.sum(~jnp.isfinite(values))
