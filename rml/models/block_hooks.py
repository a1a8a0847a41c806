"""What a decoder's blocks take and give beside their output: thresholds of activations, a probe."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Thresholds(NamedTuple):
    """Magnitudes below which what a projection reads is set to zero; each may be None.

    They are arguments rather than parameters: weights load unchanged. Zero keeps everything.

    Attributes:
      gate: [layers, mlp], of the gate after its nonlinearity. A zero there makes a row of the
        other two matrices of the MLP needless.
      hidden: [layers, mlp], of what the MLP's last matrix reads.
      query: [layers], of what the projection to queries reads.
      key: [layers], likewise.
      value: [layers], likewise.
      output: [layers], of the heads' outputs that the projection back reads.
    """

    gate: jax.Array | None = None
    hidden: jax.Array | None = None
    query: jax.Array | None = None
    key: jax.Array | None = None
    value: jax.Array | None = None
    output: jax.Array | None = None


class Activations(NamedTuple):
    """What a block computed of a batch of texts, before thresholds but for `hidden`.

    Attributes:
      attention_input: What queries, keys and values are made of.
      heads: Outputs of the heads, side by side.
      mlp_input: What the MLP reads.
      gate: Gate after its nonlinearity.
      up: What the gate is multiplied by.
      hidden: Their product as the MLP's last matrix reads it.
      mask: Which tokens are text rather than padding; None for all.
    """

    attention_input: Float[Array, "b t d"]
    heads: Float[Array, "b t m"]
    mlp_input: Float[Array, "b t d"]
    gate: Float[Array, "b t f"]
    up: Float[Array, "b t f"]
    hidden: Float[Array, "b t f"]
    mask: Bool[Array, "b t"] | None


class Probe(NamedTuple):
    """What is measured in every block.

    Attributes:
      function: `function(activations, own) -> pytree` of small arrays, which come back stacked over
        layers. It may not close over traced arrays.
      per_layer: Arrays with a leading axis of layers, of which each block gets its `own`.
    """

    function: Callable[[Activations, Any], Any]
    per_layer: Any = None


def cut(x: Float[Array, "*b d"], threshold: jax.Array | None) -> Float[Array, "*b d"]:
    """Sets entries of a magnitude below a threshold, [] or [d], to zero; None leaves all.

    NaN stays what it is.
    """
    return x if threshold is None else jnp.where(jnp.abs(x) < threshold, 0, x)


def check_thresholds(thresholds: Thresholds | None, depth: int, mlp: int) -> None:
    """Raises ValueError unless thresholds have a layer's each, and a channel's of the MLP."""
    for name, value in (thresholds or Thresholds())._asdict().items():
        shape = (depth, mlp) if name in ("gate", "hidden") else (depth,)
        if value is not None and value.shape != shape:
            raise ValueError(f"thresholds.{name} must have shape {shape}, got {value.shape}")
