"""LLaMA's decoder (Touvron et al., 2023), as in LLaMA 2 and 3, SmolLM, Mistral and Qwen2."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int, Num

from rml.models import layers, rope
from rml.models.attention import MATRIX_INIT, Attend, HeadEdits, attend
from rml.models.llama_block import Block
from rml.models.transformer import (
    States,
    check_edits,
    check_tokens,
    collected,
    run_blocks,
    token_table,
)


class Cache(NamedTuple):
    """Keys and values of the tokens that a decoder has read.

    Attributes:
      key: [layers, b, slots, g, k], rotated.
      value: [layers, b, slots, g, k].
      mask: [b, slots], which slots hold text rather than padding.
      length: Number of slots in use, the same for all texts.
    """

    key: jax.Array
    value: jax.Array
    mask: jax.Array
    length: jax.Array


class Llama(nn.Module):
    """Pre-norm causal transformer with rotary positions, grouped queries and a gated MLP.

    Attributes:
      vocabulary: number of tokens.
      width: token width.
      depth: number of blocks.
      heads: query heads.
      mlp: hidden width of the MLP.
      kv_heads: heads of keys and values, a divisor of `heads`; None takes `heads`.
      head_width: width of one head; None takes `width` / `heads`.
      positions: longest text of training, in tokens; longer ones are read all the same.
      activation: name of the gate's nonlinearity.
      epsilon: of the RMSNorms.
      theta: base of the rotary frequencies.
      rope_scaling: see `rml.models.rope.frequencies`; None leaves them.
      attention_bias: whether attention's projections have biases.
      out_bias: whether the projection back has one; None takes `attention_bias`.
      window: number of tokens that a token sees, itself included; None for all before it.
      windowed: whether each block has the window; None for all of them.
      mlp_bias: whether the MLP's projections have biases.
      tied: whether logits are products with the token table rather than with a matrix of their own.
      attention: what attends, see `rml.models.attention.Attend`.
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
    kv_heads: int | None = None
    head_width: int | None = None
    positions: int = 2048
    activation: str = "silu"
    epsilon: float = 1e-6
    theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    attention_bias: bool = False
    out_bias: bool | None = None
    window: int | None = None
    windowed: Sequence[bool] | None = None
    mlp_bias: bool = False
    tied: bool = False
    attention: Attend = attend
    scan: bool = True
    remat: bool = False
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Freezes the scaling: a module is hashed where it is an argument of a jitted function."""
        if self.rope_scaling is not None:
            self.rope_scaling = FrozenDict(
                {k: tuple(v) if isinstance(v, list) else v for k, v in self.rope_scaling.items()}
            )
        self.windowed = None if self.windowed is None else tuple(self.windowed)
        super().__post_init__()

    def setup(self) -> None:
        """Makes what `__call__` and `logits` share."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.tokens = token_table(self.vocabulary, self.width, "vocab", **dtypes)
        if not self.tied:
            self.head = layers.dense(
                self.vocabulary,
                ("embed", "vocab"),
                use_bias=False,
                kernel_init=MATRIX_INIT,
                **dtypes,
            )

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b t"],
        mask: Bool[Array, "b t"] | None = None,
        *,
        cache: Cache | None = None,
        positions: Num[Array, "#b t"] | None = None,
        edits: HeadEdits | None = None,
        train: bool = False,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Float[Array, "b t d"] | States:
        """Decodes a batch of texts, or what follows those in a cache.

        Args:
          tokens: Tokens, each below `vocabulary`.
          mask: Which of them are text rather than padding, on either side; all if not given. What a
            padding token becomes has no meaning, but is finite.
          cache: What was read before, with room for these tokens.
          positions: Position of every token, may be fractional; if not given, the number of tokens
            of its text before it.
          edits: Scale and offset of every head's output.
          train: Accepted for uniformity; the model has no dropout.
          return_hidden: Give the embeddings and every block's output as well.
          return_attention: Give the attention weights as well.

        Returns:
          The last hidden states [b, t, width], after the final norm; `States` where more was asked
          for, or with a cache, which then holds these tokens too. A cache without room gives NaN.

        Raises:
          ValueError: An option or a shape is not as described.
        """
        del train
        check_tokens(tokens, mask)
        kv_heads, head_width = self.head_shape()
        check_edits(edits, (self.depth, self.heads, head_width))
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        slot: jax.Array | int = 0
        before: jax.Array | int = 0
        known = mask
        if cache is not None:
            self._check_cache(cache, tokens.shape)
            slot, before = cache.length, cache.mask.sum(axis=1, keepdims=True)
            known = jax.lax.dynamic_update_slice_in_dim(cache.mask, mask, slot, axis=1)
        if positions is None:
            positions = before + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        last = slot + jnp.arange(tokens.shape[1])[:, None]  # a token sees no later slot
        age = last - jnp.arange(known.shape[1])
        visible = known[:, None] & (age >= 0)
        windows = self._windows(known.shape[1])
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.with_logical_constraint(self.tokens(tokens), ("batch", "length", "embed"))
        embedded = x
        frequency = rope.frequencies(
            head_width,
            self.theta,
            scaling=self.rope_scaling,
            trained=self.positions,
            length=jnp.max(positions) + 1,
        )
        x, result = run_blocks(
            Block,
            x,
            (edits, None if cache is None else (cache.key, cache.value), windows),
            visible,
            age,
            positions,
            frequency,
            None if cache is None else slot,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            heads=self.heads,
            head_width=head_width,
            kv_heads=kv_heads,
            mlp=self.mlp,
            activation=self.activation,
            epsilon=self.epsilon,
            rope_scale=rope.magnitude(self.rope_scaling, self.positions),
            attention_bias=self.attention_bias,
            out_bias=self.out_bias,
            mlp_bias=self.mlp_bias,
            attention=self.attention,
            keep=(return_hidden, return_attention),
            **dtypes,
        )
        x = layers.rms_norm("norm", epsilon=self.epsilon, **dtypes)(x)
        if self.is_initializing():
            self.logits(x)
        if cache is not None:
            length = cache.length + tokens.shape[1]
            x = jnp.where(length <= known.shape[1], x, jnp.nan)
            key, value = result[2]
            cache = Cache(key, value, known, length)
        if cache is None and not (return_hidden or return_attention):
            return x
        return collected(x, embedded, result, cache)

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Logits of the next token, float32 or wider, from last hidden states."""
        y = self.tokens.attend(hidden) if self.tied else self.head(hidden)
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        axes = ("batch", *(None,) * (y.ndim - 2), "vocab")
        return nn.with_logical_constraint(y, axes if y.ndim > 1 else ("vocab",))

    @nn.nowrap
    def init_cache(self, batch: int, length: int, dtype: layers.Dtype = None) -> Cache:
        """An empty cache.

        Args:
          batch: Number of texts.
          length: Room for this many tokens of each.
          dtype: Of keys and values; None takes the compute dtype.

        Returns:
          The cache.
        """
        kv_heads, head_width = self.head_shape()
        shape = (self.depth, batch, length, kv_heads, head_width)
        empty = jnp.zeros(shape, dtype or self.dtype or self.param_dtype)
        return Cache(empty, empty, jnp.zeros((batch, length), bool), jnp.zeros((), jnp.int32))

    @nn.nowrap
    def head_shape(self) -> tuple[int, int]:
        """Number of heads of keys and values, and the width of a head."""
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        if self.heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} must divide heads={self.heads}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return kv_heads, self.head_width or self.width // self.heads

    @nn.nowrap
    def _windows(self, slots: int) -> Int[Array, "layers"] | None:
        """Number of slots that each block looks back on; None where nothing limits them."""
        if self.window is None:
            return None
        windowed = (True,) * self.depth if self.windowed is None else self.windowed
        if len(windowed) != self.depth:
            raise ValueError(f"windowed has {len(windowed)} entries for depth={self.depth}")
        return jnp.where(jnp.array(windowed), self.window, slots)

    @nn.nowrap
    def _check_cache(self, cache: Cache, shape: tuple[int, ...]) -> None:
        batch, room = cache.mask.shape
        if batch != shape[0] or shape[1] > room:
            raise ValueError(
                f"a cache of shape {cache.mask.shape} has no room for tokens of shape {shape}"
            )
        limit = rope.longest(self.rope_scaling, self.positions)
        if limit is not None and room > limit:
            kind = rope.scaling_kind(self.rope_scaling)
            raise ValueError(
                f"a cache of {room} tokens is longer than the {limit} of training: "
                f"{kind} rope scaling would turn the keys that it already holds"
            )
