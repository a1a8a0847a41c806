"""One block of LLaMA's decoder."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float, Num

from rml.models import layers, rope
from rml.models.attention import Attend, one_of
from rml.models.block_hooks import Activations, Thresholds, cut
from rml.models.caches import Cache
from rml.models.live_rows import LiveRows, from_live_rows
from rml.models.self_attention import MATRIX_INIT, SelfAttention
from rml.ops.attention_parts import Visible


class Block(nn.Module):
    """One pre-norm block in the form that `run_blocks` reads; `keep` says what it reports.

    `probe`, see `rml.models.block_hooks.Probe`, measures it.
    """

    heads: int
    head_width: int
    kv_heads: int
    mlp: int
    activation: str
    epsilon: float
    rope_scale: float
    attention_bias: bool
    out_bias: bool | None
    mlp_bias: bool
    attentions: Sequence[Attend]
    keep: tuple[bool, bool]
    probe: Callable[[Activations, Any], Any] | None
    dtype: layers.Dtype
    param_dtype: layers.Dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        layer: tuple[Any, ...],
        keys: Bool[Array, "b s"] | None,
        positions: Num[Array, "#b t"],
        frequency: Float[Array, "... f"],
        cache: Cache | None,
        rows: LiveRows | None,
    ) -> tuple[Float[Array, "b t d"], Any]:
        """Applies self-attention and the gated MLP, each with its residual."""
        given: dict[str, jax.Array] = {}
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm: dict[str, Any] = {"epsilon": self.epsilon, **dtypes}
        axes = ("batch", "length", "embed")
        edits, window, which, thresholds, own, number = layer
        least = Thresholds() if thresholds is None else thresholds
        visible = Visible(keys, causal=True, window=window)
        if cache is not None:
            visible = visible._replace(sinks=cache.sinks, start=cache.start)
            cache = cache.of_layer(number)

        def read(name: str, x: jax.Array) -> jax.Array:
            """What a projection of attention reads of `x`."""
            given[name] = x
            return cut(x, getattr(least, name))

        y, weights, kept = SelfAttention(
            self.heads,
            self.head_width,
            self.kv_heads,
            self.attention_bias,
            one_of(self.attentions, which),
            self.out_bias,
            name="attention",
            **dtypes,
        )(
            layers.rms_norm("norm1", **norm)(x),
            visible,
            rotate=functools.partial(
                rope.rotate, positions=positions, frequency=frequency, scale=self.rope_scale
            ),
            cache=cache,
            edits=edits,
            read=read,
        )
        x = nn.with_logical_constraint(x + y, axes)
        wide: dict[str, Any] = {
            "use_bias": self.mlp_bias,
            "kernel_init": MATRIX_INIT,
            **dtypes,
        }
        narrow = layers.rms_norm("norm2", **norm)(x)
        gate = layers.dense(self.mlp, ("embed", "mlp"), name="gate", **wide)(narrow)
        found = None
        if rows is not None and self.probe is None and x.shape[:2] == (1, 1):
            live = cut(layers.activation(self.activation)(gate), least.gate)[0, 0]
            y = from_live_rows(narrow[0, 0], live, rows, layer=number, least=least.hidden)
            x = x + y
        else:
            up = layers.dense(self.mlp, ("embed", "mlp"), name="mlp_in", **wide)(narrow)
            gate = layers.activation(self.activation)(gate)
            y = cut(cut(gate, least.gate) * up, least.hidden)
            y = nn.with_logical_constraint(y, ("batch", "length", "mlp"))
            if self.probe is not None:
                heads = given["output"].reshape(*x.shape[:-1], -1)
                seen = Activations(given["query"], heads, narrow, gate, up, y, keys)
                found = self.probe(seen, own)
            x = x + layers.dense(x.shape[-1], ("mlp", "embed"), name="mlp_out", **wide)(y)
        x = nn.with_logical_constraint(x, axes)
        hidden, attention = self.keep
        return x, (x if hidden else None, weights if attention else None, kept, found)
