"""Self-attention by Combiner with the weights that some of its summaries have."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rml.attention.combiner import CombinerSettings, combiner_attention, projects
from rml.attention.combiner_summaries import DeepSet, RowProjection
from rml.models.self_attention import MATRIX_INIT, HeadDense
from rml.ops.attention_parts import Visible


class CombinerAttention(nn.Module):
    """Projections to queries, keys and values, `combiner_attention`, and the projection back.

    None of them has a bias, as in the authors' code. Keys of rows that are projected and DeepSets
    have weights here, which an attention of `rml.models` cannot have.

    Attributes:
      heads: Number of heads, a divisor of the width.
      settings: How tokens are cut and regions summarised.
      deep: Whether summaries are DeepSets.
      causal: Whether a token sees no later one.

    Source: Ren et al., arXiv:2107.05768, section 3, and the authors' code.
    """

    heads: int
    settings: CombinerSettings = CombinerSettings()
    deep: bool = False
    causal: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t d"]:
        """Attends.

        Args:
          x: Inputs.
          mask: Which of them are there rather than padding; all if not given.

        Raises:
          ValueError: The heads do not divide the width, a setting is not as described, or DeepSets
            are asked of "rowmajor", which does not pool.
        """
        d, h = x.shape[-1], self.heads
        if d % h:
            raise ValueError(f"heads={h} must divide the width of {d}")
        k = d // h
        dense = functools.partial(HeadDense, (h, k), ("embed", "heads", None), use_bias=False)
        query, key, value = (
            dense(name=name)(x).swapaxes(1, 2) for name in ("query", "key", "value")
        )

        def matrix(name: str, *shape: int) -> jax.Array:
            return self.param(name, MATRIX_INIT, shape)

        deep = projection = None
        if self.deep:
            deep = DeepSet(matrix("deep_query", k, k), matrix("deep_key", k, k))
        if projects(self.settings):
            projection = RowProjection(
                x,
                matrix("row_out", h, k, d),
                self.param("row_scale", nn.initializers.ones, (d,)),
                self.param("row_offset", nn.initializers.zeros, (d,)),
                matrix("row_key", d, h, k),
            )
        out = combiner_attention(
            query, key, value, Visible(mask, causal=self.causal), settings=self.settings,
            deep=deep, projection=projection,
        )  # fmt: skip
        out = out.swapaxes(1, 2).astype(jnp.promote_types(x.dtype, query.dtype))
        return HeadDense((d,), ("heads", None, "embed"), use_bias=False, name="out")(out)
