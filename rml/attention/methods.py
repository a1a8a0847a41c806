"""Softmax attention, its approximations and its forms that fall with distance, by one signature.

`METHODS[name](query, key, value, visible, rng=key, **options)` takes queries [b, h, t, k], keys
[b, g, s, k] and values [b, g, s, v], and gives outputs [b, h, t, v] in float32 or wider. What a
method cannot see (a window, sinks) it refuses; it never attends to what is hidden.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rml.attention import combiner as regions
from rml.attention.block_law import block_law_attention
from rml.attention.harmonic_bias import alibi_attention, harmonic_attention
from rml.attention.hyper_samples import HyperSettings
from rml.attention.hyperattention import hyper_attention
from rml.attention.performer import gaussian_projection, performer_attention
from rml.attention.s2_attention import s2_attention
from rml.ops.attention_parts import Visible, check_attention
from rml.ops.blocked_attention import BLOCK, attend_in_blocks

Method = Callable[..., jax.Array]


def exact(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    rng: Key[Array, ""] | None = None,
    scale: float | None = None,
    block: int = BLOCK,
) -> Float[Array, "b h t v"]:
    """Attends by softmax a block at a time, see `rml.ops.attend_in_blocks`; draws nothing."""
    del rng
    return attend_in_blocks(query, key, value, visible, scale=scale, block=block).out


def window(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008
    *,
    rng: Key[Array, ""] | None = None,
    scale: float | None = None,
    width: int = 512,
    sinks: int = 4,
    block: int = BLOCK,
) -> Float[Array, "b h t v"]:
    """Attends to the nearest keys and the first ones: the simple baseline of sparse attention.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      visible: Padding and causality.
      rng: Accepted for uniformity; nothing is drawn.
      scale: Factor of the logits, at least 0; k^-1/2 by default.
      width: Number of last keys that a query sees, its own included, and as many later ones where
        attention is not causal.
      sinks: Number of first keys that every query sees.
      block: Queries and keys of one block.

    Raises:
      ValueError: If the width is not positive, a window is there already, or a shape or
        the scale is not as described.

    Source: StreamingLLM (Xiao et al., 2023, arXiv:2309.17453), section 3.2.
    """
    del rng
    if width < 1 or sinks < 0:
        raise ValueError(f"width={width} and sinks={sinks}, expected at least 1 and 0")
    if visible.window is not None:
        raise ValueError(f"window={visible.window} is there already, expected none")
    visible = visible._replace(window=width, sinks=sinks)
    return attend_in_blocks(query, key, value, visible, scale=scale, block=block).out


def hyperattention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008
    *,
    rng: Key[Array, ""],
    scale: float | None = None,
    settings: HyperSettings = HyperSettings(),  # noqa: B008
) -> Float[Array, "b h t v"]:
    """Attends by sorted blocks and samples of the rest, see `hyper_attention`."""
    return hyper_attention(query, key, value, visible, rng=rng, scale=scale, settings=settings).out


def performer(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008
    *,
    rng: Key[Array, ""],
    scale: float | None = None,
    features: int = 256,
) -> Float[Array, "b h t v"]:
    """Attends by positive orthogonal random features, see `performer_attention`.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      visible: Padding and causality.
      rng: Random key of the features.
      scale: Factor of the logits, at least 0; k^-1/2 by default.
      features: Number of random features.

    Raises:
      ValueError: If there is a window or a start, no feature, or a shape or the scale is not as
        described.
    """
    check_attention(query, key, value, visible, scale)
    visible.require_whole("performer")
    width, repeats = query.shape[-1], query.shape[1] // key.shape[1]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    if scale is not None:
        query = query * jnp.asarray(scale * width**0.5, query.dtype)
    key, value = (jnp.repeat(x, repeats, axis=1) for x in (key, value))
    projection = gaussian_projection(rng, features, width).astype(wide)
    here = None if visible.keys is None else jnp.asarray(visible.keys)[:, None]
    return performer_attention(
        query, key, value.astype(wide), projection, causal=visible.causal, here=here
    )


def combiner(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008
    *,
    rng: Key[Array, ""] | None = None,
    scale: float | None = None,
    settings: regions.CombinerSettings = regions.CombinerSettings(),  # noqa: B008
) -> Float[Array, "b h t v"]:
    """Attends to near tokens and summaries of regions, see `combiner_attention`; draws nothing."""
    del rng
    return regions.combiner_attention(query, key, value, visible, settings=settings, scale=scale)


METHODS: Mapping[str, Method] = {
    "exact": exact,
    "window": window,
    "hyperattention": hyperattention,
    "combiner": combiner,
    "performer": performer,
    "s2_attention": s2_attention,
    "harmonic": harmonic_attention,
    "alibi": alibi_attention,
    "block_law": block_law_attention,
}
"""Attention by name."""
