"""Rotary position embedding (Su et al., 2021) and the scalings that stretch it to longer texts."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from rml.models.layers import unknown

# What each scaling reads, in the names of Hugging Face's `rope_scaling`.
SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def scaling_kind(scaling: Mapping[str, Any] | None) -> str:
    """The name of a scaling, "default" for none.

    Args:
      scaling: `rope_scaling` of a Hugging Face config: "rope_type" (or "type") and its numbers.

    Returns:
      A key of `SCALINGS`.

    Raises:
      ValueError: The scaling is unknown or lacks a number that it needs.
    """
    kind = "default"
    if scaling is not None:
        kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise unknown("rope scaling", kind, SCALINGS)
    for name in SCALINGS[kind]:
        if name not in (scaling or {}):
            raise ValueError(f"rope scaling {kind!r} needs {name!r}, got {dict(scaling or {})}")
    return kind


def frequencies(
    width: int,
    theta: float,
    *,
    scaling: Mapping[str, Any] | None = None,
    trained: int = 0,
    length: jax.Array | int = 0,
) -> Float[Array, "f"]:
    """Angles that one position turns, one for each pair of a head's components.

    Args:
      width: Width of a head, an even number; f is half of it.
      theta: Base of the geometric series.
      scaling: How frequencies are lowered: none; "linear" divides all by the factor; "dynamic"
        raises the base with `length` beyond `trained`; "llama3" divides the slow ones only.
      trained: Longest text of training in tokens, read by "dynamic".
      length: Length of this text, read by "dynamic".

    Returns:
      The angles in radians, float32.

    Raises:
      ValueError: An odd width, or a scaling that is not as described.

    Source: linear, position interpolation (Chen et al., 2023); dynamic, NTK-aware scaling (Peng et
      al., YaRN, 2023, appendix B); llama3 as the Llama 3.1 models define it.
    """
    if width % 2:
        raise ValueError(f"rotary positions need heads of even width, got {width}")
    kind = scaling_kind(scaling)
    options = scaling or {}
    base: jax.Array | float = theta
    if kind == "dynamic":
        factor = options["factor"]
        stretch = factor * jnp.maximum(length, trained) / trained - (factor - 1)
        base = theta * stretch ** (width / (width - 2))
    found = 1.0 / base ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if kind == "linear":
        return found / options["factor"]
    if kind != "llama3":
        return found
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    turns = options["original_max_position_embeddings"] * found / (2 * math.pi)
    fast = jnp.clip((turns - low) / (high - low), 0, 1)  # 0: divided by the factor, 1: kept
    return found * (fast + (1 - fast) / options["factor"])


def rotate(
    x: Float[Array, "b t h k"], positions: Num[Array, "#b t"], frequency: Float[Array, "f"]
) -> Float[Array, "b t h k"]:
    """Turns each pair (i, i + k/2) of a head's components by position times frequency.

    Args:
      x: Queries or keys.
      positions: Position of every token; may be fractional.
      frequency: Of every pair.

    Returns:
      The rotated heads in the dtype of `x`; angles and products are float32.
    """
    angle = positions[..., None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
