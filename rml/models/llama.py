"""LLaMA's decoder (Touvron et al., 2023), as in LLaMA 2 and 3, SmolLM, Mistral and Qwen2."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int, Num

from rml.models import layers, rope
from rml.models.attention import Attend, attend, attention_by_layer
from rml.models.block_hooks import Probe, Thresholds, check_thresholds
from rml.models.caches import Cache, empty_cache
from rml.models.live_rows import LiveRows, check_rows
from rml.models.llama_block import Block
from rml.models.self_attention import MATRIX_INIT, HeadEdits, head_axis
from rml.models.transformer import (
    States,
    check_edits,
    check_tokens,
    collected,
    run_blocks,
    token_table,
)


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
      window: number of tokens that a token sees, itself included, at least 1; None for all before
        it.
      windowed: whether each block has the `window`, without which there is none; None for all of
        them.
      mlp_bias: whether the MLP's projections have biases.
      tied: whether logits are products with the token table rather than with a matrix of their own.
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
    attention: Attend | str | Sequence[Attend | str] = attend
    scan: bool = True
    remat: bool = False
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Freezes what a config lists: a jitted function hashes a module that it gets."""
        if self.rope_scaling is not None:
            self.rope_scaling = FrozenDict(
                {k: tuple(v) if isinstance(v, list) else v for k, v in self.rope_scaling.items()}
            )
        self.windowed = None if self.windowed is None else tuple(self.windowed)
        if not callable(self.attention) and not isinstance(self.attention, str):
            self.attention = tuple(self.attention)
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
        thresholds: Thresholds | None = None,
        rows: LiveRows | None = None,
        probe: Probe | None = None,
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
          thresholds: Magnitudes below which activations of every block are set to zero.
          rows: What the MLPs of one token of one text read of, see `rml.models.live_rows`, which
            skips channels whose gate is zero; more tokens, or a probe, are read as without them.
          probe: What is measured in every block; `States.probed` has it.
          train: Accepted for uniformity; the model has no dropout.
          return_hidden: Give the embeddings and every block's output as well.
          return_attention: Give the attention weights as well.

        Returns:
          The last hidden states [b, t, width], after the final norm; `States` where more was asked
          for, or with a cache, which then holds these tokens too. A cache without room gives NaN
          where its length is not known before.

        Raises:
          ValueError: An option or a shape is not as described.
        """
        del train
        check_tokens(tokens, mask)
        kv_heads, head_width = self.head_shape()
        check_edits(edits, (self.depth, self.heads, head_width))
        check_thresholds(thresholds, self.depth, self.mlp)
        check_rows(rows, self.depth, self.mlp, self.width)
        if probe is not None and cache is not None:
            raise ValueError("a probe measures whole texts, got it together with a cache")
        function, measured = (None, None) if probe is None else probe
        attentions, which = attention_by_layer(self.attention, self.depth)
        keys, before = mask, jnp.zeros((1, 1), jnp.int32)
        if mask is None:
            mask = jnp.ones(tokens.shape, bool)
        if cache is not None:
            self._check_cache(cache, tokens.shape)
            if positions is not None and not cache.takes_positions:
                raise ValueError(
                    f"this cache counts positions itself, got some of shape {positions.shape}"
                )
            before = cache.read[:, None]
            keys, kept_mask = cache.extended(cache.mask, mask)
        if positions is not None and positions.shape not in (tokens.shape, (1, tokens.shape[1])):
            raise ValueError(
                f"positions have shape {positions.shape}, expected that of tokens, {tokens.shape}, "
                f"or {(1, tokens.shape[1])}"
            )
        if positions is None:
            positions = before + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        windows = self._windows(tokens.shape[1], cache)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.with_logical_constraint(self.tokens(tokens), ("batch", "length", "embed"))
        embedded = x
        frequency = rope.frequencies(
            head_width,
            self.theta,
            scaling=self.rope_scaling,
            trained=self.positions,
            length=jnp.max(positions, axis=1) + 1,
        )
        x, result = run_blocks(
            Block,
            x,
            (
                *(edits, windows, which, thresholds, measured),
                None if cache is None and rows is None else jnp.arange(self.depth),
            ),
            keys,
            positions,
            frequency,
            cache,
            rows,
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
            attentions=attentions,
            keep=(return_hidden, return_attention),
            probe=function,
            **dtypes,
        )
        x = layers.rms_norm("norm", epsilon=self.epsilon, **dtypes)(x)
        if self.is_initializing():
            self.logits(x)
        if cache is not None:
            cache = cache.after(result[2], kept_mask, mask)
            if cache.room is not None:
                x = jnp.where(cache.length <= cache.room, x, jnp.nan)
        if cache is None and probe is None and not (return_hidden or return_attention):
            return x
        states = collected(x, embedded, result, cache)
        return states if probe is None else states._replace(probed=result[3])

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Computes logits of the next token, float32 or wider, from last hidden states."""
        y = self.tokens.attend(hidden) if self.tied else self.head(hidden)
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        axes = ("batch", *("length",) * (y.ndim - 2), "vocab")
        return nn.with_logical_constraint(y, axes if y.ndim > 1 else ("vocab",))

    @nn.nowrap
    def init_cache(
        self, batch: int, length: int | None = None, dtype: layers.Dtype = None, **options: Any
    ) -> Cache:
        """Makes an empty cache.

        Args:
          batch: Number of texts.
          length: Number of tokens that it has room for; None with a window.
          dtype: Type of keys and values; None takes the compute dtype.
          **options: `window` and `sinks`, see `rml.models.caches.empty_cache`.

        Returns:
          The cache. Under a mesh its heads are split as those of the model.
        """
        kv_heads, head_width = self.head_shape()
        shape = (self.depth, batch, kv_heads, head_width)
        dtype = dtype or self.dtype or self.param_dtype
        cache = empty_cache(shape, length, dtype, **options)
        axes = ("layers", "batch", None, head_axis(self.heads, kv_heads), None)
        return jax.tree.map(
            lambda leaf: nn.with_logical_constraint(leaf, axes) if leaf.ndim == 5 else leaf, cache
        )

    @nn.nowrap
    def head_shape(self) -> tuple[int, int]:
        """Returns the number of heads of keys and values, and the width of a head."""
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        if self.heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} must divide heads={self.heads}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return kv_heads, self.head_width or self.width // self.heads

    @nn.nowrap
    def _windows(self, tokens: int, cache: Cache | None) -> Int[Array, "layers"] | None:
        """Number of places that each block looks back on; None where nothing limits them."""
        kept = None if cache is None else cache.window
        if self.window is None:
            if self.windowed is not None:
                raise ValueError("windowed is given without a window, expected window=<tokens>")
            return None if kept is None else jnp.full(self.depth, kept)
        if self.window < 1:  # a token that sees none would take the mean of all, later ones too
            raise ValueError(f"window={self.window}, expected at least 1")
        windowed = (True,) * self.depth if self.windowed is None else self.windowed
        if len(windowed) != self.depth:
            raise ValueError(f"windowed has {len(windowed)} entries for depth={self.depth}")
        all_before = tokens + (0 if cache is None else cache.slots)
        far = all_before if kept is None else kept
        return jnp.where(jnp.array(windowed), jnp.minimum(self.window, far), far)

    @nn.nowrap
    def _check_cache(self, cache: Cache, shape: tuple[int, ...]) -> None:
        cache.check_room(shape)
        limit, room = rope.longest(self.rope_scaling, self.positions), cache.room
        if limit is not None and (room is None or room > limit):
            kind = rope.scaling_kind(self.rope_scaling)
            raise ValueError(
                f"a cache of {room or 'any number of'} tokens is longer than the {limit} of "
                f"training: {kind} rope scaling would turn the keys that it already holds"
            )
