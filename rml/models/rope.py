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
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}

LENGTHS = ("short", "long")


def scaling_kind(scaling: Mapping[str, Any] | None) -> str:
    """Finds the name of a scaling, "default" for none.

    Args:
      scaling: `rope_scaling` of a Hugging Face config: "rope_type" (or "type") and its numbers.

    Returns:
      A key of `SCALINGS`.

    Raises:
      ValueError: The scaling is unknown, lacks a number that it needs, has a factor below 1, or has
        a band of frequencies that ends before it begins.
    """
    options = scaling or {}
    kind = options.get("rope_type", options.get("type", "default"))
    if kind not in SCALINGS:
        raise unknown("rope scaling", kind, SCALINGS)
    for name in SCALINGS[kind]:
        derived = kind == "yarn" and name in options  # a factor that is null, see `_ratio`
        if options.get(name) is None and not derived:
            raise ValueError(f"rope scaling {kind!r} needs {name!r}, got {dict(options)}")
    factor = options.get("factor")
    if factor is not None and factor < 1:
        raise ValueError(f"rope scaling {kind!r} has factor={factor:g}, expected at least 1")
    if kind == "llama3" and not options["low_freq_factor"] < options["high_freq_factor"]:
        raise ValueError(
            f"rope scaling 'llama3' has low_freq_factor={options['low_freq_factor']:g}, expected "
            f"less than high_freq_factor={options['high_freq_factor']:g}"
        )
    return kind


def longest(scaling: Mapping[str, Any] | None, trained: int) -> int | None:
    """Finds the length beyond which a text turns earlier tokens otherwise; None where none is."""
    kind, options = scaling_kind(scaling), scaling or {}
    if kind == "longrope" and tuple(options["short_factor"]) != tuple(options["long_factor"]):
        return int(options["original_max_position_embeddings"])
    return trained if kind == "dynamic" else None


def frequencies(
    width: int,
    theta: float,
    *,
    scaling: Mapping[str, Any] | None = None,
    trained: int = 0,
    length: Num[Array, "..."] | int = 0,
) -> Float[Array, "... f"]:
    """Computes the angles that one position turns, one for each pair of a head's components.

    Args:
      width: Width of a head, an even number; f is half of it.
      theta: Base of the geometric series.
      scaling: How frequencies are lowered: none; "linear" divides all by the factor; "dynamic"
        raises the base with `length` beyond `trained`; "llama3" and "yarn" divide the slow ones
        only; "longrope" divides each by a number of its own, one for texts of at most the original
        length and one for longer ones.
      trained: Longest text of training in tokens, read by "dynamic" and, where the scaling does not
        give the factor or the original length, by "yarn".
      length: Length of a text, or of each of several, read by "dynamic" and "longrope".

    Returns:
      The angles in radians, float32; of several texts a row for each where the scaling reads their
      lengths. (In transformers the longest text of a batch counts for all.)

    Raises:
      ValueError: An odd width, a scaling that is not as described or that has not one factor for
        each pair, or "dynamic" without the longest text of training.

    Source: linear, position interpolation (Chen et al., 2023); dynamic, NTK-aware scaling (Peng et
      al., YaRN, 2023, appendix B); yarn, section 3.2 there; longrope (Ding et al., 2024); llama3 as
      the Llama 3.1 models define it.
    """
    if width % 2:
        raise ValueError(f"rotary positions need heads of even width, got {width}")
    kind = scaling_kind(scaling)
    options = scaling or {}
    base: jax.Array | float = theta
    of_text = jnp.asarray(length)[..., None]
    if kind == "dynamic":
        if trained < 1:
            raise ValueError(f"rope scaling 'dynamic' has trained={trained}, expected at least 1")
        factor = options["factor"]
        stretch = factor * jnp.maximum(of_text, trained) / trained - (factor - 1)
        if width > 2:  # the one frequency of two channels is that of any base
            base = theta * stretch ** (width / (width - 2))
    found = 1.0 / base ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if kind == "linear":
        return found / options["factor"]
    if kind == "longrope":
        short, long = (jnp.asarray(options[f"{name}_factor"], jnp.float32) for name in LENGTHS)
        for name, factors in zip(LENGTHS, (short, long), strict=True):
            if factors.shape != found.shape:
                raise ValueError(
                    f"{name}_factor of rope scaling 'longrope' has shape {factors.shape}, expected "
                    f"{found.shape}: one for each pair of {width} components"
                )
        return found / jnp.where(of_text > options["original_max_position_embeddings"], long, short)
    if kind == "yarn":
        fast = _yarn_kept(width, theta, options, trained)
        return found * (fast + (1 - fast) / _ratio(options, trained))
    if kind != "llama3":
        return found
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    turns = options["original_max_position_embeddings"] * found / (2 * math.pi)
    fast = jnp.clip((turns - low) / (high - low), 0, 1)  # 0: divided by the factor, 1: kept
    return found * (fast + (1 - fast) / options["factor"])


def _ratio(options: Mapping[str, Any], trained: int) -> float:
    """Factor of a scaling; where it gives none, how much longer texts are than the original."""
    original = options.get("original_max_position_embeddings") or trained
    return float(options.get("factor") or trained / original)


def _yarn_kept(
    width: int, theta: float, options: Mapping[str, Any], trained: int
) -> Float[Array, " f"]:
    """Share of each frequency that is kept: 1 for those that turn often in the original text."""
    original = options.get("original_max_position_embeddings") or trained

    def pair(turns: float) -> float:
        """The pair of components that turns so often, as a fraction."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (
        pair(float(options.get(name) or default))
        for name, default in (("beta_fast", 32), ("beta_slow", 1))
    )
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 * (low == high)
    return 1 - jnp.clip((jnp.arange(width // 2, dtype=jnp.float32) - low) / (high - low), 0, 1)


def magnitude(scaling: Mapping[str, Any] | None, trained: int) -> float:
    """Computes the factor of rotated queries and keys: above 1 only for "yarn" and "longrope".

    Args:
      scaling: Scaling as in `frequencies`.
      trained: Longest text of training in tokens, read by both where the scaling gives no factor.

    Returns:
      The factor.

    Source: YaRN (Peng et al., 2023), section 3.4; LongRoPE (Ding et al., 2024).
    """
    kind, options = scaling_kind(scaling), scaling or {}
    if kind not in ("yarn", "longrope"):
        return 1.0
    if (given := options.get("attention_factor")) is not None:
        return float(given)
    if kind == "longrope":
        original, factor = options["original_max_position_embeddings"], _ratio(options, trained)
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))

    def grown(by: float) -> float:
        return 0.1 * by * math.log(max(_ratio(options, trained), 1.0)) + 1

    above, below = options.get("mscale"), options.get("mscale_all_dim")
    return grown(float(above)) / grown(float(below)) if above and below else grown(1.0)


def rotate(
    x: Float[Array, "b t h k"],
    positions: Num[Array, "#b t"],
    frequency: Float[Array, "... f"],
    scale: float = 1.0,
) -> Float[Array, "b t h k"]:
    """Turns each pair (i, i + k/2) of a head's components by position times frequency.

    Args:
      x: Queries or keys.
      positions: Position of every token; may be fractional.
      frequency: Frequency of every pair, of all texts or of each.
      scale: Factor of the result, see `magnitude`.

    Returns:
      The rotated heads in the dtype of `x`; angles and products are float32.
    """
    angle = positions[..., None].astype(jnp.float32) * frequency[..., None, :]
    cos, sin = scale * jnp.cos(angle)[:, :, None], scale * jnp.sin(angle)[:, :, None]
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
