"""One vector a text: a text model followed by pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.models.layers import unknown
from rml.ops.similarity import normalize

POOLINGS = ("mean", "cls", "last", "max")


class TextEncoder(nn.Module):
    """A text model and what makes one vector of its hidden states.

    Attributes:
      backbone: called as `backbone(tokens, mask, train=train)`, gives hidden states [b, t, d].
      pooling: "mean" or "max" over the text, "cls" (its first token) or "last" (its last, for
        decoders).
      normalize: scale every vector to unit length.
    """

    backbone: nn.Module
    pooling: str = "mean"
    normalize: bool = False

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b t"], mask: Bool[Array, "b t"], *, train: bool = False
    ) -> Float[Array, "b d"]:
        """Encodes a batch of texts.

        Args:
          tokens: Tokens.
          mask: Which of them are text rather than padding.
          train: Passed to the backbone.

        Returns:
          Features, pooled in float32 or wider; zeros for a text without tokens.

        Raises:
          ValueError: The pooling is unknown.
        """
        y = pool(self.backbone(tokens, mask, train=train), mask, self.pooling)
        y = normalize(y) if self.normalize else y
        return nn.with_logical_constraint(y, ("batch", "embed"))


def pool(x: Float[Array, "b t d"], mask: Bool[Array, "b t"], pooling: str) -> Float[Array, "b d"]:
    """Pools the hidden states that the mask shows to one vector, zeros where it shows none.

    Args:
      x: Hidden states.
      mask: Which of them count.
      pooling: "mean", "cls", "last" or "max".

    Returns:
      Vectors in float32 or wider.

    Raises:
      ValueError: The pooling is unknown.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    seen = mask[..., None]
    match pooling:
        case "mean":
            count = jnp.maximum(mask.sum(axis=1, dtype=x.dtype), 1)
            return jnp.sum(x * seen, axis=1) / count[:, None]
        case "max":
            y = jnp.max(jnp.where(seen, x, -jnp.inf), axis=1)
        case "cls":
            y = _take(x, jnp.argmax(mask, axis=1))
        case "last":
            y = _take(x, mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1))
        case _:
            raise unknown("pooling", pooling, POOLINGS)
    return jnp.where(mask.any(axis=1, keepdims=True), y, 0.0)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
