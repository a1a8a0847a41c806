"""What attends in encoders and decoders: the contract, its hooks, one attention a layer."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rml.models.layers import unknown
from rml.ops.attention_parts import OfPlaces, Visible
from rml.ops.fused_attention import fused_attention

Attend = Callable[..., tuple[jax.Array, jax.Array | None]]
"""What attends: `(query [b, t, h, k], key [b, s, g, k], value [b, s, g, k], visible)`, the last a
`rml.ops.attention_parts.Visible`, to the output [b, t, h, k] and the weights [b, h, t, s], which
are None where they are never formed. Head i reads key head i // (h / g)."""

CUDNN_WIDTH = 128
"""Width of the widest heads that cuDNN's attention takes on every GPU that has it."""


def attend(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s g k"],
    value: Float[Array, "b s g k"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
    *,
    factor: OfPlaces | None = None,
    bias: OfPlaces | None = None,
) -> tuple[Float[Array, "b t h k"], Float[Array, "b h t s"]]:
    """Attends by softmax, logits and softmax in float32; memory is quadratic in tokens.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys.
      value: Values.
      visible: Which keys a query may see. One that sees none takes the mean of all values, so that
        a row of padding is finite and so is its gradient.
      factor: What logits are multiplied by, of the places of queries and of keys.
      bias: What is added to them then, likewise.

    Returns:
      Output in the dtype of the values, and the weights in float32.

    Raises:
      ValueError: If `Visible.require_distances` refuses the factor or the bias.
    """
    visible.require_distances(factor, bias)
    b, t, h, k = query.shape
    groups = key.shape[2]
    # Heads before tokens: products then come out as they are read next, and nothing as large as the
    # logits is transposed.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    grouped = query.reshape(b, groups, h // groups * t, k)
    logits = jnp.einsum("bgqk,bgsk->bgqs", grouped, key, preferred_element_type=jnp.float32)
    logits = logits.reshape(b, h, t, -1) * k**-0.5
    s = key.shape[2]
    places = (visible.start + jnp.arange(t), jnp.arange(s))
    logits = logits if factor is None else logits * factor(*places)
    logits = logits if bias is None else logits + bias(*places)
    mask = visible.dense(t, s)[:, None]
    weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min), axis=-1)
    grouped = weights.astype(value.dtype).reshape(b, groups, h // groups * t, -1)
    output = jnp.einsum("bgqs,bgsk->bgqk", grouped, value)
    return output.reshape(b, h, t, k).swapaxes(1, 2), weights


def attend_fused(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s g k"],
    value: Float[Array, "b s g k"],
    visible: Visible = Visible(),  # noqa: B008  a named tuple of constants
) -> tuple[Float[Array, "b t h k"], None]:
    """Attends as `attend` does; on NVIDIA's GPUs cuDNN's kernel, which forms no weights.

    cuDNN is taken for arrays of half precision with heads of at most 128, a multiple of 8. Causal
    texts without padding need no mask there; otherwise one of [b, t, s] in half precision is made,
    which is 1 / (2 h) of the weights' memory. Over a mesh it is split by texts and by heads.

    Args:
      query: Queries; head i reads key head i // (h / g).
      key: Keys.
      value: Values.
      visible: Which keys a query may see, as in `attend`.

    Returns:
      Output in the dtype of the values, and None in the place of the weights.
    """
    if not (cudnn_takes(query) and query.dtype == key.dtype == value.dtype):
        return attend(query, key, value, visible)[0], None
    paths = {"cuda": functools.partial(attend_by_kernel, visible=visible, implementation="cudnn")}

    def elsewhere(query: Array, key: Array, value: Array) -> Array:
        return attend(query, key, value, visible)[0]

    return jax.lax.platform_dependent(query, key, value, **paths, default=elsewhere), None


def attend_by_kernel(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s g k"],
    value: Float[Array, "b s g k"],
    *,
    visible: Visible,
    implementation: str,
) -> Float[Array, "b t h k"]:
    """Attends by `jax.nn.dot_product_attention`, to an even number of tokens, as cuDNN asks."""
    t, s = query.shape[1], key.shape[1]
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value)
    )
    unmasked = visible.keys is None and visible.window is None
    from_first = t == s and isinstance(visible.start, int) and visible.start == 0
    options: dict[str, Any] = {"is_causal": visible.causal}
    if not unmasked or (visible.causal and not from_first):
        mask = jnp.broadcast_to(visible.dense(t, s)[:, None], (len(query), 1, t, s))
        options = {"mask": jnp.pad(mask, ((0, 0), (0, 0), (0, t % 2), (0, s % 2)))}
    elif not visible.causal and (t % 2 or s % 2):  # what fills up is not seen
        lengths = (jnp.full(len(query), count, jnp.int32) for count in (t, s))
        options = dict(zip(("query_seq_lengths", "key_value_seq_lengths"), lengths, strict=True))
    attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    return attend(query, key, value, **options)[:, :t]


NAMED: dict[str, Attend] = {"xla": attend, "fused": attend_fused}
"""What attends in models of texts, by the name that a config gives it."""


def named(attention: Attend | str) -> Attend:
    """Finds what attends by its name in `NAMED`; a function is itself.

    Raises:
      ValueError: An unknown name.
    """
    if not isinstance(attention, str):
        return attention
    if attention not in NAMED:
        raise unknown("attention", attention, NAMED)
    return NAMED[attention]


def tempered(attention: Attend, temperature: ArrayLike) -> Attend:
    """Makes an attention whose logits are divided by a temperature.

    Queries are divided, so that a bias which the attention adds by itself is not. TempScale's code
    divides the position bias of T5 too.

    Args:
      attention: What attends.
      temperature: Temperature of all heads, or of each.

    Returns:
      The attention; with 1 it is the same one bit for bit.
    """
    divisor = jnp.asarray(temperature, jnp.float32)[..., None]

    def attend(query: Array, *rest: Any) -> tuple[Array, Array | None]:
        return attention((query / divisor).astype(query.dtype), *rest)

    return attend


def attention_by_layer(
    attention: Attend | str | Sequence[Attend | str], depth: int
) -> tuple[tuple[Attend, ...], np.ndarray | None]:
    """Finds a model's different attentions, and which of them each layer has; None for one alone.

    Raises:
      ValueError: An unknown name, or the number of attentions is not that of layers.
    """
    if callable(attention) or isinstance(attention, str):
        return (named(attention),), None
    if len(attention) != depth:
        raise ValueError(f"attention has {len(attention)} entries for depth={depth}")
    each = [named(one) for one in attention]
    distinct = tuple(dict.fromkeys(each))
    return distinct, np.array([distinct.index(one) for one in each], np.int32)


def one_of(attentions: Sequence[Attend], which: Any) -> Attend:
    """Returns the attention of one layer; where its number is traced no other is computed.

    Weights are None there: not all of the attentions need form them.
    """
    if len(attentions) == 1:
        return attentions[0]
    if not isinstance(which, jax.Array):
        return attentions[which]

    def attend(
        query: Array, key: Array, value: Array, visible: Visible
    ) -> tuple[Array, Array | None]:
        def branch(attention: Attend) -> Callable[[], Array]:
            return lambda: attention(query, key, value, visible)[0].astype(value.dtype)

        return jax.lax.switch(which, [branch(attention) for attention in attentions]), None

    return attend


def attend_to_all(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b t h k"],
    value: Float[Array, "b t h k"],
    *,
    implementation: str = "xla",
) -> Float[Array, "b t h k"]:
    """Attends from all tokens to all by softmax; logits and softmax in float32.

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
        paths["cuda"] = functools.partial(
            attend_by_kernel, visible=Visible(), implementation="cudnn"
        )
    return jax.lax.platform_dependent(
        query, key, value, **paths, default=jax.nn.dot_product_attention
    )


def cudnn_takes(query: jax.Array) -> bool:
    """Tells whether cuDNN is there and takes such heads: of half precision, not too wide.

    It is where the mesh in use has NVIDIA's GPUs, which may be compiled for on another machine, or
    the process has. Elsewhere it cannot even be traced.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.platform == "gpu":
        there = device.device_kind.startswith("NVIDIA")
    else:
        there = "cuda" in jax.extend.backend.get_backend().platform_version
    if not there:
        return False
    width = query.shape[-1]
    return query.dtype.itemsize == 2 and width % 8 == 0 and width <= CUDNN_WIDTH
