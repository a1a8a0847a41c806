"""Small strided convolutional encoder."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models import layers
from rml.models.conv import Conv, Implementation


class ConvNet(nn.Module):
    """Encoder of strided convolutions, one per stage, for small images.

    The defaults are made for 28x28 digits on a CPU: both stages halve the image, and the feature
    map is flattened rather than averaged, since where a stroke lies tells digits apart.

    Attributes:
      widths: output channels of each stage.
      kernel_sizes: kernel size of each stage.
      strides: stride of each stage.
      norm: normalisation after each convolution: "batch", "layer", "group" or "none".
      pooling: "flatten" (the output then depends on the image size) or "mean" over positions.
      features: width of the linear output layer; None returns the pooled feature map.
      activation: name of the nonlinearity, see `rml.models.layers.activation`.
      implementation: of the convolution, see `rml.models.conv.conv2d`.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.
    """

    widths: Sequence[int] = (32, 64)
    kernel_sizes: Sequence[int] = (5, 3)
    strides: Sequence[int] = (2, 2)
    norm: layers.NormKind = "batch"
    pooling: str = "flatten"
    features: int | None = 128
    activation: str = "relu"
    implementation: Implementation = "auto"
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False, stages: bool = False
    ) -> Float[Array, "b d"] | layers.Stages:
        """Encodes a batch of images.

        Args:
          x: images [b, h, w, c] of at least 8x8 pixels.
          train: whether BatchNorm uses (and updates) the statistics of this batch.
          stages: whether each stage's feature map is returned beside the features.

        Returns:
          Features [b, features], with `stages` as the first part of `Stages`.

        Raises:
          ValueError: the stages' options differ in length, or an option or `x` is not as described.
        """
        layers.check_image(x)
        if not len(self.widths) == len(self.kernel_sizes) == len(self.strides):
            raise ValueError(
                "ConvNet needs one width, kernel size and stride per stage, got "
                f"widths={tuple(self.widths)}, kernel_sizes={tuple(self.kernel_sizes)}, "
                f"strides={tuple(self.strides)}"
            )
        if self.pooling not in ("flatten", "mean"):
            raise layers.unknown("pooling", self.pooling, ("flatten", "mean"))
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        act = layers.activation(self.activation)
        found = []
        plan = zip(self.widths, self.kernel_sizes, self.strides, strict=True)
        for i, (width, size, stride) in enumerate(plan):
            x = Conv(
                width,
                size,
                stride,
                use_bias=self.norm == "none",
                implementation=self.implementation,
                name=f"conv{i}",
                **dtypes,
            )(x)
            x = act(layers.Norm(self.norm, name=f"norm{i}", **dtypes)(x, train=train))
            found.append(x)
        x = x.reshape(x.shape[0], -1) if self.pooling == "flatten" else x.mean(axis=(1, 2))
        if self.features is not None:
            x = layers.dense(self.features, ("mlp", "embed"), name="out", **dtypes)(x)
        x = nn.with_logical_constraint(x, ("batch", "embed"))
        return layers.Stages(x, tuple(found)) if stages else x
