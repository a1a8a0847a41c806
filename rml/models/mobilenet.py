"""Networks of inverted residual blocks: MobileNetV2, EfficientNet and EfficientNet-Lite0.

M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
M. Tan and Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
ICML 2019; the Lite variants leave out squeeze-and-excitation and bound activations by 6.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models import layers
from rml.models.conv import Conv
from rml.models.depthwise import DepthwiseConv


class Stage(NamedTuple):
    """Blocks of one width.

    Attributes:
      expansion: Channels inside a block by those at its input.
      features: Channels at its output.
      blocks: Number of blocks.
      stride: Stride of the first one.
      kernel: Side of the depthwise kernel.
    """

    expansion: int
    features: int
    blocks: int
    stride: int
    kernel: int = 3


class MobileNet(nn.Module):
    """Inverted residual encoder; its features are the mean over positions of the last map.

    Attributes:
      stages: Blocks of each width.
      stem: Channels of the first convolution, of stride 2.
      features: Channels of the last map.
      padding: "SAME", as TensorFlow pads, or "symmetric", as torchvision does.
      epsilon: Added to the variance in BatchNorm.
      activation: Name of the nonlinearity.
      squeeze: Whether each block weighs its channels by their means (squeeze and excitation).
      layer: Name of the stage whose output's mean is wanted: "stem", "stage0" and so on, or "last";
        what comes after it is not computed.
      classes: Number of classes where logits are wanted in the place of features, else 0.
      dtype: Compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.
    """

    stages: Sequence[Stage]
    stem: int = 32
    features: int = 1280
    padding: str = "SAME"
    epsilon: float = 1e-5
    activation: str = "relu6"
    squeeze: bool = False
    layer: str = "last"
    classes: int = 0
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the stages that features can be taken after, in order."""
        return ("stem", *(f"stage{number}" for number in range(len(self.stages))), "last")

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b d"]:
        """Encodes a batch of images.

        Args:
          x: Images [b, h, w, c], normalised as the weights want them.
          train: Whether BatchNorm uses (and updates) the statistics of this batch.

        Returns:
          Features [b, features], those of an earlier layer [b, its channels], or logits
          [b, classes].

        Raises:
          ValueError: `padding`, `layer` or the shape of `x` is not as described, or classes are
            asked of an earlier layer.
        """
        layers.check_image(x)
        if self.padding not in ("SAME", "symmetric"):
            raise layers.unknown("padding", self.padding, ("SAME", "symmetric"))
        if self.layer not in self.layer_names:
            raise layers.unknown("layer", self.layer, self.layer_names)
        if self.classes and self.layer != "last":
            raise ValueError(f"classes={self.classes} need layer='last', got layer={self.layer!r}")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shared: dict[str, Any] = {
            "padding": self.padding, "epsilon": self.epsilon, "activation": self.activation,
            **dtypes,
        }  # fmt: skip
        x = ConvNorm(self.stem, 3, 2, name="stem", **shared)(x, train=train)
        for number, stage in enumerate(self.stages[: self.layer_names.index(self.layer)]):
            for block in range(stage.blocks):
                x = InvertedResidual(
                    stage.features,
                    stage.expansion,
                    stage.stride if block == 0 else 1,
                    stage.kernel,
                    squeeze=self.squeeze,
                    name=f"stage{number}_block{block}",
                    **shared,
                )(x, train=train)
        if self.layer == "last":
            x = ConvNorm(self.features, 1, 1, name="last", **shared)(x, train=train)
        x = x.mean(axis=(1, 2))
        if self.classes:
            return nn.Dense(self.classes, name="head", **dtypes)(x)
        return nn.with_logical_constraint(x, ("batch", "embed"))


class InvertedResidual(nn.Module):
    """Expands, filters each channel for itself, and projects without activation.

    See `MobileNet` and `Stage` for the attributes.
    """

    features: int
    expansion: int
    stride: int
    kernel: int
    padding: str = "SAME"
    epsilon: float = 1e-5
    activation: str = "relu6"
    squeeze: bool = False
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w i"], *, train: bool = False
    ) -> Float[Array, "b oh ow o"]:
        """Applies the block."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shared: dict[str, Any] = {
            "padding": self.padding, "epsilon": self.epsilon, "activation": self.activation,
            **dtypes,
        }  # fmt: skip
        inner, y = x.shape[-1] * self.expansion, x
        if self.expansion > 1:
            y = ConvNorm(inner, 1, 1, name="expand", **shared)(y, train=train)
        y = ConvNorm(inner, self.kernel, self.stride, depthwise=True, name="depthwise", **shared)(
            y, train=train
        )
        if self.squeeze:
            means = y.mean(axis=(1, 2), keepdims=True)
            narrow = Conv(max(1, x.shape[-1] // 4), 1, 1, name="squeeze", **dtypes)(means)
            narrow = layers.activation(self.activation)(narrow)
            y = y * nn.sigmoid(Conv(inner, 1, 1, name="excite", **dtypes)(narrow))
        shared["activation"] = "identity"
        y = ConvNorm(self.features, 1, 1, name="project", **shared)(y, train=train)
        return x + y if self.stride == 1 and x.shape == y.shape else y


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and activation."""

    features: int
    kernel: int
    stride: int
    depthwise: bool = False
    padding: str = "SAME"
    epsilon: float = 1e-5
    activation: str = "relu6"
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w i"], *, train: bool = False
    ) -> Float[Array, "b oh ow o"]:
        """Applies the three."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        padding = "SAME" if self.padding == "SAME" else self.kernel // 2
        if self.depthwise:
            x = DepthwiseConv(self.kernel, self.stride, padding, name="conv", **dtypes)(x)
        else:
            x = Conv(
                self.features, self.kernel, self.stride, padding, use_bias=False, name="conv",
                **dtypes,
            )(x)  # fmt: skip
        norm = layers.Norm(momentum=0.99, epsilon=self.epsilon, name="norm", **dtypes)
        x = norm(x, train=train)
        return layers.activation(self.activation)(x)


EfficientNetLite0 = functools.partial(
    MobileNet,
    stages=(
        Stage(1, 16, 1, 1),
        Stage(6, 24, 2, 2),
        Stage(6, 40, 2, 2, 5),
        Stage(6, 80, 3, 2),
        Stage(6, 112, 3, 1, 5),
        Stage(6, 192, 4, 2, 5),
        Stage(6, 320, 1, 1),
    ),
    epsilon=1e-3,
)
MobileNetV2 = functools.partial(
    MobileNet,
    stages=(
        Stage(1, 16, 1, 1),
        Stage(6, 24, 2, 2),
        Stage(6, 32, 3, 2),
        Stage(6, 64, 4, 2),
        Stage(6, 96, 3, 1),
        Stage(6, 160, 3, 2),
        Stage(6, 320, 1, 1),
    ),
    padding="symmetric",
)
