"""Softmax attention over short sequences whose logits never leave a TPU core's own memory."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

LANES = 128  # numbers beside each other in a TPU's vector register
LONGEST = {2: 1024, 4: 768}
"""Most tokens by bytes of a number: a head's logits must fit into the 16 MB of a v4 or v5 core."""


def fused_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b t h k"],
    value: Float[Array, "b t h k"],
    *,
    interpret: bool = False,
) -> Float[Array, "b t h k"]:
    """Computes softmax attention among all tokens, each head's logits made where they are used.

    A kernel for TPUs. For an image of 197 tokens a head's logits are six times as large as its
    queries: written and read again they are what bounds a vision transformer's step. Here forward
    and backward passes read queries, keys and values and write outputs and gradients; the backward
    pass makes the weights anew. Other kernels tile longer sequences and keep sums between tiles.

    The arithmetic is that of `jax.nn.dot_product_attention`: products in the dtype of the input
    with sums in float32, softmax in float32. It has one derivative, a reverse-mode one.

    Args:
      query: Queries. The width k of a head divides 128 or is a multiple of it, and heads fill whole
        groups of 128.
      key: Keys.
      value: Values.
      interpret: Run the kernel as plain JAX, on any platform, slowly.

    Returns:
      Outputs in the dtype of the values.

    Raises:
      ValueError: A shape that the kernel does not take.

    Source: "Attention is all you need" (Vaswani et al., 2017), equation 1; recomputation in the
    backward pass as in FlashAttention (Dao et al., 2022), section 3.1.
    """
    if query.ndim != 4 or not query.shape == key.shape == value.shape:
        raise ValueError(
            "fused attention takes queries, keys and values of one shape [b, t, h, k], got "
            f"{query.shape}, {key.shape}, {value.shape}"
        )
    b, t, heads, width = query.shape
    longest = LONGEST.get(query.dtype.itemsize, 0)
    if t > longest:
        raise ValueError(
            f"fused attention takes at most {longest} tokens in {query.dtype}, got {t}"
        )
    if (LANES % width and width % LANES) or heads * width % LANES:
        raise ValueError(
            f"fused attention takes heads that fill groups of {LANES} numbers, got {heads} heads "
            f"of {width}"
        )
    query, key, value = (x.reshape(b, t, heads * width) for x in (query, key, value))
    return _attend(query, key, value, width, interpret).reshape(b, t, heads, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, width: int, interpret: bool
) -> jax.Array:
    return _call(_forward, (query, key, value), 1, width, interpret, products=2)[0]


def _attend_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, width: int, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _attend(query, key, value, width, interpret), (query, key, value)


def _attend_backward(
    width: int, interpret: bool, kept: tuple[jax.Array, ...], dout: jax.Array
) -> tuple[jax.Array, ...]:
    return tuple(_call(_backward, (*kept, dout), 3, width, interpret, products=5))


_attend.defvjp(_attend_forward, _attend_backward)


def _call(
    kernel: Any, arrays: tuple[jax.Array, ...], outputs: int, width: int, interpret: bool,
    *, products: int,
) -> Sequence[jax.Array]:  # fmt: skip
    """Runs a kernel for every image and group of heads that fills the lanes."""
    b, t, d = arrays[0].shape
    lanes = max(LANES, width)
    block = pl.BlockSpec((None, t, lanes), lambda image, group: (image, 0, group))
    moved = (len(arrays) + outputs) * arrays[0].size * arrays[0].dtype.itemsize
    return pl.pallas_call(
        functools.partial(kernel, width=width),
        grid=(b, d // lanes),
        in_specs=[block] * len(arrays),
        out_specs=[block] * outputs,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[:outputs]],
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * t * t * d,
            transcendentals=b * (d // width) * t * t,
            bytes_accessed=moved,
        ),
        interpret=interpret,
    )(*arrays)


def _heads(lanes: int, width: int) -> list[jax.Array | None]:
    """Finds which lanes belong to each head of a group; None for all.

    Setting the others to zero costs no time: a product's inner dimension is 128 wide anyway.
    """
    if lanes == width:
        return [None]
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1)
    return [(lane >= start) & (lane < start + width) for start in range(0, lanes, width)]


def _only(head: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if head is None else jnp.where(head, x, jnp.zeros_like(x))


def _product(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32)


def _weights(query: jax.Array, key: jax.Array, width: int) -> jax.Array:
    logits = _product(query, key, (1, 1)) * width**-0.5
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _forward(query_ref: Any, key_ref: Any, value_ref: Any, out_ref: Any, *, width: int) -> None:
    query, key, value = query_ref[...], key_ref[...], value_ref[...]
    out = jnp.zeros(query.shape, jnp.float32)
    for head in _heads(query.shape[1], width):
        weights = _weights(_only(head, query), key, width).astype(value.dtype)
        out += _only(head, _product(weights, value, (1, 0)))
    out_ref[...] = out.astype(out_ref.dtype)


def _backward(
    query_ref: Any, key_ref: Any, value_ref: Any, dout_ref: Any, *outputs: Any, width: int
) -> None:
    query, key, value, dout = query_ref[...], key_ref[...], value_ref[...], dout_ref[...]
    dquery, dkey, dvalue = (jnp.zeros(query.shape, jnp.float32) for _ in range(3))
    for head in _heads(query.shape[1], width):
        own, weights = _only(head, dout), _weights(_only(head, query), key, width)
        dvalue += _product(weights.astype(own.dtype), own, (0, 0))
        dweights = _product(own, value, (1, 1))
        # The softmax's derivative; the inner sum is that of output and its gradient.
        dlogits = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True))
        dlogits = (dlogits * width**-0.5).astype(query.dtype)
        dquery += _only(head, _product(dlogits, key, (1, 0)))
        dkey += _only(head, _product(dlogits, query, (0, 0)))
    for ref, gradient in zip(outputs, (dquery, dkey, dvalue), strict=True):
        ref[...] = gradient.astype(ref.dtype)
