"""Options with which methods of attention see equally many keys a query, on average."""

from typing import Any

import numpy as np

from rml.attention.hyper_samples import HyperSettings
from rml.errors import UserError


def keys_of(config: Any, n: int) -> float:
    """Keys that a query of HyperAttention's sees on average over a causal text of n tokens."""
    piece, levels = pieces(n, config.least)
    return (piece + 1) / 2 + levels * (config.block + config.samples) / 2


def pieces(n: int, least: int) -> tuple[float, int]:
    """Length of the exact pieces of a causal text, and number of levels at which it is halved."""
    levels = max(0, int(np.ceil(np.log2(n / least))))
    return n / 2**levels, levels


def options_of(config: Any, name: str, choice: Any, n: int) -> dict[str, Any]:
    """Options of a method at the keys of `keys_of`.

    Args:
      config: The run's config.
      name: The method.
      choice: What is chosen on validation: of HyperAttention the longest exact piece, and the
        share of blocks in the other keys; of uniform samples the longest exact piece; of the window
        its sinks; of Performer its features.
      n: Number of tokens.

    Raises:
      UserError: If a longest exact piece is the whole text, or leaves no other key, or the share of
        blocks is no such one.
    """
    keys = keys_of(config, n)
    if name in ("hyperattention", "uniform"):
        least, share = choice if name == "hyperattention" else (choice, 0.0)
        piece, levels = pieces(n, least)
        if not levels:
            raise UserError(
                f"tries.{name} has a longest exact piece of {least}, expected less than the {n} "
                "tokens of a text"
            )
        others = round((keys - (piece + 1) / 2) * 2 / levels)
        if others < 1:
            raise UserError(
                f"tries.{name} has a longest exact piece of {least}, expected less: at {n} tokens "
                f"it has {(piece + 1) / 2:.0f} of {keys:.0f} keys and leaves none to samples"
            )
        if name == "uniform":
            return {"settings": HyperSettings(0, samples=others, least=least)}
        block = round(share * others)
        if not 1 <= block <= others:
            raise UserError(
                f"tries.hyperattention has a share of {share}, expected one that gives blocks 1 to "
                f"all of {others} keys, got {block}"
            )
        return {"settings": HyperSettings(config.planes, block, others - block, least)}
    if name == "window":
        return {"width": window_width(keys, n, sinks=choice), "sinks": choice}
    return {"features": choice}


def window_width(keys: float, n: int, *, sinks: int) -> int:
    """Width of the window in which a query of a causal text sees so many keys on average.

    Args:
      keys: Number of keys.
      n: Number of tokens.
      sinks: Number of first tokens that are seen beyond the window.
    """
    width = np.arange(1, n + 1)
    mean = (width * (width + 1) / 2 + (n - width) * (width + sinks)) / n
    return int(width[np.argmin(np.abs(mean - keys))])


def window_keys(width: int, n: int, *, sinks: int) -> float:
    """Number of keys that a query of a causal text sees on average by a window with sinks.

    Args:
      width: Width of the window.
      n: Number of tokens.
      sinks: Number of first tokens that are seen beyond the window.
    """
    return float(np.minimum(np.arange(1, n + 1), width + sinks).mean())
