"""Vision transformer (Dosovitskiy et al., 2021)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rml.models import layers
from rml.models.attention import Attend, attend_to_all, named
from rml.models.conv import Conv, Implementation
from rml.models.self_attention import HeadDense, HeadEdits, edited
from rml.models.transformer import check_edits, run_blocks
from rml.ops.attention_parts import Visible

# U(-sqrt(3 / n), sqrt(3 / n)): Xavier's rule for each n x n matrix of query, key, value, output.
_SQUARE_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class ViT(nn.Module):
    """Pre-norm transformer encoder over image patches.

    Attributes:
      width: token width.
      depth: number of blocks.
      heads: attention heads; must divide `width`.
      mlp_ratio: hidden width of the MLP over `width`.
      patch_size: side of the square patches; images are zero-padded to a multiple of it.
      pooling: "cls" (a learned token) or "gap" (mean over patch tokens, no cls token).
      positions: "learned" (binds the parameters to one image size) or "sincos2d" (fixed).
      freeze_patches: keep the random patch projection fixed by stopping its gradient; exclude it
        from weight decay as well (MoCo v3, Chen et al., 2021, section 4.2).
      scan: run the blocks as one scanned block: compile time no longer grows with depth, and
        parameters are stacked on a leading "layers" axis.
      remat: recompute each block in the backward pass instead of keeping its activations.
      attention: "xla" or "fused", see `rml.models.attention.attend_to_all`, or what attends, see
        `rml.models.attention.Attend`.
      implementation: of the patch convolution, see `rml.models.conv.conv2d`.
      activation: name of the MLP's nonlinearity.
      epsilon: of the LayerNorms.
      norm_first: a LayerNorm before the blocks, and patches without a bias, as in CLIP.
      projection: width of a last linear map without bias, as in CLIP; 0 for none.
      classes: number of classes where logits are wanted in the place of features, else 0.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: int = 4
    patch_size: int = 16
    pooling: str = "cls"
    positions: str = "learned"
    freeze_patches: bool = False
    scan: bool = True
    remat: bool = False
    attention: str | Attend = "xla"
    implementation: Implementation = "auto"
    activation: str = "gelu"
    epsilon: float = 1e-6
    norm_first: bool = False
    projection: int = 0
    classes: int = 0
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        edits: HeadEdits | None = None,
        train: bool = False,
        stages: bool = False,
    ) -> Float[Array, "b d"] | layers.Stages:
        """Encodes a batch of images; what the first block reads is sown as an intermediate.

        Args:
          x: images [b, h, w, c] of at least 8x8 pixels.
          edits: scale and offset of every head's output.
          train: accepted for uniformity; the model has neither dropout nor BatchNorm.
          stages: whether each block's output [b, t, width] is returned beside the features.

        Returns:
          Features [b, width] after the final LayerNorm, [b, projection] or logits [b, classes];
          with `stages` as the first part of `Stages`.

        Raises:
          ValueError: an option or the shape of `x` is not as described.
        """
        del train
        layers.check_image(x)
        self._check()
        check_edits(edits, (self.depth, self.heads, self.width // self.heads))
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": self.epsilon, **dtypes}
        x = Conv(
            self.width,
            self.patch_size,
            self.patch_size,
            use_bias=not self.norm_first,
            implementation=self.implementation,
            kernel_init=_patch_init,
            name="patches",
            **dtypes,
        )(x)
        if self.freeze_patches:
            x = jax.lax.stop_gradient(x)
        b, h, w, d = x.shape
        x = x.reshape(b, h * w, d)
        token_init = nn.initializers.normal(0.02)
        if self.pooling == "cls":
            cls = self.param(
                "cls",
                nn.with_logical_partitioning(token_init, (None, None, "embed")),
                (1, 1, d),
                self.param_dtype,
            )
            x = jnp.concatenate([jnp.broadcast_to(jnp.asarray(cls, x.dtype), (b, 1, d)), x], axis=1)
        positions: jax.Array
        if self.positions == "learned":
            positions = self.param(  # type: ignore[assignment]
                "positions",
                nn.with_logical_partitioning(token_init, (None, "length", "embed")),
                (1, *x.shape[1:]),
                self.param_dtype,
            )
        else:
            positions = sincos2d(h, w, d)[None]
            if self.pooling == "cls":
                positions = jnp.pad(positions, ((0, 0), (1, 0), (0, 0)))
        x = nn.with_logical_constraint(
            x + jnp.asarray(positions, x.dtype), ("batch", "length", "embed")
        )
        x = layers.layer_norm("norm0", **norm)(x) if self.norm_first else x
        self.sow("intermediates", "embedded", x)
        x, outputs = blocks_of(self, x, edits, outputs=stages)
        x = layers.layer_norm("norm", **norm)(x)
        x = x[:, 0] if self.pooling == "cls" else x.mean(axis=1)
        if self.projection:
            axes = ("embed", "mlp")
            x = layers.dense(self.projection, axes, name="projection", use_bias=False, **dtypes)(x)
        elif self.classes:
            x = layers.dense(self.classes, ("embed", "classes"), name="head", **dtypes)(x)
        else:
            x = nn.with_logical_constraint(x, ("batch", "embed"))
        return layers.Stages(x, tuple(outputs)) if stages else x

    def _check(self) -> None:
        if self.projection and self.classes:
            raise ValueError(
                f"projection={self.projection} and classes={self.classes}, expected one of them: a "
                "model has one head"
            )
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        if self.pooling not in ("cls", "gap"):
            raise layers.unknown("pooling", self.pooling, ("cls", "gap"))
        if self.positions not in ("learned", "sincos2d"):
            raise layers.unknown("positions", self.positions, ("learned", "sincos2d"))
        if self.positions == "sincos2d" and self.width % 4:
            raise ValueError(f"sincos2d positions need a width divisible by 4, got {self.width}")


def blocks_of(vit: ViT, x: Any, edits: HeadEdits | None = None, *, outputs: bool = False) -> Any:
    """Runs all blocks of a ViT within the module that calls it, see `run_blocks`."""
    return run_blocks(
        Block,
        x,
        edits,
        depth=vit.depth,
        scan=vit.scan,
        remat=vit.remat,
        heads=vit.heads,
        mlp_ratio=vit.mlp_ratio,
        attention=vit.attention,
        activation=vit.activation,
        epsilon=vit.epsilon,
        outputs=outputs,
        dtype=vit.dtype,
        param_dtype=vit.param_dtype,
    )


class Block(nn.Module):
    """One pre-norm transformer block, in the carry form that `nn.scan` reads.

    With `outputs` its result, which the scan stacks, is its output once more. All matrices are
    drawn by `kernel_init` where it is given, else by Xavier's rule.
    """

    heads: int
    mlp_ratio: int = 4
    attention: str | Attend = "xla"
    activation: str = "gelu"
    epsilon: float = 1e-6
    causal: bool = False
    outputs: bool = False
    kernel_init: nn.initializers.Initializer | None = None
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], edits: HeadEdits | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"] | None]:
        """Applies self-attention and the MLP, each with its residual.

        Raises:
          ValueError: Heads do not divide the width.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": self.epsilon, **dtypes}
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={width}")
        square = self.kernel_init or _SQUARE_INIT
        head_axes = ("heads", "kv")
        qkv = HeadDense(
            (3, self.heads, width // self.heads),
            ("embed", None, *head_axes),
            kernel_init=square,
            split=True,
            name="qkv",
            **dtypes,
        )(layers.layer_norm("norm1", **norm)(x))
        qkv = (nn.with_logical_constraint(y, ("batch", "length", *head_axes)) for y in qkv)
        if self.causal and self.attention == "xla":
            y = jax.nn.dot_product_attention(*qkv, is_causal=True)
        elif self.causal or not isinstance(self.attention, str):
            y = named(self.attention)(*qkv, Visible(causal=self.causal))[0]
        else:
            y = attend_to_all(*qkv, implementation=self.attention)
        y = y if edits is None else edited(y, edits)
        out = (*head_axes, "embed")
        x = x + HeadDense((width,), out, kernel_init=square, name="out", **dtypes)(y)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        init = self.kernel_init or nn.initializers.xavier_uniform()
        y = layers.layer_norm("norm2", **norm)(x)
        y = layers.dense(
            self.mlp_ratio * width, ("embed", "mlp"), name="mlp_in", kernel_init=init, **dtypes
        )(y)
        y = layers.activation(self.activation)(y)
        y = nn.with_logical_constraint(y, ("batch", "length", "mlp"))
        x = x + layers.dense(width, ("mlp", "embed"), name="mlp_out", kernel_init=init, **dtypes)(y)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        return x, x if self.outputs else None


def sincos2d(height: int, width: int, features: int) -> Float[Array, "t d"]:
    """Computes the fixed 2-D sine-cosine position embedding, temperature 10,000.

    Args:
      height: rows of the patch grid.
      width: columns of the patch grid.
      features: token width, divisible by 4: a quarter each for sine and cosine of x and of y.

    Returns:
      Embeddings [height * width, features] in row-major order.

    Source: MoCo v3 (Chen et al., 2021), appendix A.
    """
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    omega = 10_000.0 ** -(np.arange(features // 4) / (features // 4))
    angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]
    parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
    return jnp.asarray(np.concatenate(parts, axis=1), jnp.float32)


def _patch_init(key: jax.Array, shape: tuple[int, ...], dtype: layers.Dtype) -> jax.Array:
    flat = (int(np.prod(shape[:-1])), shape[-1])  # a patch is one vector, as in a Dense layer
    return nn.initializers.xavier_uniform()(key, flat, dtype).reshape(shape)


ViTTi = functools.partial(ViT, width=192, depth=12, heads=3)
ViTS = functools.partial(ViT, width=384, depth=12, heads=6)
ViTB = functools.partial(ViT, width=768, depth=12, heads=12)
ViTL = functools.partial(ViT, width=1024, depth=24, heads=16)
