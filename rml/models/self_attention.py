"""Self-attention as encoders and decoders share it: projections of heads, caches, edits."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models.attention import Attend, attend
from rml.models.caches import Cache
from rml.models.layers import Dtype
from rml.ops.attention_parts import Visible

MATRIX_INIT = nn.initializers.normal(0.02)


class HeadEdits(NamedTuple):
    """What is done to every head's output before the output projection: `scale * head + offset`.

    Either may be None. They are arguments rather than parameters: weights load unchanged, and a
    gradient with respect to the edits alone is a gradient with respect to one argument.

    Attributes:
      scale: [layers, heads, k].
      offset: [layers, heads, k].

    Source: LoFiT (Yin et al., 2024), equations 2 and 3, with scale = 1 + A.
    """

    scale: jax.Array | None = None
    offset: jax.Array | None = None


def edited(y: Float[Array, "b t h k"], edits: HeadEdits) -> Float[Array, "b t h k"]:
    """Applies a layer's edits, [heads, k] each, to the outputs of heads, in their own dtype."""
    y = y if edits.scale is None else y * edits.scale.astype(y.dtype)
    return y if edits.offset is None else y + edits.offset.astype(y.dtype)


def head_axis(heads: int, kv_heads: int) -> str:
    """Names the logical axis of the heads of keys and values."""
    return "heads" if kv_heads == heads else "kv_heads"


class HeadDense(nn.Module):
    """A Dense layer from or to heads, initialised as the matrix that it is when flattened.

    Linen's DenseGeneral makes its kernel flat, which logical axes of the final shape do not fit
    under a mesh.

    Attributes:
      features: shape of the output's last axes.
      axes: logical axes of the kernel: those of the inputs, then those of the features.
      use_bias: whether a bias is added.
      kernel_init: draws the flat matrix.
      split: return one array for each place of the features' first axis. Each is then a product of
        its own, laid out as what reads it wants it, where slices of one would be copied.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.
    """

    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = MATRIX_INIT
    split: bool = False
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """Multiplies the last axes of `x`, as many as `axes` has beyond `features`."""
        inputs = len(self.axes) - len(self.features)
        shape = (*x.shape[-inputs:], *self.features)

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
            flat = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
            return self.kernel_init(key, flat, dtype).reshape(shape)

        kernel_init = nn.with_logical_partitioning(init, self.axes)
        kernel = self.param("kernel", kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[inputs:])
            bias = self.param("bias", bias_init, self.features, self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

        def product(kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
            y = jnp.tensordot(x, kernel, axes=inputs)
            return y if bias is None else y + bias

        if not self.split:
            return product(kernel, bias)
        parts = jnp.unstack(kernel, axis=inputs)
        offsets = [None] * len(parts) if bias is None else jnp.unstack(bias)
        return tuple(map(product, parts, offsets))


class SelfAttention(nn.Module):
    """Projections to queries, keys and values, attention, and the projection back.

    Attributes:
      heads: query heads.
      head_width: width of one head.
      kv_heads: heads of keys and values, a divisor of `heads`.
      use_bias: whether the projections to queries, keys and values have biases.
      out_bias: whether the projection back has one; None takes `use_bias`.
      attention: what attends, see `Attend`.
      dtype: compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.
    """

    heads: int
    head_width: int
    kv_heads: int
    use_bias: bool = True
    attention: Attend = attend
    out_bias: bool | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        visible: Visible,
        *,
        rotate: Callable[..., jax.Array] | None = None,
        cache: Cache | None = None,
        edits: HeadEdits | None = None,
        read: Callable[[str, jax.Array], jax.Array] | None = None,
    ) -> tuple[Float[Array, "b t d"], jax.Array | None, Any]:
        """Attends from every token of `x` to those that it may see.

        It sows queries, keys, values and what "out" is given as "intermediates".

        Args:
          x: Tokens.
          visible: Which keys a query may see: those of the cache where there is one.
          rotate: Applied to queries and keys, see `rml.models.rope`.
          cache: What this layer keeps of the tokens before these.
          edits: Edits of this layer, [heads, k] each.
          read: `read(name, x)`, what the projection "query", "key", "value" or "output" reads of
            what it is given; itself if not given.

        Returns:
          The output, the attention weights, and what the layer adds to the cache, for
          `rml.models.caches.Cache.after`.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shared = head_axis(self.heads, self.kv_heads)

        def project(name: str, heads: int, axis: str) -> jax.Array:
            y = HeadDense(
                (heads, self.head_width), ("embed", axis, "kv"), self.use_bias, name=name, **dtypes
            )(x if read is None else read(name, x))
            return nn.with_logical_constraint(y, ("batch", "length", axis, "kv"))

        query = project("query", self.heads, "heads")
        key = project("key", self.kv_heads, shared)
        value = project("value", self.kv_heads, shared)
        turned = (query, key) if rotate is None else (rotate(query), rotate(key))
        for name, array in zip(("queries", "keys", "values"), (*turned, value), strict=True):
            self.sow("intermediates", name, array)
        kept = None
        if cache is None:
            y, weights = self.attention(*turned, value, visible)
        elif rotate is None:
            raise ValueError("a cache needs the rotation of queries and keys, got none")
        else:
            y, weights, kept = cache.attend(self.attention, query, key, value, visible, rotate)
            y = y.astype(value.dtype)  # a cache may keep another type than the model computes in
        y = y if edits is None else edited(y, edits)
        self.sow("intermediates", "heads", y)
        bias = self.use_bias if self.out_bias is None else self.out_bias
        out = HeadDense((x.shape[-1],), ("heads", "kv", "embed"), bias, name="out", **dtypes)
        return out(y if read is None else read("output", y)), weights, kept
