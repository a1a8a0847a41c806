"""Attention by name within the models of `rml.models`."""

from collections.abc import Callable
from typing import Any

import jax

from rml.attention.methods import METHODS
from rml.errors import unknown
from rml.models.attention import Attend
from rml.ops.attention_parts import Part, Visible


def attention_of(method: str | Callable[..., Any], **options: Any) -> Attend:
    """Makes what a model takes as its `attention`.

    Args:
      method: A name of `METHODS`, or a function of their signature that gives an output or a part,
        such as `rml.ops.block_sparse_attention`.
      **options: Options of the method, `rng` included where it draws; all layers draw the same.

    Returns:
      The attention; it gives no weights.

    Raises:
      UserError: The name is unknown.

    Example:
      >>> smollm2 = load("smollm2")
      >>> far = attention_of("window", width=256)
      >>> layers = (attend,) * 20 + (far,) * 10
      >>> hidden = smollm2.module.clone(attention=layers).apply(smollm2.variables, tokens)
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise unknown("attention", method, METHODS)
        method = METHODS[method]

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array, visible: Visible
    ) -> tuple[jax.Array, None]:
        heads_first = (x.swapaxes(1, 2) for x in (query, key, value))
        found = method(*heads_first, visible=visible, **options)
        out = found.out if isinstance(found, Part) else found
        return out.swapaxes(1, 2).astype(value.dtype), None

    return attend
