"""Multi-layer perceptron encoder."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models import layers


class MLP(nn.Module):
    """Encoder that flattens its input and alternates Dense, normalisation and activation.

    Attributes:
      hidden: widths of the hidden layers.
      features: width of the linear output layer.
      norm: normalisation after each hidden Dense: "batch", "layer", "group" or "none".
      activation: name of the nonlinearity, see `rml.models.layers.activation`.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.
    """

    hidden: Sequence[int] = (512, 512)
    features: int = 128
    norm: layers.NormKind = "none"
    activation: str = "relu"
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ..."], *, train: bool = False, stages: bool = False
    ) -> Float[Array, "b d"] | layers.Stages:
        """Encodes a batch of images or vectors.

        Args:
          x: images [b, h, w, c] or vectors [b, n]; every axis but the first is flattened.
          train: whether BatchNorm uses (and updates) the statistics of this batch.
          stages: whether the hidden layers' outputs are returned beside the features.

        Returns:
          Features [b, features], with `stages` as the first part of `Stages`.
        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        act = layers.activation(self.activation)
        x = x.reshape(x.shape[0], -1)
        # Neighbouring layers share one name, so a partitioned width needs one reduction per pair.
        axes = ("embed", "mlp")
        found = []
        for i, width in enumerate(self.hidden):
            bias = self.norm == "none"
            x = layers.dense(width, axes, name=f"dense{i}", use_bias=bias, **dtypes)(x)
            x = layers.Norm(self.norm, axis=axes[1], name=f"norm{i}", **dtypes)(x, train=train)
            x = nn.with_logical_constraint(act(x), ("batch", axes[1]))
            found.append(x)
            axes = axes[::-1]
        x = layers.dense(self.features, axes, name="out", **dtypes)(x)
        x = nn.with_logical_constraint(x, ("batch", axes[1]))
        return layers.Stages(x, tuple(found)) if stages else x
