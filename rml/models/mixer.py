"""MLP-Mixer (Tolstikhin et al., 2021): patches, and perceptrons over tokens and over channels."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models import layers
from rml.models.conv import Conv, Implementation
from rml.models.transformer import run_blocks


class Mixer(nn.Module):
    """Encoder whose blocks mix tokens by one perceptron and channels by another.

    The perceptron over tokens binds the parameters to one image size.

    Attributes:
      width: token width.
      depth: number of blocks.
      token_hidden: hidden width of the perceptron over tokens.
      channel_hidden: hidden width of the perceptron over channels.
      patch_size: side of the square patches; images are zero-padded to a multiple of it.
      scan: run the blocks as one scanned block: compile time no longer grows with depth, and
        parameters are stacked on a leading "layers" axis.
      remat: recompute each block in the backward pass instead of keeping its activations.
      implementation: of the patch convolution, see `rml.models.conv.conv2d`.
      activation: name of the perceptrons' nonlinearity.
      epsilon: of the LayerNorms.
      classes: number of classes where logits are wanted in the place of features, else 0.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: Tolstikhin et al., MLP-Mixer: An all-MLP Architecture for Vision, arXiv:2105.01601,
    eq. 1.
    """

    width: int
    depth: int
    token_hidden: int
    channel_hidden: int
    patch_size: int = 16
    scan: bool = True
    remat: bool = False
    implementation: Implementation = "auto"
    activation: str = "gelu"
    epsilon: float = 1e-6
    classes: int = 0
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False, stages: bool = False
    ) -> Float[Array, "b d"] | layers.Stages:
        """Encodes a batch of images.

        Args:
          x: images [b, h, w, c] of at least 8x8 pixels.
          train: accepted for uniformity; the model has neither dropout nor BatchNorm.
          stages: whether each block's output [b, t, width] is returned beside the features.

        Returns:
          Features [b, width], the mean over tokens after the final LayerNorm, or logits
          [b, classes]; with `stages` as the first part of `Stages`.

        Raises:
          ValueError: the shape of `x` is not as described.
        """
        del train
        layers.check_image(x)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(
            self.width,
            self.patch_size,
            self.patch_size,
            implementation=self.implementation,
            name="patches",
            **dtypes,
        )(x)
        x = x.reshape(x.shape[0], -1, self.width)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        x, outputs = run_blocks(
            MixerBlock,
            x,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            token_hidden=self.token_hidden,
            channel_hidden=self.channel_hidden,
            activation=self.activation,
            epsilon=self.epsilon,
            outputs=stages,
            **dtypes,
        )
        x = layers.layer_norm("norm", epsilon=self.epsilon, **dtypes)(x).mean(axis=1)
        if self.classes:
            x = layers.dense(self.classes, ("embed", "classes"), name="head", **dtypes)(x)
        else:
            x = nn.with_logical_constraint(x, ("batch", "embed"))
        return layers.Stages(x, tuple(outputs)) if stages else x


class MixerBlock(nn.Module):
    """One block of `Mixer`, in the carry form that `nn.scan` reads.

    With `outputs` its result, which the scan stacks, is its output once more.
    """

    token_hidden: int
    channel_hidden: int
    activation: str = "gelu"
    epsilon: float = 1e-6
    outputs: bool = False
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], _: None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"] | None]:
        """Mixes tokens and then channels, each with its residual."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": self.epsilon, **dtypes}

        def mixed(x: jax.Array, hidden: int, axis: str, name: str) -> jax.Array:
            y = layers.dense(hidden, (axis, "mlp"), name=f"{name}_in", **dtypes)(x)
            y = layers.activation(self.activation)(y)
            y = nn.with_logical_constraint(y, ("batch", None, "mlp"))
            return layers.dense(x.shape[-1], ("mlp", axis), name=f"{name}_out", **dtypes)(y)

        y = layers.layer_norm("norm1", **norm)(x).swapaxes(1, 2)
        x = x + mixed(y, self.token_hidden, "length", "tokens").swapaxes(1, 2)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        y = layers.layer_norm("norm2", **norm)(x)
        x = x + mixed(y, self.channel_hidden, "embed", "channels")
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        return x, x if self.outputs else None


MixerS = functools.partial(Mixer, width=512, depth=8, token_hidden=256, channel_hidden=2048)
MixerB = functools.partial(Mixer, width=768, depth=12, token_hidden=384, channel_hidden=3072)
