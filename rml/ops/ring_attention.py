"""Softmax attention over texts that are spread over the devices of a mesh.

Inside `jax.shard_map` every device holds its shard of a text's queries, keys and values. Keys and
values travel round the ring, sent before they are used so that the transfer can hide behind the
products; each visit is a part, and the parts merge. In the backward pass the gradients of keys and
values travel with them and are home after a full turn. A device holds two shards of keys at a time.

Source: Ring Attention (Liu, Zaharia & Abbeel, 2023), section 3.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rml.ops.attention_blocks import Blocks, Place, blocks_of, place_of
from rml.ops.attention_parts import Part, Visible, merge_parts
from rml.ops.blocked_attention import BLOCK, blocks_backward, blocks_forward, zero_of
from rml.ops.ring import shift


def ring_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g t k"],
    value: Float[Array, "b g t v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    axis_name: str | tuple[str, ...],
    scale: float | None = None,
    block: int = BLOCK,
) -> Part:
    """Attends from this device's tokens to the visible tokens of all devices.

    Call it inside `jax.shard_map`, each device with its shard of equal length, in device order.
    It has reverse-mode derivatives of first order only.

    Args:
      query: This device's queries; head i reads key head i // (h / g).
      key: This device's keys; g divides h.
      value: This device's values.
      visible: Keys that a query may see; `keys` is this device's shard of [b, tokens]. It has no
        sinks and starts at place 0.
      axis_name: Mesh axis over which the tokens are sharded, or axes.
      scale: Factor of the logits, at least 0; k^-1/2 by default.
      block: Keys of one block, see `attend_in_blocks`.

    Returns:
      Output and log-sum-exp of this device's queries, float32 or wider.

    Raises:
      ValueError: If `visible` has sinks, a start, or an integer window less than 1, or a shape or
        the scale is not as described.
    """
    if visible.sinks or not isinstance(visible.start, int) or visible.start:
        raise ValueError(
            f"a ring takes visibility without sinks and with start 0, got sinks={visible.sinks} "
            f"and start={visible.start}"
        )
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            f"a ring takes as many queries as keys on a device, got {query.shape[2]} queries "
            f"and {key.shape[2]} keys"
        )
    blocks = blocks_of(query, key, value, visible, scale, block)
    keys = None if visible.keys is None else jnp.asarray(visible.keys)
    window = place_of(visible).window
    return _ring(axis_name, blocks, query, (key, value, keys), window)


Travelling = tuple[Array, Array, Array | None]
"""Keys, values, and which keys are there."""


def _hop(here: Array, step: Array, size: int, tokens: int, window: Array | None) -> Place:
    """Place of the first query of shard `here` among the keys that arrive at a step."""
    return Place((here - (here + step) % size) * tokens, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(
    axis_name: str | tuple[str, ...],
    shape: Blocks,
    query: Array,
    travelling: Travelling,
    window: Array | None,
) -> Part:
    here, size, tokens = lax.axis_index(axis_name), lax.axis_size(axis_name), query.shape[2]

    def visit(carry: tuple[Part, Travelling], step: Array) -> tuple[tuple, None]:
        part, present = carry
        following = shift(present, axis_name)
        place = _hop(here, step, size, tokens, window)
        new = Part(*blocks_forward(shape, query, *present, place))
        return (merge_parts(part, new), following), None

    value = travelling[1]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    zero = zero_of(here, query, *travelling)
    none = jnp.zeros(query.shape[:3], wide) + zero
    empty = Part(jnp.zeros((*none.shape, value.shape[-1]), wide) + zero, none - jnp.inf)
    (part, _), _ = lax.scan(visit, (empty, travelling), jnp.arange(size))
    return part


def _ring_forward(
    axis_name: str | tuple[str, ...],
    shape: Blocks,
    query: Array,
    travelling: Travelling,
    window: Array | None,
) -> tuple[Part, tuple]:
    part = _ring(axis_name, shape, query, travelling, window)
    return part, (query, travelling, window, part)


def _ring_backward(
    axis_name: str | tuple[str, ...], shape: Blocks, kept: tuple, cotangent: Part
) -> tuple:
    query, travelling, window, part = kept
    here, size, tokens = lax.axis_index(axis_name), lax.axis_size(axis_name), query.shape[2]

    def visit(carry: tuple, step: Array) -> tuple[tuple, None]:
        d_query, d_keys, present = carry
        d_keys, following = shift((d_keys, present), axis_name)
        key, value, keys = present
        place = _hop(here, step, size, tokens, window)
        dq, dk, dv = blocks_backward(
            shape, query, key, value, keys, place, None, part=part, cotangent=cotangent
        )
        return (d_query + dq, (d_keys[0] + dk, d_keys[1] + dv), following), None

    key, value, _ = travelling
    wide = jnp.promote_types(query.dtype, jnp.float32)
    zero = zero_of(here, query, *travelling, *cotangent)
    zeros = tuple(jnp.zeros(x.shape, wide) + zero for x in (query, key, value))
    (dq, d_keys, _), _ = lax.scan(visit, (zeros[0], zeros[1:], travelling), jnp.arange(size))
    dk, dv = shift(d_keys, axis_name)
    return dq.astype(query.dtype), (dk.astype(key.dtype), dv.astype(value.dtype), None), None


_ring.defvjp(_ring_forward, _ring_backward)
