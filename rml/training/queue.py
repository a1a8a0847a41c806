"""A first-in first-out queue of keys, MoCo's dictionary of negatives."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from rml.ops.similarity import normalize

AXES = ("queue", "features")
"""Logical axes of the keys, of which each device of the model axis holds its share."""


class Queue(struct.PyTreeNode):
    """Keys of the last batches, a pytree to keep in a train state.

    Attributes:
      keys: The keys [size, d], in the order of a ring.
      pointer: Row of the oldest key, which the next one replaces, int32 scalar.
    """

    keys: Any
    pointer: Any


def init_queue(key: Key[Array, ""], *, size: int, features: int) -> Queue:
    """Makes a queue full of random directions, which are negatives until keys replace them.

    Args:
      key: Random key of the draw.
      size: Number of keys that the queue holds.
      features: Width of a key.

    Returns:
      The queue, its keys boxed by their logical axes as a module's parameters are; `nn.meta.unbox`
      gives the plain one.

    Raises:
      ValueError: If a size is below 1.

    Source: He et al. 2020, Momentum Contrast (arXiv:1911.05722), Algorithm 1; the random start is
    that of its code.
    """
    if size < 1 or features < 1:
        raise ValueError(f"a queue needs a size and features of at least 1, got {size}, {features}")
    keys = normalize(jax.random.normal(key, (size, features)))
    return Queue(nn.LogicallyPartitioned(keys, AXES), jnp.zeros((), jnp.int32))


def enqueue(queue: Queue, keys: Float[Array, "n d"]) -> Queue:
    """Replaces the oldest keys by new ones, round the ring.

    Args:
      queue: The queue.
      keys: New keys, any number; of more than the queue holds the last ones stay.

    Returns:
      The queue after it. No gradient flows into it.

    Raises:
      ValueError: If the keys' width is not the queue's.
    """
    size, features = queue.keys.shape
    n = keys.shape[0]
    if keys.shape[1] != features:
        raise ValueError(f"keys have {keys.shape[1]} features, the queue's have {features}")
    rows = (queue.pointer + jnp.arange(n)[-size:]) % size
    new = jax.lax.stop_gradient(keys[-size:]).astype(queue.keys.dtype)
    return Queue(queue.keys.at[rows].set(new, unique_indices=True), (queue.pointer + n) % size)
