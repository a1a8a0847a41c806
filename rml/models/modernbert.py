"""ModernBERT's encoder (Warner et al., 2024): rotary, local and global attention, gated MLP."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.models import layers, rope
from rml.models.attention import Attend, attend, named
from rml.models.self_attention import MATRIX_INIT, HeadDense
from rml.models.transformer import check_tokens, run_blocks, token_table
from rml.ops.attention_parts import Visible


class ModernBert(nn.Module):
    """Pre-norm transformer encoder over tokens, most of whose blocks see only near tokens.

    Attributes:
      vocabulary: number of tokens.
      width: token width.
      depth: number of blocks.
      heads: attention heads; must divide `width`.
      mlp: hidden width of the gated MLP.
      positions: longest text of training, in tokens; longer ones are read all the same.
      local: whether each block sees only near tokens.
      reach: how far a token sees there, to either side.
      theta: base of the rotary frequencies of blocks that see the whole text.
      local_theta: base of those of the others.
      activation: name of the gate's nonlinearity.
      epsilon: of the LayerNorms.
      attention_bias: whether attention's projections have biases.
      mlp_bias: whether the MLP's projections have biases.
      norm_bias: whether the LayerNorms have offsets.
      attention: what attends, see `rml.models.attention.Attend`, or its name there, "xla" or
        "fused".
      scan: run the blocks as one scanned block, see `rml.models.transformer.run_blocks`. The first
        block's first norm is skipped, as in the paper; its parameters are there and have no effect.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype: compute dtype; None follows the parameters.
      param_dtype: dtype of the parameters.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    mlp: int
    local: Sequence[bool]
    positions: int = 8192
    reach: int = 64
    theta: float = 160_000.0
    local_theta: float = 10_000.0
    activation: str = "gelu"
    epsilon: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    attention: Attend | str = attend
    scan: bool = True
    remat: bool = False
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Freezes the list: a module is hashed where it is an argument of a jitted function."""
        self.local = tuple(self.local)
        super().__post_init__()

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
          mask: Which of them are text rather than padding; all if not given. What a padding token
            becomes has no meaning, but is finite.
          train: Accepted for uniformity; the model has no dropout.

        Returns:
          The last hidden states [b, t, width].

        Raises:
          ValueError: An option or a shape is not as described.
        """
        del train
        check_tokens(tokens, mask)
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        if len(self.local) != self.depth:
            raise ValueError(f"local has {len(self.local)} entries for depth={self.depth}")
        length = tokens.shape[1]
        local = jnp.array(self.local)
        turns = [
            rope.frequencies(self.width // self.heads, theta)
            for theta in (self.theta, self.local_theta)
        ]
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": self.epsilon, "use_bias": self.norm_bias, **dtypes}
        x = token_table(self.vocabulary, self.width, "vocab", name="tokens", **dtypes)(tokens)
        x = layers.layer_norm("norm0", **norm)(x)
        x, _ = run_blocks(
            Block,
            nn.with_logical_constraint(x, ("batch", "length", "embed")),
            (
                jnp.arange(self.depth) == 0,
                jnp.where(local, self.reach, length) + 1,
                jnp.where(local[:, None], turns[1], turns[0]),
            ),
            mask,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            heads=self.heads,
            mlp=self.mlp,
            activation=self.activation,
            epsilon=self.epsilon,
            attention_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
            norm_bias=self.norm_bias,
            attention=named(self.attention),
            **dtypes,
        )
        return layers.layer_norm("norm", **norm)(x)


class Block(nn.Module):
    """One pre-norm block in the form that `run_blocks` reads; see `ModernBert`."""

    heads: int
    mlp: int
    activation: str
    epsilon: float
    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool
    attention: Attend
    dtype: layers.Dtype
    param_dtype: layers.Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        layer: tuple[Bool[Array, ""], Int[Array, ""], Float[Array, " f"]],
        mask: Bool[Array, "b t"] | None,
    ) -> tuple[Float[Array, "b t d"], None]:
        """Applies self-attention and the gated MLP, each with its residual."""
        first, window, frequency = layer
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": self.epsilon, "use_bias": self.norm_bias, **dtypes}
        axes, width = ("batch", "length", "embed"), x.shape[-1]
        y = jnp.where(first, x, layers.layer_norm("norm1", **norm)(x))
        query, key, value = HeadDense(
            (3, self.heads, width // self.heads),
            ("embed", None, "heads", "kv"),
            self.attention_bias,
            split=True,
            name="qkv",
            **dtypes,
        )(y)
        rotate = functools.partial(
            rope.rotate, positions=jnp.arange(x.shape[1])[None], frequency=frequency
        )
        y, _ = self.attention(rotate(query), rotate(key), value, Visible(mask, window=window))
        out = ("heads", "kv", "embed")
        y = HeadDense((width,), out, self.attention_bias, name="out", **dtypes)(y)
        x = nn.with_logical_constraint(x + y, axes)
        y = layers.layer_norm("norm2", **norm)(x)
        gate, y = HeadDense(
            (2, self.mlp),
            ("embed", None, "mlp"),
            self.mlp_bias,
            split=True,
            name="mlp_in",
            **dtypes,
        )(y)
        y = layers.activation(self.activation)(gate) * y
        y = nn.with_logical_constraint(y, ("batch", "length", "mlp"))
        wide: dict[str, Any] = {"use_bias": self.mlp_bias, "kernel_init": MATRIX_INIT, **dtypes}
        x = x + layers.dense(width, ("mlp", "embed"), name="mlp_out", **wide)(y)
        return nn.with_logical_constraint(x, axes), None
