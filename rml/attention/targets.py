"""Permutation-invariant functions of a query and keys on the sphere, to be learned.

A target maps (query, keys) to one number an example; any function of that kind will do, and
`check_permutation_invariant` says whether it is one.
"""

import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rml.errors import UserError, unknown
from rml.ops.shapes import check_above_0, check_between

Target = Callable[[Array, Array], Array]


def sphere(key: Key[Array, ""], *shape: int) -> Float[Array, "..."]:
    """Draws vectors uniformly from the unit sphere of the last axis."""
    x = jax.random.normal(key, shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def draw_inputs(
    key: Key[Array, ""], n: int, *, keys: int, d: int
) -> tuple[Float[Array, "n d"], Float[Array, "n keys d"]]:
    """Draws `n` queries, each with its `keys` keys, independent and uniform on the sphere.

    Raises:
      ValueError: If a number is not above 0.
    """
    check_above_0(n=n, keys=keys, d=d)
    x = sphere(key, n, keys + 1, d)
    return x[:, 0], x[:, 1:]


def _power(x: Array, degree: int) -> Array:
    check_between(0, degree=degree)
    return x**degree


def average_power(
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    *,
    direction: Float[Array, " d"],
    degree: int,
) -> Float[Array, " n"]:
    """Averages <direction, key>^degree over keys; the query plays no part.

    Raises:
      ValueError: If the degree is below 0.
    """
    return jnp.mean(_power(keys @ direction, degree), axis=-1)


def average_harmonic(
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    *,
    direction: Float[Array, " d"],
    degree: int,
) -> Float[Array, " n"]:
    """Averages the Gegenbauer polynomial of `degree` in <direction, key>, 1 at 1, over keys.

    On the sphere it has no part of a lower degree, as a power has. The query plays no part.

    Raises:
      ValueError: If the degree is below 0.
    """
    check_between(0, degree=degree)
    d, t = keys.shape[-1], keys @ direction
    before, harmonic = jnp.ones_like(t), t
    for p in range(1, degree):
        step = (2 * p + d - 2) * t * harmonic - p * before
        before, harmonic = harmonic, step / (p + d - 2)
    return jnp.mean(harmonic if degree else before, axis=-1)


def correlation_power(
    query: Float[Array, "n d"], keys: Float[Array, "n k d"], *, degree: int
) -> Float[Array, " n"]:
    """Averages <query, key>^degree over keys.

    Raises:
      ValueError: If the degree is below 0.
    """
    return jnp.mean(_power(_correlations(query, keys), degree), axis=-1)


def weighted_correlation(
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    *,
    direction: Float[Array, " d"],
    degree: int,
) -> Float[Array, " n"]:
    """Averages <query, key>^degree <direction, key>: keys like the query count more.

    Raises:
      ValueError: If the degree is below 0.
    """
    return jnp.mean(_power(_correlations(query, keys), degree) * (keys @ direction), axis=-1)


def mixed_correlation(
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    *,
    rotation: Float[Array, "d d"],
    weight: float,
    degree: int,
) -> Float[Array, " n"]:
    """Averages <query, S key>^degree over keys, S between a rotation and the identity.

    S = sqrt(1 - weight²) rotation + weight I: at weight 0 the query is compared in coordinates
    that weights centred at the identity do not favour, at weight 1 it is `correlation_power`.
    The mixture is this repository's.

    Raises:
      ValueError: If the degree is below 0, or the weight is not from -1 to 1.
    """
    check_between(-1, 1, weight=weight)
    turned = keys @ rotation.T
    mixed = jnp.sqrt(1 - weight**2) * turned + weight * keys
    return jnp.mean(_power(_correlations(query, mixed), degree), axis=-1)


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


def build_targets(
    names: Sequence[str], key: Key[Array, ""], *, keys: int, d: int
) -> dict[str, Target]:
    """Builds targets by name, with one direction and rotation drawn for all.

    Args:
      names: `average_P`, `weighted_P` or `mixed_W_P` for degree P and weight W, or
        `module:function` for any permutation-invariant function of (query, keys).
      key: Random key of the draw.
      keys: Number of keys.
      d: Width of query and keys.

    Returns:
      The targets, each tried on permutations.

    Raises:
      UserError: An unknown name, also by its numbers, or a function that cannot be imported.
      ValueError: A function that depends on the order of the keys, or a number out of its range.
    """
    first, second = jax.random.split(key)
    direction = sphere(first, d)
    rotation = jnp.linalg.qr(jax.random.normal(second, (d, d)))[0]
    built: dict[str, Target] = {}
    for name in names:
        own = _user_function(name) if ":" in name else _own_function(name, direction, rotation)
        built[name] = own
        check_permutation_invariant(built[name], key, keys=keys, d=d)
    return built


def _own_function(name: str, direction: Array, rotation: Array) -> Target:
    with suppress(ValueError):  # a part that is no number makes the name unknown
        match name.split("_"):
            case ["average", degree]:
                return partial(average_power, direction=direction, degree=int(degree))
            case ["weighted", degree]:
                return partial(weighted_correlation, direction=direction, degree=int(degree))
            case ["mixed", weight, degree]:
                return partial(
                    mixed_correlation, rotation=rotation, weight=float(weight), degree=int(degree)
                )
    raise unknown("target", name, ("average_P", "weighted_P", "mixed_W_P"))


def _user_function(name: str) -> Target:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"target {name!r}: expected module:function, but {error}") from None


def _correlations(query: Array, keys: Array) -> Array:
    return jnp.einsum("nd,nkd->nk", query, keys)
