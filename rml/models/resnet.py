"""Residual networks (He et al., 2016) with one of several stems."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models import layers
from rml.models.conv import Conv, Implementation

STEMS = ("imagenet", "cifar", "cifar_pool")


class ResNet(nn.Module):
    """Residual encoder; its features are the mean over positions of the last feature map.

    With a bottleneck the stride lies in the 3x3 convolution, as in torchvision ("v1.5").

    Attributes:
      depths: residual blocks in each stage.
      bottleneck: 1x1-3x3-1x1 blocks of four times the width instead of two 3x3 convolutions.
      width: channels of the first stage; each later stage doubles them.
      stem: "imagenet" (7x7 stride 2 and 3x3 max-pool stride 2), "cifar" (3x3 stride 1), or
        "cifar_pool" ("cifar" and the max-pool of "imagenet").
      zero_init: start the last scale of each block at zero, so each block starts as the identity
        (Goyal et al., 2017, section 5.1).
      classes: number of classes where logits are wanted in the place of features, else 0.
      implementation: of the convolution, see `rml.models.conv.conv2d`.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.
    """

    depths: Sequence[int]
    bottleneck: bool = False
    width: int = 64
    stem: str = "imagenet"
    zero_init: bool = True
    classes: int = 0
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
          stages: whether each stage's last feature map is returned beside the features.

        Returns:
          Features [b, width * 2 ** (len(depths) - 1) * (4 if bottleneck else 1)], or logits
          [b, classes]; with `stages` as the first part of `Stages`.

        Raises:
          ValueError: `stem` or the shape of `x` is not as described.
        """
        layers.check_image(x)
        if self.stem not in STEMS:
            raise layers.unknown("stem", self.stem, STEMS)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: Callable[..., Conv] = functools.partial(
            _conv, implementation=self.implementation, **dtypes
        )
        large = self.stem == "imagenet"
        x = conv(self.width, 7 if large else 3, 2 if large else 1, name="stem")(x)
        x = nn.relu(layers.Norm(name="stem_norm", **dtypes)(x, train=train))
        if self.stem != "cifar":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        found = []
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                x = ResidualBlock(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    bottleneck=self.bottleneck,
                    zero_init=self.zero_init,
                    implementation=self.implementation,
                    name=f"stage{stage}_block{i}",
                    **dtypes,
                )(x, train=train)
            found.append(x)
        x = x.mean(axis=(1, 2))
        if self.classes:
            x = layers.dense(self.classes, ("embed", "classes"), name="head", **dtypes)(x)
        else:
            x = nn.with_logical_constraint(x, ("batch", "embed"))
        return layers.Stages(x, tuple(found)) if stages else x


class ResidualBlock(nn.Module):
    """One residual block, basic or bottleneck; see `ResNet` for the attributes."""

    width: int
    stride: int = 1
    bottleneck: bool = False
    zero_init: bool = True
    implementation: Implementation = "auto"
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b oh ow o"]:
        """Applies the block."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: Callable[..., Conv] = functools.partial(
            _conv, implementation=self.implementation, **dtypes
        )
        norm = functools.partial(layers.Norm, **dtypes)
        out = self.width * (4 if self.bottleneck else 1)
        plan = (
            [(self.width, 1, 1), (self.width, 3, self.stride), (out, 1, 1)]
            if self.bottleneck
            else [(self.width, 3, self.stride), (out, 3, 1)]
        )
        y = x
        for i, (features, size, stride) in enumerate(plan):
            last = i == len(plan) - 1
            init = nn.initializers.zeros if last and self.zero_init else nn.initializers.ones
            y = conv(features, size, stride, name=f"conv{i}")(y)
            y = norm(scale_init=init, name=f"norm{i}")(y, train=train)
            y = y if last else nn.relu(y)
        if x.shape != y.shape:
            x = conv(out, 1, self.stride, name="shortcut")(x)
            x = norm(name="shortcut_norm")(x, train=train)
        return nn.relu(x + y)


def _conv(features: int, size: int, stride: int, **options: Any) -> Conv:
    return Conv(
        features,
        size,
        stride,
        padding=size // 2,  # symmetric, as in torchvision; "SAME" is not for even sizes, stride 2
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        **options,
    )


ResNet18 = functools.partial(ResNet, depths=(2, 2, 2, 2))
ResNet34 = functools.partial(ResNet, depths=(3, 4, 6, 3))
ResNet50 = functools.partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True)
