"""A small predictor of which channels of a feed-forward will be live, before any is computed."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from rml.ops.shapes import check_shapes


class Predictor(NamedTuple):
    """A product of two matrices and an offset, whose signs say which channels are live.

    Attributes:
      down: Matrix from the width to the rank.
      up: Matrix from the rank to the channels.
      offset: Offset of each channel.
    """

    down: Float[Array, "d r"]
    up: Float[Array, "r f"]
    offset: Float[Array, " f"]


class PredictorScores(NamedTuple):
    """How good predictions are.

    Attributes:
      recall: Share of live channels that are predicted; 1 where none is live.
      sparsity: Share of channels that are predicted to be zero.
    """

    recall: Float[Array, ""]
    sparsity: Float[Array, ""]


def predict(predictor: Predictor, inputs: Float[Array, "n d"]) -> Float[Array, "n f"]:
    """Predicts logits of channels being live, from what the feed-forward reads.

    Args:
      predictor: The predictor.
      inputs: Inputs of the feed-forward.
    """
    return (inputs @ predictor.down) @ predictor.up + predictor.offset


@functools.partial(jax.jit, static_argnames=("rank", "steps", "batch_size"))
def fit_predictor(
    inputs: Float[Array, "n d"],
    live: Bool[Array, "n f"],
    *,
    rank: int,
    steps: int,
    learning_rate: ArrayLike,
    batch_size: int,
    key: Key[Array, ""],
) -> Predictor:
    """Fits a predictor by binary cross-entropy, with Adam on batches drawn with replacement.

    Args:
      inputs: Inputs of the feed-forward.
      live: Which channels were live.
      rank: Rank of the matrix.
      steps: Number of batches.
      learning_rate: Learning rate of Adam, falling to zero along a cosine.
      batch_size: Tokens in a batch.
      key: Key of first weights and batches.

    Raises:
      ValueError: The rank is below 1, or inputs and live channels are not of the same tokens.

    Source: Deja Vu (Liu et al., ICML 2023) and PowerInfer (Song et al., 2023), which ProSparse
    (arXiv:2402.13516, section 4.3) uses; each has two layers, with a nonlinearity in PowerInfer.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}, expected at least 1")
    check_shapes(inputs=(inputs, "n d"), live=(live, "n f"))
    d, f = inputs.shape[1], live.shape[1]
    first, batches = jax.random.split(key)
    share = jnp.clip(live.mean(0), 1e-3, 1 - 1e-3)
    start = Predictor(
        jax.random.normal(first, (d, rank)) / jnp.sqrt(d),
        jnp.zeros((rank, f)),
        jnp.log(share) - jnp.log1p(-share),
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def loss(own: Predictor, at: Array) -> Array:
        logits = predict(own, inputs[at])
        return optax.sigmoid_binary_cross_entropy(logits, live[at].astype(logits.dtype)).mean()

    def step(carry: tuple[Predictor, optax.OptState], key: Array) -> tuple[tuple, None]:
        own, state = carry
        at = jax.random.randint(key, (batch_size,), 0, len(inputs))
        updates, state = optimizer.update(jax.grad(loss)(own, at), state)
        return (Predictor(*optax.apply_updates(own, updates)), state), None

    keys = jax.random.split(batches, steps)
    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    return found


def predictor_scores(predicted: Bool[Array, "n f"], live: Bool[Array, "n f"]) -> PredictorScores:
    """Computes recall and predicted sparsity.

    Args:
      predicted: Which channels are predicted to be live.
      live: Which are.

    Raises:
      ValueError: If shapes differ, or there is no token.
    """
    check_shapes(predicted=(predicted, "n f"), live=(live, "n f"))
    found, count = jnp.sum(predicted & live), live.sum()
    recall = jnp.where(count > 0, found / jnp.maximum(count, 1), 1.0)
    return PredictorScores(recall, 1 - predicted.mean())
