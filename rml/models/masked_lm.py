"""The head of a masked language model: tokens from hidden states."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models.layers import Dtype, activation, dense, layer_norm
from rml.models.self_attention import MATRIX_INIT


class MaskedLMHead(nn.Module):
    """Logits of tokens: a dense layer, its norm, and the encoder's own table of tokens.

    Attributes:
      activation: name of the nonlinearity.
      epsilon: of the LayerNorm.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: BERT (Devlin et al., 2019), section 3.1, with the layers of the authors' code.
    """

    activation: str = "gelu"
    epsilon: float = 1e-12
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b p d"], table: Float[Array, "v d"]
    ) -> Float[Array, "b p v"]:
        """Scores every token at every place.

        Args:
          x: Hidden states of the places to predict.
          table: The encoder's vectors of tokens.

        Returns:
          Logits in float32 or wider.
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = dense(
            x.shape[-1], ("embed", "mlp"), name="dense", kernel_init=MATRIX_INIT, **dtypes
        )(x)  # fmt: skip
        x = layer_norm("norm", epsilon=self.epsilon, **dtypes)(activation(self.activation)(x))
        bias: Any = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)),
            (len(table),),
            self.param_dtype,
        )
        logits = jnp.einsum("bpd,vd->bpv", x, table.astype(x.dtype))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) + bias
        return nn.with_logical_constraint(logits, ("batch", None, "vocab"))
