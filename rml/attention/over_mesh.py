"""Exact attention of models whose texts are so long that each is spread over all devices."""

from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from rml.ops import attend_in_blocks, ring_attention
from rml.ops.attention_parts import Part, Visible
from rml.training.mesh import batch_axes


def attend_over_mesh(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g t k"],
    value: Float[Array, "b g t v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
) -> Part:
    """Attends round the ring of devices over which the mesh in use spreads the tokens.

    A device holds its own part of the text and two parts of its keys and values at a time. The
    numbers are those of `rml.ops.attend_in_blocks`, which does the work where there is one device.

    Args:
      query: Queries of a whole text; head i reads key head i // (h / g). Their tokens are split
        over the batch axes of the mesh, in order, equally many on each device.
      key: Keys, split likewise.
      value: Values, split likewise.
      visible: Which keys a query may see.

    Returns:
      Output and log-sum-exp, float32 or wider, split likewise.

    Raises:
      ValueError: If `visible` has sinks or a start, or a shape or the scale is not as described.

    Example:
      >>> module = Llama(..., attention=attention_of(attend_over_mesh))
      >>> with use_mesh(mesh), split_tokens():
      ...     hidden = jax.jit(module.apply)(variables, tokens)

    Source: Ring Attention (Liu, Zaharia & Abbeel, 2023), section 3.
    """
    axes = batch_axes()
    if not axes:
        return attend_in_blocks(query, key, value, visible)
    tokens: Any = PartitionSpec(None, None, axes)
    keys = None if visible.keys is None else PartitionSpec(None, axes)

    def own(query: Array, key: Array, value: Array, keys: Array | None) -> Part:
        return ring_attention(query, key, value, visible._replace(keys=keys), axis_name=axes)

    spread = partial(jax.shard_map, axis_names=set(axes))
    return spread(own, in_specs=(tokens, tokens, tokens, keys), out_specs=Part(tokens, tokens))(
        query, key, value, visible.keys
    )
