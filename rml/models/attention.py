"""Multi-head attention as encoders and decoders share it: grouped queries, masks, caches, hooks."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend.backend
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rml.models.layers import Dtype, unknown
from rml.ops.fused_attention import fused_attention

# (query [b, t, h, k], key [b, s, g, k], value [b, s, g, k], mask [b, t or 1, s]) to the output
# [b, t, h, k] and the weights [b, h, t, s], which may be None where a kernel never forms them.
Attend = Callable[..., tuple[jax.Array, jax.Array | None]]
KeyValue = tuple[jax.Array, jax.Array]

CUDNN_WIDTH = 128
"""Width of the widest heads that cuDNN's attention takes on every GPU that has it."""
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


def attend(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s g k"],
    value: Float[Array, "b s g k"],
    mask: Bool[Array, "#b #t s"],
) -> tuple[Float[Array, "b t h k"], Float[Array, "b h t s"]]:
    """Softmax attention, logits and softmax in float32; each key head serves h / g query heads.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys.
      value: Values.
      mask: Which keys a query may see. One that sees none takes the mean of all values, so that a
        row of padding is finite and so is its gradient.

    Returns:
      Output in the dtype of the values, and the weights in float32.
    """
    b, t, h, k = query.shape
    groups = key.shape[2]
    # Heads before tokens: products then come out as they are read next, and nothing as large as the
    # logits is transposed.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    grouped = query.reshape(b, groups, h // groups * t, k)
    logits = jnp.einsum("bgqk,bgsk->bgqs", grouped, key, preferred_element_type=jnp.float32)
    logits = logits.reshape(b, h, t, -1) * k**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min), axis=-1)
    grouped = weights.astype(value.dtype).reshape(b, groups, h // groups * t, -1)
    output = jnp.einsum("bgqs,bgsk->bgqk", grouped, value)
    return output.reshape(b, h, t, k).swapaxes(1, 2), weights


def attend_to_all(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b t h k"],
    value: Float[Array, "b t h k"],
    *,
    implementation: str = "xla",
) -> Float[Array, "b t h k"]:
    """Softmax attention of all tokens to all; logits and softmax in float32.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      implementation: "xla", or "fused": on TPUs `rml.ops.fused_attention`, of which each device of
        the mesh in use runs its own images and heads; on NVIDIA's GPUs cuDNN's, where it takes the
        type and the heads' width; elsewhere what "xla" does.

    Returns:
      Output in the dtype of the values.

    Raises:
      ValueError: An unknown implementation, or a shape that the kernel does not take.
    """
    if implementation == "xla":
        return jax.nn.dot_product_attention(query, key, value)
    if implementation != "fused":
        raise unknown("attention", implementation, ("xla", "fused"))
    fused: Callable[..., jax.Array] = fused_attention
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:  # the partitioner cannot look into a kernel
        spec = nn.logical_to_mesh_axes(("batch", None, "heads", None))
        fused = jax.shard_map(fused, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    paths: dict[str, Any] = {"tpu": fused}
    if cudnn_takes(query):
        paths["cuda"] = functools.partial(attend_evenly, implementation="cudnn")
    return jax.lax.platform_dependent(
        query, key, value, **paths, default=jax.nn.dot_product_attention
    )


def attend_evenly(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b t h k"],
    value: Float[Array, "b t h k"],
    *,
    implementation: str,
) -> Float[Array, "b t h k"]:
    """Attention of all tokens to all, an odd number of which is filled up for cuDNN's gradient."""
    attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    batch, tokens = query.shape[:2]
    if tokens % 2 == 0:
        return attend(query, key, value)
    filled = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = jnp.full(batch, tokens, jnp.int32)
    out = attend(*filled, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
    return out[:, :tokens]


def cudnn_takes(query: jax.Array) -> bool:
    """Whether cuDNN is there and its attention takes such heads: of half precision, not too wide.

    Elsewhere it cannot even be traced.
    """
    if "cuda" not in jax.extend.backend.get_backend().platform_version:
        return False
    width = query.shape[-1]
    return query.dtype.itemsize == 2 and width % 8 == 0 and width <= CUDNN_WIDTH


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
        mask: Bool[Array, "#b #t s"],
        *,
        rotate: Callable[[jax.Array], jax.Array] | None = None,
        cache: tuple[jax.Array, jax.Array, jax.Array] | None = None,
        edits: HeadEdits | None = None,
    ) -> tuple[Float[Array, "b t d"], jax.Array | None, KeyValue | None]:
        """Attends from every token of `x` to those that the mask shows.

        Args:
          x: Tokens.
          mask: Which keys a query may see; s is the cache's length where there is one.
          rotate: Applied to queries and keys, see `rml.models.rope`.
          cache: Keys [b, s, g, k], values of the same shape, and the slot that takes the first of
            these tokens.
          edits: Of this layer, [heads, k] each.

        Returns:
          The output, the attention weights, and the cache's new keys and values.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shared = "heads" if self.kv_heads == self.heads else "kv_heads"

        def project(name: str, heads: int, axis: str) -> jax.Array:
            y = HeadDense(
                (heads, self.head_width), ("embed", axis, "kv"), self.use_bias, name=name, **dtypes
            )(x)
            return nn.with_logical_constraint(y, ("batch", "length", axis, "kv"))

        query = project("query", self.heads, "heads")
        key = project("key", self.kv_heads, shared)
        value = project("value", self.kv_heads, shared)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        kept = None
        if cache is not None:
            keys, values, slot = cache
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
            key = write(keys, key.astype(keys.dtype), slot)
            value = write(values, value.astype(values.dtype), slot)
            kept = (key, value)
        y, weights = self.attention(query, key, value, mask)
        if edits is not None:
            y = y if edits.scale is None else y * edits.scale.astype(y.dtype)
            y = y if edits.offset is None else y + edits.offset.astype(y.dtype)
        bias = self.use_bias if self.out_bias is None else self.out_bias
        out = HeadDense((x.shape[-1],), ("heads", "kv", "embed"), bias, name="out", **dtypes)
        return out(y), weights, kept
