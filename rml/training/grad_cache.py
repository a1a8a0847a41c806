"""Gradient cache: large-batch contrastive gradients with the activations of a small batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

Encode = Callable[..., PyTree]


def grad_cache(encode: Encode, loss: Callable[..., Any], *, microbatch: int) -> Callable[..., Any]:
    """Makes `loss(encode(...))` need the activations of one microbatch only, under `jax.grad`.

    The batch is encoded in microbatches without keeping activations, the loss sees all
    embeddings at once, and the backward pass encodes each microbatch again to carry its part of
    the embeddings' gradient to the parameters. The gradient is exact for an encoder that treats
    examples apart, for instance with LayerNorm. Batch statistics (BatchNorm) are those of a
    microbatch, in both passes; `encode` must use running ones or accept that, and can return no
    updated statistics. Dropout is the same in both passes: a microbatch's key is a function of
    `key` and the microbatch's number.

    Microbatch s holds the rows s, s + steps, s + 2 steps, ..., so that on a mesh with the batch
    sharded by rows each device works on every microbatch; embeddings come back in the batch's
    order.

    Args:
      encode: `encode(params, examples)`, or `encode(params, examples, key)` where a key is given,
        to embeddings; examples and embeddings are pytrees of arrays with one row per example.
      loss: `loss(embeddings, *args)` to what is differentiated.
      microbatch: Examples encoded at a time; must divide the batch.

    Returns:
      `value(params, batch, *args, key=None)`, to be given to `jax.grad` or `jax.value_and_grad`
      with respect to `params` and any of `args`, such as a temperature.

    Raises:
      ValueError: If `microbatch` is not positive or, when called, does not divide the batch.

    Source: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup, section 3.
    """
    if microbatch < 1:
        raise ValueError(f"microbatch must be positive, got {microbatch}.")

    def value(params: PyTree, batch: PyTree, *args: Any, key: Key[Array, ""] | None = None) -> Any:
        return loss(_encode(encode, microbatch, params, batch, key), *args)

    return value


def _encode(
    encode: Encode, microbatch: int, params: PyTree, batch: PyTree, key: Array | None
) -> PyTree:
    sizes = {x.shape[0] for x in jax.tree.leaves(batch)}
    if len(sizes) != 1:
        raise ValueError(f"all arrays of the batch must have as many rows, got {sorted(sizes)}.")
    size = sizes.pop()
    if size % microbatch:
        raise ValueError(f"microbatch {microbatch} does not divide the batch of {size}.")
    steps = size // microbatch

    # Rematerialised, the scan keeps its inputs alone and its transpose encodes again.
    @partial(jax.checkpoint, prevent_cse=False)
    def body(params: PyTree, x: tuple) -> PyTree:
        step, examples = x
        rest = () if key is None else (jax.random.fold_in(key, step),)
        return encode(params, examples, *rest)

    def scatter(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(microbatch, steps, *x.shape[1:]), 0, 1)

    def gather(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape(size, *x.shape[2:])

    xs = (jnp.arange(steps), jax.tree.map(scatter, batch))
    _, embeddings = jax.lax.scan(lambda _, x: (None, body(params, x)), None, xs)
    return jax.tree.map(gather, embeddings)
