"""The three models with frozen random weights, by name: weights, features, infinite-width kernel.

`rfa` is attention with Gaussian query-key matrices, `biased_rfa` attention with the matrices
centred at the identity, `rf_mlp` random features of an MLP on the concatenated input.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rml.attention import ridge
from rml.attention.kernels import rf_mlp_kernel, rfa_kernel
from rml.attention.random_feature_attention import (
    rf_mlp_features,
    rf_mlp_weights,
    rfa_features,
    rfa_weights,
)
from rml.errors import UserError, unknown
from rml.ops import full_precision
from rml.ops.shapes import check_above_0, check_between

MODELS = ("rfa", "biased_rfa", "rf_mlp")


def draw_weights(
    model: str, key: Key[Array, ""], *, count: int, keys: int, d: int, scale: float
) -> Float[Array, "count ..."]:
    """Draws the weights of `count` heads of attention, or of as many neurons.

    Args:
      model: One of `MODELS`.
      key: Random key of the draw.
      count: Number of heads or neurons.
      keys: Number of keys of an input.
      d: Width of query and keys.
      scale: Standard deviation of attention's weights, see `rfa_weights`.

    Returns:
      The weights, a row a head or neuron.

    Raises:
      UserError: If the model is unknown.
      ValueError: If a number is out of its range, see `rfa_weights` and `rf_mlp_weights`.
    """
    _check(model)
    check_above_0(count=count)
    if model == "rf_mlp":
        return rf_mlp_weights(key, count, keys, d)
    return rfa_weights(key, count, d, scale=scale, biased=model == "biased_rfa")


def features(
    model: str,
    weights: Float[Array, "count ..."],
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
) -> Float[Array, "n f"]:
    """Computes features of inputs under a model of `MODELS` with these weights.

    Raises:
      UserError: If the model is unknown.
    """
    _check(model)
    if model == "rf_mlp":
        return rf_mlp_features(query, keys, weights)
    return rfa_features(query, keys, weights).reshape(len(query), -1)


def kernel(model: str, *, scale: float | Float[Array, ""]) -> Callable[..., Float[Array, "n m"]]:
    """Returns a Gram matrix's limit in many heads, as `kernel(query, keys, query', keys')`.

    Equal models and scales that are floats have one function, so that `jax.jit` compiles it once.

    Raises:
      UserError: If the model is unknown.
    """
    _check(model)
    return (_cached if isinstance(scale, float) else _kernel)(model, scale)


def _check(model: str) -> None:
    if model not in MODELS:
        raise unknown("model", model, MODELS)


def _kernel(model: str, scale: float | Float[Array, ""]) -> Callable[..., Float[Array, "n m"]]:
    if model == "rf_mlp":
        return rf_mlp_kernel
    return partial(rfa_kernel, scale=scale, biased=model == "biased_rfa")


_cached = cache(_kernel)


@partial(jax.jit, static_argnames=("model", "train", "blocks"))
def grams(
    model: str,
    weights: Float[Array, "count ..."],
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    *,
    train: int,
    blocks: int,
) -> tuple[Float[Array, "t t"], Float[Array, "m t"]]:
    """Computes the Gram matrix of the first `train` examples, and of the others with them.

    Features are computed in `blocks` parts of the weights, so they never exist at once.

    Raises:
      UserError: If the model is unknown, or the blocks do not divide the weights.
      ValueError: If `train` is not from 1 to the number of examples.
    """
    if blocks < 1 or len(weights) % blocks:
        raise UserError(f"blocks is {blocks}, expected a divisor of {len(weights)} weights")
    check_between(1, len(query), train=train)
    split = weights.reshape(blocks, -1, *weights.shape[1:])
    first, rest = (query[:train], keys[:train]), (query[train:], keys[train:])

    def block_features(weights: Array, inputs: tuple[Array, Array]) -> Array:
        return features(model, weights, *inputs)

    return (
        ridge.streamed_gram(block_features, split, first),
        ridge.streamed_gram(block_features, split, rest, first),
    )


@full_precision
def learning_curve(
    gram: Float[Array, "n n"],
    cross: Float[Array, "m n"],
    values: Float[Array, "e targets"],
    penalties: tuple[float, ...],
    sizes: tuple[int, ...],
) -> tuple[Float[np.ndarray, "sizes targets"], Float[np.ndarray, "sizes targets"]]:
    """Measures mean squared test errors of ridge regression against the number of examples.

    Each size and target has the penalty of least leave-one-out error. One factorisation a penalty
    serves all sizes and targets: beyond as many examples as features, where the primal system is
    the smaller one, it is still less work than the primal's factors and leverages of each size.

    Args:
      gram: Gram matrix of the n training examples.
      cross: Gram matrix of the m test examples with them.
      values: Targets of all n + m examples.
      penalties: Penalties to choose from.
      sizes: Numbers of training examples, each a prefix of them.

    Returns:
      Errors, and the penalties that were chosen.

    Raises:
      UserError: If a penalty is too small for the Gram matrix to have a Cholesky factor.
    """
    train = len(gram)
    test, left_out = [], []
    for penalty in penalties:
        # Not one program: of its parts' matrices of n x n only a few exist at a time.
        solved = ridge.solve_prefixes(gram, values[:train], penalty, sizes)
        predictions = [cross[:, : len(dual)] @ dual for dual, _ in solved]
        test.append([jnp.mean((p - values[train:]) ** 2, axis=0) for p in predictions])
        left_out.append([error for _, error in solved])
        if not np.isfinite(left_out[-1]).all():
            raise UserError(
                f"regularizations: with {penalty:g} the Gram matrix of {train} examples has no "
                "Cholesky factor, expected a penalty above its rounding errors"
            )
    chosen = np.argmin(left_out, axis=0)
    best = np.take_along_axis(np.asarray(test), chosen[None], axis=0)[0]
    return best, np.asarray(penalties)[chosen]


@partial(jax.jit, static_argnames=("model", "sizes", "train"))
@full_precision
def kernel_learning_curve(
    query: Float[Array, "n d"],
    keys: Float[Array, "n k d"],
    values: Float[Array, "n targets"],
    penalty: float | Float[Array, ""],
    *,
    model: str,
    sizes: tuple[int, ...],
    train: int,
) -> Float[Array, "sizes targets"]:
    """Computes mean squared test errors of regression on prefixes with a kernel of scale 0.5.

    Args:
      query: Queries; the first `train` are trained on, the others tested.
      keys: Their keys.
      values: Targets.
      penalty: Penalty as a share of the kernel's mean diagonal.
      model: One of `MODELS`.
      sizes: Numbers of training examples, each a prefix of them.
      train: Number of training examples.
    """
    gram = kernel(model, scale=0.5)(query, keys, query[:train], keys[:train])
    absolute = penalty * jnp.mean(jnp.diagonal(gram))
    solved = ridge.solve_prefixes(gram[:train], values[:train], absolute, sizes)
    predictions = [gram[train:, : len(dual)] @ dual for dual, _ in solved]
    return jnp.stack([jnp.mean((p - values[train:]) ** 2, axis=0) for p in predictions])
