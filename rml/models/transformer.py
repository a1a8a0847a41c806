"""What transformers share besides attention: the stack of blocks, its results, token tables."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.models.layers import Dtype
from rml.models.self_attention import MATRIX_INIT, HeadEdits


class States(NamedTuple):
    """What a text model found, where more than its last hidden states was asked for.

    Attributes:
      last: last hidden states [b, t, d], after the final norm where the model has one.
      hidden: [layers + 1, b, t, d]: the embeddings, then the output of every block.
      attention: attention weights [layers, b, heads, t, s] in float32.
      cache: the decoder's cache, now with these tokens.
      probed: what a decoder's probe found, stacked over layers.
    """

    last: jax.Array
    hidden: jax.Array | None = None
    attention: jax.Array | None = None
    cache: Any = None
    probed: Any = None


def run_blocks(
    block: type[nn.Module],
    x: jax.Array,
    per_layer: Any = None,
    *shared: Any,
    depth: int,
    scan: bool,
    remat: bool,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Applies `depth` blocks in turn; call it within a compact method.

    Args:
      block: A module called as `block(x, layer, *shared) -> (x, result)`.
      x: What the blocks pass on.
      per_layer: Arrays with a leading axis of layers, of which each block gets its own.
      *shared: Arrays that all blocks read.
      depth: Number of blocks.
      scan: Run them as one scanned block, "blocks", its parameters stacked on a leading "layers"
        axis; otherwise as "block0", "block1" and so on.
      remat: Recompute each block in the backward pass instead of keeping its activations.
      **options: Attributes of the block.

    Returns:
      The last output, and the results stacked over layers.
    """
    # Under scan the loop itself keeps the recomputation apart.
    made = nn.remat(block, prevent_cse=not scan) if remat else block
    if scan:
        return nn.scan(
            made,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *(nn.broadcast for _ in shared)),
            length=depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(name="blocks", **options)(x, per_layer, *shared)
    results = []
    for i in range(depth):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], per_layer)
        x, result = made(name=f"block{i}", **options)(x, layer, *shared)
        results.append(result)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results) if results else None


def projections(
    module: nn.Module,
    variables: Any,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None = None,
    *,
    layer: int,
) -> tuple[Float[Array, "b t h k"], Float[Array, "b t g k"], Float[Array, "b t g k"]]:
    """Computes the queries, keys and values of one block's attention, and no later block.

    Args:
      module: A `Bert` or a `Llama`.
      variables: Its variables.
      tokens: Tokens.
      mask: Which of them are text rather than padding; all if not given.
      layer: Number of the block, from 0.

    Raises:
      ValueError: The module has no such block.
    """
    depth: int = getattr(module, "depth", 0)
    if not 0 <= layer < depth:
        raise ValueError(f"layer={layer}, expected at least 0 and below depth={depth}")
    given = {name: getattr(module, name, None) for name in ("attention", "windowed")}
    lists: dict[str, Any] = {
        name: x[: layer + 1] for name, x in given.items() if isinstance(x, tuple)
    }
    params = dict(variables["params"])
    if "blocks" in params:
        params["blocks"] = jax.tree.map(lambda leaf: leaf[: layer + 1], params["blocks"])
    first = module.clone(depth=layer + 1, **lists)
    _, state = first.apply({"params": params}, tokens, mask, mutable=["intermediates"])
    blocks = state["intermediates"]
    block = blocks["blocks" if "blocks" in blocks else f"block{layer}"]["attention"]
    query, key, value = (block[name][0] for name in ("queries", "keys", "values"))
    return (query[-1], key[-1], value[-1]) if "blocks" in blocks else (query, key, value)


def token_table(
    size: int,
    width: int,
    axis: str | None,
    *,
    dtype: Dtype,
    param_dtype: Dtype,
    name: str | None = None,
) -> nn.Embed:
    """Makes a table of `size` vectors whose first logical axis is `axis`."""
    return nn.Embed(
        size,
        width,
        dtype=dtype,
        param_dtype=param_dtype,
        embedding_init=nn.with_logical_partitioning(MATRIX_INIT, (axis, "embed")),
        name=name,
    )


def check_tokens(tokens: jax.Array, mask: jax.Array | None) -> None:
    """Raises ValueError unless tokens are [b, t] integers and the mask has their shape."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"a text model reads integer tokens [b, t], got {tokens.dtype}{list(tokens.shape)}"
        )
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(f"mask of shape {mask.shape} does not fit tokens of shape {tokens.shape}")


def check_edits(edits: HeadEdits | None, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless scale and offset are [layers, heads, k] as in `shape`."""
    for name, value in (edits or HeadEdits())._asdict().items():
        if value is not None and value.shape != shape:
            raise ValueError(
                f"edits.{name} must have shape [layers, heads, k] = {shape}, got {value.shape}"
            )


def collected(
    x: Float[Array, "b t d"], embedded: jax.Array, result: Any, cache: Any = None
) -> States:
    """Collects a model's states of blocks that gave `result = (outputs, weights, ...)` or Nones."""
    outputs, attention, *_ = result or (None, None)
    hidden = None if outputs is None else jnp.concatenate([embedded[None], outputs])
    return States(x, hidden, attention, cache)
