"""Softmax attention in linear time by positive orthogonal random features (FAVOR+).

Here random features approximate softmax attention; in `rml.attention.random_feature_attention`
they are the model.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from rml.ops import full_precision, wide
from rml.ops.attention_parts import finite_top


def gaussian_projection(
    key: Key[Array, ""], features: int, d: int, *, orthogonal: bool = True
) -> Float[Array, "features d"]:
    """Draws standard normal directions, within blocks of d orthogonal to each other if asked.

    Each direction alone is distributed as N(0, I) either way, so estimates stay unbiased;
    orthogonal ones vary less.

    Source: Choromanski et al. 2021, Rethinking Attention with Performers (arXiv:2009.14794).
    """
    direction, length = jax.random.split(key)
    if not orthogonal:
        return jax.random.normal(direction, (features, d))
    blocks = -(-features // d)
    q, r = jnp.linalg.qr(jax.random.normal(direction, (blocks, d, d)))
    # The signs make the distribution of the rotation uniform.
    q = q * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None, :]
    norms = jnp.linalg.norm(jax.random.normal(length, (features, d)), axis=1, keepdims=True)
    return norms * q.reshape(-1, d)[:features]


@full_precision
def positive_features(
    x: Float[Array, "*b d"], projection: Float[Array, "m d"]
) -> Float[Array, "*b m"]:
    """Computes features whose inner products estimate exp(<x, y>) without bias, all positive.

    exp(<w, x> - |x|² / 2) / sqrt(m) for each row w of the projection. For independent rows the
    relative variance is (exp(|x + y|²) - 1) / m: least where the kernel is smallest.

    Source: Choromanski et al. 2021 (arXiv:2009.14794), positive features of FAVOR+.
    """
    exponent = _exponents(*wide(x, projection))
    return jnp.exp(exponent) / jnp.sqrt(jnp.asarray(projection.shape[0], exponent.dtype))


@full_precision
def performer_attention(
    query: Float[Array, "*b q d"],
    keys: Float[Array, "*b k d"],
    values: Float[Array, "*b k v"],
    projection: Float[Array, "m d"],
    *,
    causal: bool = False,
    here: Bool[Array, "*#b k"] | None = None,
) -> Float[Array, "*b q v"]:
    """Approximates softmax(query keysᵀ / sqrt(d)) values in time and memory linear in the length.

    The gradient of causal attention keeps the states [m, v + 1] of as many places as the root of
    the length, and makes the others anew.

    Args:
      query: Queries.
      keys: Keys.
      values: Values of the keys.
      projection: Directions of the features, of `gaussian_projection`.
      causal: Whether a query attends only to keys up to its own position.
      here: Which keys are there rather than padding; all by default.

    Returns:
      Weighted means of values, with weights that are positive and sum to one, in the values'
      precision; sums are in float32 or wider. Zeros where a query sees no key.

    Raises:
      ValueError: If `causal` and there are not as many queries as keys.

    Source: Choromanski et al. 2021 (arXiv:2009.14794): D⁻¹ φ(Q) (φ(K)ᵀ V).
    """
    if causal and query.shape[-2] != keys.shape[-2]:
        raise ValueError(
            f"causal attention expects as many queries as keys, got shapes {query.shape} and "
            f"{keys.shape}"
        )
    dtype = values.dtype
    query, keys, values, projection = wide(query, keys, values, projection)
    scale = query.shape[-1] ** -0.25
    q, k = _exponents(scale * query, projection), _exponents(scale * keys, projection)
    if here is not None:
        k = jnp.where(here[..., None], k, -jnp.inf)
    values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
    if not causal:
        q, k = _raised(q, k, jnp.max(jax.lax.stop_gradient(k), axis=-2, keepdims=True))
        out = q @ (jnp.swapaxes(k, -2, -1) @ values)
    else:

        def step(carry: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[Any, Array]:
            state, before = carry
            q, k, v = row
            # The largest so far: a later key must not make the earlier ones vanish.
            top = jnp.maximum(before, jax.lax.stop_gradient(k))
            q, k = _raised(q, k, top)
            decay = jnp.exp(before - finite_top(top))
            state = decay[..., None] * state + k[..., :, None] * v[..., None, :]
            return (state, top), jnp.einsum("...m,...mv->...v", q, state)

        rows = tuple(jnp.moveaxis(x, -2, 0) for x in (q, k, values))
        start = jnp.zeros((*rows[1].shape[1:], values.shape[-1]), values.dtype)
        none = jnp.full(start.shape[:-1], -jnp.inf, k.dtype)
        out = jnp.moveaxis(_scanned_in_chunks(step, (start, none), rows), 0, -2)
    # A query that sees no key has 0 and a gradient of 0; a tiny divisor would square to 0 there.
    total = out[..., -1:]
    seen = total > 0
    return jnp.where(seen, out[..., :-1] / jnp.where(seen, total, 1), 0).astype(dtype)


def _scanned_in_chunks(step: Callable, carry: Any, rows: tuple[Array, ...]) -> Array:
    """Outputs of a scan whose gradient keeps what is carried between chunks alone."""
    length = len(rows[0])
    size = max(1, math.isqrt(length))
    whole = length - length % size

    @partial(jax.checkpoint, prevent_cse=False)
    def chunk(carry: Any, rows: tuple[Array, ...]) -> tuple[Any, Array]:
        return jax.lax.scan(step, carry, rows)

    chunks = tuple(x[:whole].reshape(-1, size, *x.shape[1:]) for x in rows)
    carry, out = jax.lax.scan(chunk, carry, chunks)
    out = out.reshape(whole, *out.shape[2:])
    if whole == length:
        return out
    return jnp.concatenate([out, chunk(carry, tuple(x[whole:] for x in rows))[1]])


def _raised(q: Array, k: Array, top: Array) -> tuple[Array, Array]:
    """Features of queries and of keys, from exponents of which those of the keys have maxima `top`.

    What a feature of the keys is divided by, that of the queries is multiplied by, and a factor of
    all of a query's features cancels. So each feature has a key of 1 and each query a feature of 1:
    nothing overflows, and no row vanishes.
    """
    shift = finite_top(top)  # 0 where there is no key yet
    q = q + shift
    q = q - jax.lax.stop_gradient(jnp.max(q, axis=-1, keepdims=True))
    return jnp.exp(q), jnp.exp(k - shift)


def _exponents(x: Array, projection: Array) -> Array:
    return x @ projection.T - jnp.sum(x * x, axis=-1, keepdims=True) / 2
