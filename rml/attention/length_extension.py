"""Positions that teach a model with rotary positions to read texts longer than its windows.

E²-LLM (Liu et al., Findings of ACL 2024, arXiv:2401.06951) trains on short texts whose positions
are divided by a scale and moved by an offset, both drawn anew for every text. PoSE (Zhu et al.,
ICLR 2024, arXiv:2309.10400) skips positions between pieces of a short text. Position interpolation
(Chen et al., 2023, arXiv:2306.15595) divides the positions of long texts. All give the `positions`
of `rml.models.Llama`, which are float32: at 80,000 tokens bfloat16 tells no neighbours apart.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

SINKS = 4
"""First tokens that no offset moves, since all later ones attend to them much (E²-LLM, eq. 7)."""


def sample_positions(
    key: Key[Array, ""],
    batch: int,
    length: int,
    *,
    window: int,
    largest: int,
    least: int = 1,
    sinks: int = SINKS,
    offset: bool = True,
    mask: Bool[Array, "b t"] | None = None,
) -> Float[Array, "b t"]:
    """Draws the positions of short training texts as E²-LLM does: (m + t) / g at token m.

    The scale g is uniform on `least` to `largest`. The offset t is 0 for the first `sinks` tokens
    and T for the others, T uniform on 0 to g · window - length, so that the last position stays
    below `window`. Distances between later tokens are m - n over g: an offset acts only through the
    distance to the first tokens. The paper draws "for every iteration" and "for different samples";
    here each text has a draw of its own. Its R of 8,192 at an L of 4,096 would give offsets below 0
    at a scale of 1; here texts are at most as long as the least scale times the window.

    Args:
      key: Random key.
      batch: Number of texts.
      length: Tokens of a text, the paper's R.
      window: Window of the model that is extended, the paper's L.
      largest: Largest scale.
      least: Least scale; `largest` for a scale that stays, the ablation of the scale.
      sinks: First tokens that are not moved.
      offset: Whether tokens are moved; the ablation of the offset where not.
      mask: Which tokens are text rather than padding, on either side; all if not given.

    Returns:
      Positions, float32.

    Raises:
      ValueError: Scales that are not 1 ≤ least ≤ largest, texts longer than least · window, or a
        mask of texts of another length.

    Source: E²-LLM, section 3.2, equations 5 to 8 and algorithm 1.
    """
    if not 1 <= least <= largest:
        raise ValueError(f"scales are {least} to {largest}, expected 1 <= least <= largest")
    _check_length(length, least * window, f"least={least} times window={window}")
    if sinks < 0:
        raise ValueError(f"sinks={sinks}, expected at least 0")
    of_scale, of_offset = jax.random.split(key)
    g = jax.random.randint(of_scale, (batch, 1), least, largest + 1)
    m = _places(length, mask)
    moved = jnp.where(
        m < sinks, 0, jax.random.randint(of_offset, g.shape, 0, g * window - length + 1)
    )
    return (m + moved * offset) / g.astype(jnp.float32)


def interpolated_positions(
    length: int,
    *,
    window: int,
    scale: float | None = None,
    mask: Bool[Array, "b t"] | None = None,
) -> Float[Array, "#b t"]:
    """Divides positions so that a long text stays within the window.

    Where the scale stays, a model does the same by itself:
    `module.clone(rope_scaling={"rope_type": "linear", "factor": scale})`.

    Args:
      length: Tokens of the text.
      window: Window of the model.
      scale: What positions are divided by; None takes ⌈length / window⌉, at least 1. A cache keeps
        keys as they were turned: with one, take the scale of the longest text to come.
      mask: Which tokens are text rather than padding, on either side; all if not given. Padding
        counts in the length.

    Returns:
      Positions of all texts of this length, or of each where there is a mask, float32.

    Raises:
      ValueError: A window or a scale below 1, or a mask of texts of another length.

    Source: position interpolation, equation 4 of E²-LLM; that the scale follows the length is said
      in section 3.2 there, the formula is ours.
    """
    if window < 1:
        raise ValueError(f"window={window}, expected at least 1")
    if scale is None:
        scale = max(1, math.ceil(length / window))
    if scale < 1:
        raise ValueError(f"scale={scale:g}, expected at least 1")
    return _places(length, mask).astype(jnp.float32) / scale


def pose_positions(
    key: Key[Array, ""],
    batch: int,
    length: int,
    *,
    window: int,
    scale: int,
    pieces: int = 2,
) -> Float[Array, "b t"]:
    """Draws the positions of short training texts as PoSE does: pieces with skips between them.

    Each text is cut into pieces at places drawn without repetition. Piece i > 0 begins u_i later
    than it would, u_i uniform on u_(i-1) to scale · window - length. As PoSE does for long
    extensions, all positions are divided by the scale. The tokens stay consecutive.

    Args:
      key: Random key.
      batch: Number of texts.
      length: Tokens of a text.
      window: Window of the model that is extended.
      scale: How many windows the positions shall reach over.
      pieces: Pieces of a text; the paper recommends 2.

    Returns:
      Positions, float32.

    Raises:
      ValueError: A scale below 1, fewer pieces than 1 or more than tokens, or texts longer than
        scale · window.

    Source: PoSE, section 3.2, equations 3 to 6; that cuts are equally likely everywhere is ours.
    """
    if scale < 1:
        raise ValueError(f"scale={scale}, expected at least 1")
    if not 1 <= pieces <= length:
        raise ValueError(f"pieces={pieces}, expected 1 to the {length} tokens of a text")
    _check_length(length, scale * window, f"scale={scale} times window={window}")

    def draw(key: Array) -> Array:
        of_cuts, of_skips = jax.random.split(key)
        cuts = jax.random.choice(of_cuts, jnp.arange(1, length), (pieces - 1,), replace=False)
        most, m = scale * window - length, jnp.arange(length)
        skips = [jnp.zeros((), jnp.int32)]
        for one in jax.random.split(of_skips, pieces - 1):
            skips.append(jax.random.randint(one, (), skips[-1], most + 1))
        piece = (m[:, None] >= cuts).sum(axis=1)
        return (m + jnp.stack(skips)[piece]) / jnp.float32(scale)

    return jax.vmap(draw)(jax.random.split(key, batch))


def _places(length: int, mask: Bool[Array, "b t"] | None) -> Num[Array, "#b t"]:
    """Places of tokens among those of their text; padding has that of the token before it."""
    if mask is None:
        return jnp.arange(length)[None]
    if mask.shape[1] != length:
        raise ValueError(f"mask has shape {mask.shape}, expected length={length} tokens a text")
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def _check_length(length: int, most: int, of: str) -> None:
    if not 1 <= length <= most:
        raise ValueError(f"length={length}, expected 1 to {most}, {of}")
