"""Random-feature attention: heads whose query-key matrices stay random, values that are trained.

Not the random-feature approximation of softmax attention, which is `rml.attention.performer`: here
the attention layer itself is the random-feature model and nothing is approximated.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from rml.models.layers import Dtype
from rml.ops import full_precision, wide
from rml.ops.shapes import check_above_0, check_between


def append_bias(x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
    """Appends a last coordinate of one to the vectors."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def rfa_weights(
    key: Key[Array, ""], heads: int, d: int, *, scale: float = 0.5, biased: bool = False
) -> Float[Array, "heads e e"]:
    """Draws the query-key matrices of random-feature attention: Gaussian, or centred at identity.

    Args:
      key: Random key.
      heads: Number of heads.
      d: Dimension of query and keys; the matrices also read their bias coordinates, e = d + 1.
      scale: Standard deviation of an entry; 1/2 gives unit vectors scores of unit variance.
      biased: Whether the mean is the identity on the d coordinates (zero on the bias) rather
        than zero, so that a score is <query, key> plus noise.

    Returns:
      One matrix a head.

    Raises:
      ValueError: The number of heads or the dimension is not above 0, or the scale is below 0.

    Source: Fu et al. 2023, What can a Single Attention Layer Learn? (arXiv:2307.11353), Gaussian
    query-key matrices with zero and with non-zero mean; the scale is this repository's.
    """
    check_above_0(heads=heads, d=d)
    check_between(0, scale=scale)
    weights = scale * jax.random.normal(key, (heads, d + 1, d + 1))
    if biased:
        weights += jnp.diag(jnp.append(jnp.ones(d), 0.0))
    return weights


@full_precision
def rfa_features(
    query: Float[Array, "*b d"],
    keys: Float[Array, "*b k d"],
    weights: Float[Array, "heads e e"],
    *,
    mask: Bool[Array, "*b k"] | None = None,
) -> Float[Array, "*b heads e"]:
    """Computes the features in which random-feature attention is linear.

    Head m gives mean_i relu(<W_m, x0 xiᵀ>) xi / sqrt(M), query and keys with a bias coordinate of
    one; its trained value is a vector of e = d + 1 numbers an output. Inner products of features
    estimate `rml.attention.kernels.rfa_kernel`.

    Args:
      query: The vector x0 that attends.
      keys: The vectors x1 to xN that are attended to; the features do not depend on their order.
      weights: Query-key matrices, of `rfa_weights`.
      mask: Which keys exist; all by default. An example without keys has features of zero.

    Returns:
      Features of all heads, in float32 or wider.

    Raises:
      ValueError: If the dimensions of query, keys and weights do not agree, or there is no key.

    Source: Fu et al. 2023 (arXiv:2307.11353): frozen query-key matrices, trained value matrices.
    """
    d = query.shape[-1]
    if keys.shape[-1] != d or weights.shape[1:] != (d + 1, d + 1):
        raise ValueError(
            f"expected keys of {d} coordinates and weights of {d + 1} x {d + 1} as the query has "
            f"{d}, got keys {keys.shape} and weights {weights.shape}"
        )
    check_above_0(keys=keys.shape[-2])
    query, keys, weights = wide(query, keys, weights)
    query, keys = append_bias(query), append_bias(keys)
    if mask is None:
        number = jnp.asarray(keys.shape[-2], keys.dtype)
    else:
        keys = jnp.where(mask[..., None], keys, 0)
        number = jnp.maximum(jnp.sum(mask, axis=-1), 1)[..., None, None].astype(keys.dtype)
    scores = jax.nn.relu(
        jnp.einsum("...me,...ke->...mk", jnp.einsum("...d,mde->...me", query, weights), keys)
    )
    pooled = jnp.einsum("...mk,...ke->...me", scores, keys)
    return pooled / (number * jnp.sqrt(jnp.asarray(weights.shape[0], keys.dtype)))


def rf_mlp_weights(key: Key[Array, ""], neurons: int, keys: int, d: int) -> Float[Array, "m w"]:
    """Draws the hidden weights of the random-feature MLP on a query and `keys` keys.

    Gaussian, scaled so that unit vectors have pre-activations of unit variance; w = (keys + 1) d
    coordinates and a bias.

    Raises:
      ValueError: The number of neurons or the dimension is not above 0, or that of keys is below 0.
    """
    check_above_0(neurons=neurons, d=d)
    check_between(0, keys=keys)
    width = (keys + 1) * d + 1
    return jax.random.normal(key, (neurons, width)) / jnp.sqrt(keys + 2.0)


@full_precision
def rf_mlp_features(
    query: Float[Array, "*b d"], keys: Float[Array, "*b k d"], weights: Float[Array, "m w"]
) -> Float[Array, "*b m"]:
    """Computes the features of the random-feature MLP: relu(<w_m, [x0, ..., xN, 1]>) / sqrt(M).

    The baseline that does not know that the order of the keys is immaterial. Inner products of
    features estimate `rml.attention.kernels.rf_mlp_kernel`; they are in float32 or wider.

    Raises:
      ValueError: If the weights do not fit the concatenated input.

    Source: the standard two-layer random-feature network of Fu et al. 2023 (arXiv:2307.11353).
    """
    query, keys, weights = wide(query, keys, weights)
    x = concatenated(query, keys)
    if weights.shape[1] != x.shape[-1]:
        raise ValueError(
            f"expected weights of {x.shape[-1]} columns for query {query.shape} and keys "
            f"{keys.shape}, got {weights.shape}"
        )
    return jax.nn.relu(x @ weights.T) / jnp.sqrt(jnp.asarray(weights.shape[0], x.dtype))


def concatenated(query: Float[Array, "*b d"], keys: Float[Array, "*b k d"]) -> Float[Array, "*b w"]:
    """Concatenates query, keys and a bias coordinate of one."""
    flat = keys.reshape(*keys.shape[:-2], keys.shape[-2] * keys.shape[-1])
    return append_bias(jnp.concatenate([query, flat], axis=-1))


class RandomFeatureAttention(nn.Module):
    """A layer of random-feature attention: only its values are parameters.

    The query-key matrices stand in the collection `random`, which no optimiser sees; they are
    drawn with the parameters and travel with the state.

    Attributes:
      features: Width of the output.
      heads: Number of heads.
      biased: Whether the matrices are centred at the identity.
      scale: Standard deviation of their entries.
      param_dtype: dtype of values and matrices.
    """

    features: int
    heads: int = 256
    biased: bool = False
    scale: float = 0.5
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "*b d"],
        keys: Float[Array, "*b k d"],
        *,
        mask: Bool[Array, "*b k"] | None = None,
    ) -> Float[Array, "*b features"]:
        """Attends from each query to its keys; `mask` says which keys exist."""
        d = query.shape[-1]

        def draw(key: Array) -> Array:
            weights = rfa_weights(key, self.heads, d, scale=self.scale, biased=self.biased)
            return weights.astype(self.param_dtype)

        drawn = nn.with_logical_partitioning(draw, ("heads", None, None))
        weights: Any = self.variable("random", "weights", lambda: drawn(self.make_rng("params")))
        values = self.param(
            "values",
            nn.with_logical_partitioning(
                # Features carry 1/sqrt(heads), so values of unit variance keep the input's scale.
                nn.initializers.normal(1.0), ("heads", None, "embed")
            ),
            (self.heads, d + 1, self.features),
            self.param_dtype,
        )  # fmt: skip
        pooled = rfa_features(query, keys, weights.value, mask=mask)
        out = jnp.einsum("...me,mef->...f", pooled, values)
        return out.astype(jnp.result_type(query, keys, values))
