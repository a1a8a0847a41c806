"""Exits: small networks from the stages of an encoder to logits, while it is trained."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models import layers
from rml.models.conv import Conv
from rml.models.depthwise import DepthwiseConv
from rml.models.transformer import run_blocks
from rml.models.vit import Block

_CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_DENSE_INIT = nn.initializers.truncated_normal(0.02)
_EPSILON = 1e-5


class ConvExit(nn.Module):
    """Logits of a map: it is halved by separable convolutions and averaged over positions.

    A halving is a depthwise convolution of stride 2 and one of stride 1, each of 3x3 and followed
    by one of 1x1, BatchNorm and ReLU. Each doubles the channels, the last one has `width`. All
    convolutions are drawn by He's rule for fan-outs, which of a depthwise one counts all channels,
    and the linear map from a truncated normal of deviation 0.02.

    Attributes:
      halvings: Number of halvings; without any there is one convolution of 1x1.
      width: Channels of the last map, the larger of the student's and the teacher's features.
      classes: Number of classes.
      dtype: Compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: Hao et al., One-for-All, arXiv:2310.19444, and its public code (Hao840/OFAKD at
    f7bb896).
    """

    halvings: int
    width: int
    classes: int
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b k"]:
        """Computes logits of a map; `train` is whether BatchNorm takes the batch's statistics."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def separable(x: jax.Array, width: int, stride: int, name: str) -> jax.Array:
            x = DepthwiseConv(3, stride, 1, kernel_init=_CONV_INIT, name=f"depth{name}", **dtypes)(
                x
            )
            x = Conv(
                width, 1, 1, use_bias=False, kernel_init=_CONV_INIT, name=f"point{name}", **dtypes
            )(x)
            return nn.relu(layers.Norm(name=f"norm{name}", **dtypes)(x, train=train))

        for i in range(self.halvings):
            channels = x.shape[-1]
            x = separable(x, channels, 2, f"{i}a")
            x = separable(x, self.width if i == self.halvings - 1 else 2 * channels, 1, f"{i}b")
        if not self.halvings:
            x = Conv(self.width, 1, 1, kernel_init=_CONV_INIT, name="point", **dtypes)(x)
        return _logits(x.mean(axis=(1, 2)), self.classes, dtypes)


class TokenExit(nn.Module):
    """Logits of tokens: neighbours are merged down to a grid, then blocks attend.

    Merging puts four neighbours beside one another, normalises them and maps them to the width of
    one. GELU follows, but not the last of several mergings. Where the tokens are one more than a
    square, the first is a class token: it is not merged, and logits are read from it. All linear
    maps, those of the blocks too, are drawn from a truncated normal of deviation 0.02; norms add
    1e-5 to the variance.

    Attributes:
      blocks: Number of transformer blocks.
      classes: Number of classes.
      grid: Side of the grid that tokens are merged to; a larger one is halved while half of it
        has this side or more.
      heads: Attention heads of a block; they must divide the width of the tokens.
      dtype: Compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: Hao et al., One-for-All, arXiv:2310.19444, and its public code (Hao840/OFAKD at
    f7bb896).
    """

    blocks: int
    classes: int
    grid: int = 7
    heads: int = 4
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], *, train: bool = False) -> Float[Array, "b k"]:
        """Computes logits of tokens; `train` changes nothing.

        Raises:
          ValueError: The tokens are no square grid, one with an odd side is to be halved, or heads
            do not divide their width.
        """
        del train
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        b, count, width = x.shape
        first = math.isqrt(count) ** 2 != count
        side = math.isqrt(count - first)
        if side**2 != count - first or not side:
            raise ValueError(f"an exit reads a square grid of tokens, got {count} of them")
        token, x = x[:, : int(first)], x[:, int(first) :]
        merges = 0
        while side >= 2 * self.grid:
            if side % 2:
                raise ValueError(f"a grid of side {side} cannot be halved down to {self.grid}")
            side //= 2
            x = x.reshape(b, side, 2, side, 2, width).swapaxes(2, 3)
            x = x.reshape(b, side * side, 4 * width)
            x = layers.layer_norm(f"merge_norm{merges}", epsilon=_EPSILON, **dtypes)(x)
            x = layers.dense(
                width, ("mlp", "embed"), name=f"merge{merges}", use_bias=False,
                kernel_init=_DENSE_INIT, **dtypes,
            )(x)  # fmt: skip
            merges += 1
            if merges == 1 or side >= 2 * self.grid:
                x = layers.activation("gelu")(x)
        # Blocks pass on what they compute in: tokens may come in another type.
        kind = nn.dtypes.canonicalize_dtype(x, jnp.zeros((), self.param_dtype), dtype=self.dtype)
        x = jnp.concatenate([token.astype(kind), x.astype(kind)], axis=1)
        x, _ = run_blocks(
            Block, x, depth=self.blocks, scan=True, remat=False, heads=self.heads,
            epsilon=_EPSILON, kernel_init=_DENSE_INIT, **dtypes,
        )  # fmt: skip
        return _logits(x[:, 0] if first else x.mean(axis=1), self.classes, dtypes)


class Exits(nn.Module):
    """Exits from stages of an encoder, from their outputs to logits.

    Of S stages the exit at place k of 0 to S - 1 has S - 1 - k halvings where the stage is a map;
    where it is tokens, as many blocks, but one at least. This is so whether the others have exits
    or not.

    Attributes:
      classes: Number of classes.
      width: Channels of exits from maps, see `ConvExit`.
      stages: Numbers of those of the encoder's outputs that are its stages, such as blocks 1, 3, 9
        and 11 of a ViT with twelve; all if not given.
      chosen: Places among these stages, from 0, that have exits; all if not given.
      grid: Side of the grid that tokens are merged to, see `TokenExit`.
      heads: Attention heads of exits from tokens, see `TokenExit`.
      dtype: Compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: Hao et al., One-for-All, arXiv:2310.19444.
    """

    classes: int
    width: int
    stages: Sequence[int] | None = None
    chosen: Sequence[int] | None = None
    grid: int = 7
    heads: int = 4
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, stages: Sequence[Float[Array, "b ..."]], *, train: bool = False
    ) -> Float[Array, "e b k"]:
        """Computes the logits of all exits.

        Args:
          stages: Outputs of an encoder's stages, first to last, see `rml.models.Stages`.
          train: Whether BatchNorm uses (and updates) the statistics of this batch.

        Returns:
          Logits of each exit.

        Raises:
          ValueError: No stage is chosen or one twice, there is no such output or stage, one is
            neither a map nor tokens, or an exit refuses it.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        outputs = range(len(stages)) if self.stages is None else self.stages
        chosen = range(len(outputs)) if self.chosen is None else self.chosen
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(
                f"chosen is {tuple(chosen)}, expected different stages of {len(outputs)}, at least "
                "one"
            )
        found = []
        for k in chosen:
            if not 0 <= k < len(outputs):
                raise ValueError(f"stage {k} of {len(outputs)}, expected 0 to {len(outputs) - 1}")
            number, left = outputs[k], len(outputs) - 1 - k
            if not 0 <= number < len(stages):
                raise ValueError(
                    f"output {number} of {len(stages)}, expected 0 to {len(stages) - 1}"
                )
            x, name = stages[number], f"exit{number}"
            made: nn.Module
            if x.ndim == 4:
                made = ConvExit(left, self.width, self.classes, name=name, **dtypes)
            elif x.ndim == 3:
                made = TokenExit(
                    max(left, 1), self.classes, self.grid, self.heads, name=name, **dtypes
                )
            else:
                raise ValueError(f"stage {k} is {x.shape}, expected a map or tokens")
            found.append(made(x, train=train))
        return jnp.stack(found)


def _logits(x: jax.Array, classes: int, dtypes: dict[str, Any]) -> jax.Array:
    made = layers.dense(
        classes, ("embed", "classes"), name="out", kernel_init=_DENSE_INIT, **dtypes
    )
    return nn.with_logical_constraint(made(x), ("batch", "classes"))
