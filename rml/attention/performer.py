"""Softmax attention in linear time by positive orthogonal random features (FAVOR+).

Here random features approximate softmax attention; in `rml.attention.random_feature_attention`
they are the model.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from rml.ops import full_precision, wide
from rml.ops.attention_parts import finite_top
from rml.ops.shapes import check_above_0, check_shapes

CHUNK = 16
"""Places of causal attention whose pairs exist at a time, each with all features."""


def gaussian_projection(
    key: Key[Array, ""], features: int, d: int, *, orthogonal: bool = True
) -> Float[Array, "features d"]:
    """Draws standard normal directions, within blocks of d orthogonal to each other if asked.

    Each direction alone is distributed as N(0, I) either way, so estimates stay unbiased;
    orthogonal ones vary less.

    Raises:
      ValueError: The number of features or their width is not above 0.

    Source: Choromanski et al. 2021, Rethinking Attention with Performers (arXiv:2009.14794).
    """
    check_above_0(features=features, d=d)
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

    Raises:
      ValueError: If the vectors and the projection differ in width, or there is none.

    Source: Choromanski et al. 2021 (arXiv:2009.14794), positive features of FAVOR+.
    """
    check_shapes(x=(x, "... d"), projection=(projection, "n d"))
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

    The gradient of causal attention keeps a state [m, v + 1] for each `CHUNK` of places, and makes
    anew what is between them.

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
      ValueError: If shapes do not fit, there is no key, feature or coordinate, or attention is
        causal and there are not as many queries as keys.

    Source: Choromanski et al. 2021 (arXiv:2009.14794): D⁻¹ φ(Q) (φ(K)ᵀ V).
    """
    check_shapes(
        query=(query, "... q d"), keys=(keys, "... s d"), values=(values, "... s v"),
        projection=(projection, "m d"),
    )  # fmt: skip
    check_above_0(keys=keys.shape[-2], features=len(projection))
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
        out = _causal(q, k, values)
    # A query that sees no key has 0 and a gradient of 0; a tiny divisor would square to 0 there.
    total = out[..., -1:]
    seen = total > 0
    return jnp.where(seen, out[..., :-1] / jnp.where(seen, total, 1), 0).astype(dtype)


def _causal(q: Array, k: Array, values: Array) -> Array:
    """Sums of values over earlier keys: those of a query's own chunk one by one, others as a state.

    Each feature is divided by the largest that a key has had so far, since a later key must not
    make the earlier ones vanish.
    """
    length = q.shape[-2]
    # Rows that fill the last chunk: keys of which no feature is anything.
    rows = [
        jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, -length % CHUNK), (0, 0)), constant_values=fill)
        for x, fill in ((q, 0), (k, -jnp.inf), (values, 0))
    ]
    chunks = [jnp.moveaxis(x.reshape(*x.shape[:-2], -1, CHUNK, x.shape[-1]), -3, 0) for x in rows]
    earlier = jnp.tril(jnp.ones((CHUNK, CHUNK), bool))

    @partial(jax.checkpoint, prevent_cse=False)
    def step(carry: tuple[Array, Array], chunk: list[Array]) -> tuple[Any, Array]:
        (state, before), (q, k, v) = carry, chunk
        tops = jax.lax.cummax(jax.lax.stop_gradient(k), axis=k.ndim - 2)
        tops = jnp.maximum(tops, before[..., None, :])
        # A factor of all of a query's features cancels: with this one no exponent is above 0.
        shift = finite_top(jnp.max(jax.lax.stop_gradient(q) + tops, axis=-1, keepdims=True))
        far = jnp.exp(q + before[..., None, :] - shift) @ state
        exponents = q[..., :, None, :] + k[..., None, :, :] - shift[..., None]
        near = jnp.exp(jnp.where(earlier[..., None], exponents, -jnp.inf)).sum(-1) @ v
        top = finite_top(tops[..., -1, :])
        own = jnp.swapaxes(jnp.exp(k - top[..., None, :]), -2, -1) @ v
        state = jnp.exp(before - top)[..., None] * state + own
        return (state, tops[..., -1, :]), far + near

    state = jnp.zeros((*chunks[1].shape[1:-2], k.shape[-1], values.shape[-1]), values.dtype)
    none = jnp.full(state.shape[:-1], -jnp.inf, k.dtype)
    found = jnp.moveaxis(jax.lax.scan(step, (state, none), chunks)[1], 0, -3)
    return found.reshape(*found.shape[:-3], -1, found.shape[-1])[..., :length, :]


def _raised(q: Array, k: Array, top: Array) -> tuple[Array, Array]:
    """Features of queries and of keys, from exponents of which those of the keys have maxima `top`.

    What a feature of the keys is divided by, that of the queries is multiplied by, and a factor of
    all of a query's features cancels. So each feature has a key of 1 and each query a feature of 1:
    nothing overflows, and no row vanishes.
    """
    shift = finite_top(top)  # 0 where there is no key
    q = q + shift
    q = q - jax.lax.stop_gradient(jnp.max(q, axis=-1, keepdims=True))
    return jnp.exp(q), jnp.exp(k - shift)


def _exponents(x: Array, projection: Array) -> Array:
    return x @ projection.T - jnp.sum(x * x, axis=-1, keepdims=True) / 2
