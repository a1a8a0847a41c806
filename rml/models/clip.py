"""CLIP's text tower (Radford et al., 2021); its image tower is a `ViT` with `norm_first`."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.models import layers
from rml.models.attention import Attend
from rml.models.transformer import check_tokens, run_blocks, token_table
from rml.models.vit import Block


class ClipText(nn.Module):
    """Pre-norm causal transformer over tokens with learned positions, projected at each token.

    A text's vector is that at its last token, which has seen the whole text.

    Attributes:
      vocabulary: number of tokens.
      width: token width.
      depth: number of blocks.
      heads: attention heads; must divide `width`.
      projection: width of the space that images share.
      mlp_ratio: hidden width of the MLP over `width`.
      positions: longest text, in tokens.
      activation: name of the MLP's nonlinearity.
      epsilon: of the LayerNorms.
      attention: what attends, see `rml.models.attention.Attend`, or its name there, "fused"; None
        for JAX's own.
      scan: run the blocks as one scanned block, see `rml.models.transformer.run_blocks`.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype: compute dtype; None follows the parameters.
      param_dtype: dtype of the parameters.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    projection: int
    mlp_ratio: int = 4
    positions: int = 77
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    attention: Attend | str | None = None
    scan: bool = True
    remat: bool = False
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b t"],
        mask: Bool[Array, "b t"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b t d"]:
        """Encodes a batch of texts.

        Args:
          tokens: Tokens, each below `vocabulary`.
          mask: Which of them are text rather than padding, which follows the text: no token sees
            what comes after it, so that nothing need be hidden.
          train: Accepted for uniformity; the model has no dropout.

        Returns:
          Projected states [b, t, projection].

        Raises:
          ValueError: An option or a shape is not as described, or a text is too long.
        """
        del train
        check_tokens(tokens, mask)
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        length = tokens.shape[1]
        if length > self.positions:
            raise ValueError(f"{length} tokens are more than the {self.positions} positions")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = token_table(self.vocabulary, self.width, "vocab", name="tokens", **dtypes)(tokens)
        where = token_table(self.positions, self.width, "length", name="positions", **dtypes)
        x = nn.with_logical_constraint(x + where(jnp.arange(length)), ("batch", "length", "embed"))
        x, _ = run_blocks(
            Block,
            x,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            activation=self.activation,
            epsilon=self.epsilon,
            attention=self.attention or "xla",
            causal=True,
            **dtypes,
        )
        x = layers.layer_norm("norm", epsilon=self.epsilon, **dtypes)(x)
        axes = ("embed", "mlp")
        return layers.dense(self.projection, axes, name="projection", use_bias=False, **dtypes)(x)
