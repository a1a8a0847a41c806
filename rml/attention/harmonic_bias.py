"""Attention whose logits fall with distance: ALiBi, and its combination with a harmonic series.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441. The abstract names a factored combination of rotary positions and ALiBi with a
harmonic series; both readings of it here are ours, and so is distance in both directions. Queries
and keys are rotated before they come here, as a decoder of `rml.models` does it.

ALiBi is of Press, Smith and Lewis, Train Short, Test Long: Attention with Linear Biases Enables
Input Length Extrapolation, arXiv:2108.12409, section 3.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, Float, Int, Key

from rml.errors import unknown
from rml.ops.attention_parts import OfPlaces, Visible
from rml.ops.blocked_attention import BLOCK, attend_in_blocks
from rml.ops.shapes import check_above_0, check_between, check_finite

Form = Literal["bias", "factor", "alibi"]
FORMS = ("bias", "factor", "alibi")
"""How logits fall: by slope times H_n, by division through 1 + slope n, by slope times n."""
SLOPES = ("harmonic", "geometric")


class Laws(NamedTuple):
    """What places do to logits, for `rml.models.attention.attend` and `attend_in_blocks`."""

    factor: OfPlaces | None = None
    bias: OfPlaces | None = None


def head_slopes(heads: int, kind: str) -> Float[np.ndarray, " h"]:
    """Computes slopes m of heads h = 1 to H: 1/h, or ALiBi's 2^(-8 h / H).

    Args:
      heads: Number of heads H.
      kind: "harmonic", which is ours, or "geometric".

    Raises:
      UserError: The kind is unknown.
      ValueError: There is no head.
    """
    if kind not in SLOPES:
        raise unknown("slopes", kind, SLOPES)
    check_above_0(heads=heads)
    h = np.arange(1, heads + 1)
    return 1.0 / h if kind == "harmonic" else 2.0 ** (-8.0 * h / heads)


def harmonic_numbers(n: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Computes H_n, the sum of 1/k for k from 1 to n, in float32; 0 for n = 0."""
    found = digamma(n.astype(jnp.float32) + 1.0) + np.float32(np.euler_gamma)
    return jnp.where(n > 0, found, 0.0)


def distance_laws(
    heads: int, *, form: str = "bias", slopes: str = "harmonic", strength: float = 1.0
) -> Laws:
    """Makes the law by which the logits of each head fall with the distance n = |i - j|.

    "bias" adds -m H_n, "alibi" adds -m n, "factor" multiplies by 1 / (1 + m n).

    Distance is that of places, and padding takes places: a text that is padded on the right does
    not go on as it would alone, since what follows stands behind the padding. Padding on the left
    moves all places alike.

    Args:
      heads: Number of heads of queries.
      form: One of `FORMS`.
      slopes: Kind of the slopes m, see `head_slopes`.
      strength: Factor of all slopes; with 0 nothing falls.

    Raises:
      UserError: The form or the kind of slopes is unknown.
      ValueError: The strength is negative or infinite, or there is no head.

    Example:
      >>> laws = distance_laws(9, form="alibi", slopes="geometric")
      >>> attention = functools.partial(attend, **laws._asdict())

    Source: bias and factor, our readings of arXiv:2410.18441, abstract; alibi, arXiv:2108.12409.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    check_between(0, strength=strength)
    check_finite(strength=strength)
    slope = strength * head_slopes(heads, slopes).astype(np.float32)[:, None, None]

    def distance(queries: Array, keys: Array) -> Array:
        return jnp.abs(queries[:, None] - keys)

    def factor(queries: Int[Array, " t"], keys: Int[Array, " s"]) -> Float[Array, "h t s"]:
        return 1.0 / (1.0 + jnp.asarray(slope) * distance(queries, keys))

    def bias(queries: Int[Array, " t"], keys: Int[Array, " s"]) -> Float[Array, "h t s"]:
        n = distance(queries, keys)
        return -jnp.asarray(slope) * (harmonic_numbers(n) if form == "bias" else n)

    return Laws(factor=factor) if form == "factor" else Laws(bias=bias)


def harmonic_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    rng: Key[Array, ""] | None = None,
    scale: float | None = None,
    form: str = "bias",
    slopes: str = "harmonic",
    strength: float = 1.0,
    block: int = BLOCK,
) -> Float[Array, "b h t v"]:
    """Attends by logits that fall with distance, a block at a time.

    Args:
      query: Queries, rotated where positions are to be rotary too.
      key: Keys, likewise; g divides h.
      value: Values.
      visible: Which keys a query may see; a window and a start are seen. Sinks beside a window
        whose start is an array are those of a cache, where places are no distances.
      rng: Accepted for uniformity; nothing is drawn.
      scale: Factor of the logits before they fall, at least 0; k^-1/2 by default.
      form: One of `FORMS`, see `distance_laws`.
      slopes: Kind of the slopes of heads.
      strength: Factor of all slopes; with 0 this is exact attention.
      block: Queries and keys of one block.

    Returns:
      Output, float32 or wider.

    Raises:
      UserError: The form or the kind of slopes is unknown.
      ValueError: The strength or the scale is negative, a shape is not as described, or there are
        sinks of a cache with a window.
    """
    del rng
    laws = distance_laws(query.shape[1], form=form, slopes=slopes, strength=strength)
    return attend_in_blocks(
        query, key, value, visible, scale=scale, block=block, factor=laws.factor, bias=laws.bias
    ).out


def alibi_attention(
    query: Float[Array, "b h t k"],
    key: Float[Array, "b g s k"],
    value: Float[Array, "b g s v"],
    visible: Visible = Visible(),  # noqa: B008
    *,
    rng: Key[Array, ""] | None = None,
    scale: float | None = None,
    strength: float = 1.0,
    block: int = BLOCK,
) -> Float[Array, "b h t v"]:
    """Attends with ALiBi's linear biases and geometric slopes, see `harmonic_attention`."""
    return harmonic_attention(
        query, key, value, visible, rng=rng, scale=scale, form="alibi", slopes="geometric",
        strength=strength, block=block,
    )  # fmt: skip
