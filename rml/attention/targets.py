"""Permutation-invariant functions of a query and keys on the sphere, to be learned.

A target maps (query, keys) to one number an example; any function of that kind will do, and
`check_permutation_invariant` says whether it is one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Target = Callable[[Array, Array], Array]


def sphere(key: Key[Array, ""], *shape: int) -> Float[Array, "..."]:
    """Vectors drawn uniformly from the unit sphere of the last axis."""
    x = jax.random.normal(key, shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def draw_inputs(
    key: Key[Array, ""], n: int, *, keys: int, d: int
) -> tuple[Float[Array, "n d"], Float[Array, "n keys d"]]:
    """Draws `n` queries, each with its `keys` keys, independent and uniform on the sphere."""
    x = sphere(key, n, keys + 1, d)
    return x[:, 0], x[:, 1:]


def average_power(
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    *,
    direction: Float[Array, " d"],
    degree: int,
) -> Float[Array, " n"]:
    """Mean over keys of <direction, key>^degree; the query plays no part."""
    return jnp.mean((keys @ direction) ** degree, axis=-1)


def correlation_power(
    query: Float[Array, "n d"], keys: Float[Array, "n k d"], *, degree: int
) -> Float[Array, " n"]:
    """Mean over keys of <query, key>^degree."""
    return jnp.mean(_correlations(query, keys) ** degree, axis=-1)


def weighted_correlation(
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    *,
    direction: Float[Array, " d"],
    degree: int,
) -> Float[Array, " n"]:
    """Mean over keys of <query, key>^degree <direction, key>: keys like the query count more."""
    return jnp.mean(_correlations(query, keys) ** degree * (keys @ direction), axis=-1)


def mixed_correlation(
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    *,
    rotation: Float[Array, "d d"],
    weight: float,
    degree: int,
) -> Float[Array, " n"]:
    """Mean over keys of <query, S key>^degree, S between a rotation and the identity.

    S = sqrt(1 - weight²) rotation + weight I: at weight 0 the query is compared in coordinates
    that weights centred at the identity do not favour, at weight 1 it is `correlation_power`.
    The mixture is this repository's.
    """
    turned = keys @ rotation.T
    mixed = jnp.sqrt(1 - weight**2) * turned + weight * keys
    return jnp.mean(_correlations(query, mixed) ** degree, axis=-1)


def check_permutation_invariant(
    target: Target, key: Key[Array, ""], *, keys: int, d: int, tolerance: float = 1e-4
) -> None:
    """Tries a target on two permutations that generate all; call it outside `jit`.

    Raises:
      ValueError: If the shape is not one number an example, or the values depend on the order.
    """
    query, x = draw_inputs(key, 64, keys=keys, d=d)
    value = target(query, x)
    if value.shape != (64,):
        raise ValueError(f"a target returns one number an example, got {value.shape} for 64")
    swapped = x.at[:, :2].set(x[:, 1::-1])
    permuted = jnp.stack([target(query, swapped), target(query, jnp.roll(x, 1, axis=1))])
    change = float(jnp.max(jnp.abs(value - permuted)) / (jnp.std(value) + 1e-12))
    if not change <= tolerance:
        raise ValueError(
            f"the target is not invariant to the order of the keys: values change by {change:.3g} "
            f"standard deviations, expected at most {tolerance}"
        )


def _correlations(query: Array, keys: Array) -> Array:
    return jnp.einsum("nd,nkd->nk", query, keys)
