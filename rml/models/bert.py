"""BERT's encoder (Devlin et al., 2019), as in BERT, MiniLM and most sentence encoders."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.models import layers
from rml.models.attention import Attend, attend, attention_by_layer, one_of
from rml.models.self_attention import MATRIX_INIT, HeadEdits, SelfAttention
from rml.models.transformer import (
    States,
    check_edits,
    check_tokens,
    collected,
    run_blocks,
    token_table,
)
from rml.ops.attention_parts import Visible


class Bert(nn.Module):
    """Post-norm transformer encoder over tokens with learned absolute positions.

    Attributes:
      vocabulary: number of tokens.
      width: token width.
      depth: number of blocks.
      heads: attention heads; must divide `width`.
      mlp: hidden width of the MLP.
      positions: longest text, in tokens.
      types: number of segments (sentence A, sentence B).
      activation: name of the MLP's nonlinearity.
      epsilon: of the LayerNorms.
      dropout: rate after the embeddings, attention and MLP while training; above 0 it needs an rng
        named "dropout". Attention weights are not dropped.
      attention: what attends in all blocks or, one for each, in every block, see
        `rml.models.attention.Attend`, or its name there, "xla" or "fused"; of several kinds none
        gives its weights.
      scan: run the blocks as one scanned block, see `rml.models.transformer.run_blocks`.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype: compute dtype; None follows the parameters.
      param_dtype: dtype of the parameters.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    mlp: int
    positions: int = 512
    types: int = 2
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.0
    attention: Attend | str | Sequence[Attend | str] = attend
    scan: bool = True
    remat: bool = False
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Freezes a list: a module is hashed where it is an argument of a jitted function."""
        if not callable(self.attention) and not isinstance(self.attention, str):
            self.attention = tuple(self.attention)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b t"],
        mask: Bool[Array, "b t"] | None = None,
        *,
        segments: Int[Array, "b t"] | None = None,
        edits: HeadEdits | None = None,
        train: bool = False,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Float[Array, "b t d"] | States:
        """Encodes a batch of texts.

        Args:
          tokens: Tokens, each below `vocabulary`.
          mask: Which of them are text rather than padding; all if not given. What a padding token
            becomes has no meaning, but is finite. Padding before a text moves its positions, as in
            BERT; RoBERTa counts without it, so that its texts must be padded on the right.
          segments: Segment of every token, all 0 if not given.
          edits: Scale and offset of every head's output.
          train: Whether `dropout` applies.
          return_hidden: Give the embeddings and every block's output as well.
          return_attention: Give the attention weights as well.

        Returns:
          The last hidden states [b, t, width]; `States` where more was asked for.

        Raises:
          ValueError: An option or a shape is not as described, or a text is too long.
        """
        check_tokens(tokens, mask)
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        length, head_width = tokens.shape[1], self.width // self.heads
        if length > self.positions:
            raise ValueError(f"{length} tokens are more than the {self.positions} positions")
        check_edits(edits, (self.depth, self.heads, head_width))
        attentions, which = attention_by_layer(self.attention, self.depth)
        if segments is None:
            segments = jnp.zeros_like(tokens)
        if segments.shape != tokens.shape:
            raise ValueError(
                f"segments have shape {segments.shape}, expected that of tokens, {tokens.shape}"
            )
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": self.epsilon, **dtypes}
        x = token_table(self.vocabulary, self.width, "vocab", name="tokens", **dtypes)(tokens)
        where = token_table(self.positions, self.width, "length", name="positions", **dtypes)
        x = x + where(jnp.arange(length))
        x = x + token_table(self.types, self.width, None, name="types", **dtypes)(segments)
        x = layers.layer_norm("norm", **norm)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        embedded = x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        x, result = run_blocks(
            Block,
            x,
            (edits, which),
            mask,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            heads=self.heads,
            mlp=self.mlp,
            activation=self.activation,
            epsilon=self.epsilon,
            dropout=self.dropout,
            attentions=attentions,
            train=train,
            keep=(return_hidden, return_attention),
            **dtypes,
        )
        if not (return_hidden or return_attention):
            return x
        return collected(x, embedded, result)


class Block(nn.Module):
    """One post-norm block in the form that `run_blocks` reads; `keep` says what it reports."""

    heads: int
    mlp: int
    activation: str
    epsilon: float
    dropout: float
    attentions: Sequence[Attend]
    train: bool
    keep: tuple[bool, bool]
    dtype: layers.Dtype
    param_dtype: layers.Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        layer: tuple[HeadEdits | None, Any],
        mask: Bool[Array, "b t"] | None,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """Applies self-attention and the MLP, each with its residual and then its norm."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": self.epsilon, **dtypes}
        axes = ("batch", "length", "embed")
        width, (edits, which) = x.shape[-1], layer
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        y, weights, _ = SelfAttention(
            self.heads,
            width // self.heads,
            self.heads,
            attention=one_of(self.attentions, which),
            name="attention",
            **dtypes,
        )(x, Visible(mask), edits=edits)
        x = layers.layer_norm("norm1", **norm)(x + drop(y))
        x = nn.with_logical_constraint(x, axes)
        wide: dict[str, Any] = {"kernel_init": MATRIX_INIT, **dtypes}
        y = layers.dense(self.mlp, ("embed", "mlp"), name="mlp_in", **wide)(x)
        y = layers.activation(self.activation)(y)
        y = nn.with_logical_constraint(y, ("batch", "length", "mlp"))
        y = layers.dense(width, ("mlp", "embed"), name="mlp_out", **wide)(y)
        x = layers.layer_norm("norm2", **norm)(x + drop(y))
        x = nn.with_logical_constraint(x, axes)
        hidden, attention = self.keep
        return x, (x if hidden else None, weights if attention else None)
