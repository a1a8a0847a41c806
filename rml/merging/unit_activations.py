"""Activations of a transformer's units, layer by layer, which two models are compared by."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from rml.errors import UserError
from rml.merging.transport import shortcut_share
from rml.models.layouts import blocks_of
from rml.ops.similarity import wide
from rml.ops.trees import STACKED, stack_trees

ROUNDINGS = 8  # units in the last place by which a unit that does not vary may seem to
_KEPT = ("qkv", "query", "key", "value", "out", "norm", "norm1", "norm2", "mlp_in", "mlp_out")


class LayerActivations(NamedTuple):
    """What units of a transformer of L blocks gave on s tokens.

    Attributes:
      embedded: What the first block reads, [s, d].
      query: Queries of all heads, side by side, [L, s, h].
      key: Keys likewise.
      value: Values likewise.
      branch: What attention adds to the residual sum, [L, s, d].
      mid: The sum after that, behind its norm where it has one.
      mlp: Hidden units before their nonlinearity, [L, s, m].
      out: What the MLP adds, [L, s, d].
      after: The sum after that, behind its norm where it has one.
      mask: Which tokens count, [s]; None for all.
    """

    embedded: Array
    query: Array
    key: Array
    value: Array
    branch: Array
    mid: Array
    mlp: Array
    out: Array
    after: Array
    mask: Array | None = None


def layer_activations(
    module: nn.Module, params: PyTree, inputs: Array, mask: Bool[Array, "b t"] | None = None, *,
    tokens: Sequence[int] | None = None,
) -> LayerActivations:  # fmt: skip
    """Computes what the units of a model give on a batch, which `align` compares models by.

    The public code reads the class token and a square of patches in the middle, and in the last
    layer the class token alone; here all layers are read at the same `tokens`.

    Args:
      module: A `ViT` or a `Bert`.
      params: Its parameters.
      inputs: Images [b, h, w, c], or tokens [b, t].
      mask: Which tokens are text rather than padding, [b, t].
      tokens: Places of the tokens that are read, all if not given; of a `ViT` that has a class
        token it is the one at 0, so that (0,) reads it alone.

    Returns:
      Activations; all tokens that are read, of all examples, are rows.

    Raises:
      UserError: The batch is empty, the module is neither, or a token is not there.
    """
    if not len(inputs):
        raise UserError("inputs hold no example, expected at least 1 to compare units by")
    _, kept = module.apply(
        {"params": params}, *((inputs,) if mask is None else (inputs, mask)),
        capture_intermediates=lambda part, method: method == "__call__" and part.name in _KEPT,
        mutable=["intermediates"],
    )  # fmt: skip
    found = kept["intermediates"]
    if not blocks_of(found):
        raise UserError(f"{type(module).__name__} is neither a ViT nor a Bert")
    block = blocks(found)

    def of(*path: str) -> Any:
        part: Any = block
        for name in path:
            part = part[name]
        return part["__call__"][0]

    def rows(x: Array, lead: int = 1, last: int = 1) -> Array:
        x = x if tokens is None else jnp.take(x, np.asarray(tokens), axis=lead + 1)
        return x.reshape(*x.shape[:lead], -1, int(np.prod(x.shape[x.ndim - last :])))

    length = of("mlp_in").shape[-2]
    if tokens is not None and not (len(tokens) and all(0 <= at < length for at in tokens)):
        raise UserError(f"tokens is {tokens}, expected places from 0 to {length - 1}")
    mlp, out = rows(of("mlp_in")), rows(of("mlp_out"))
    where = None if mask is None else rows(mask[..., None], 0)[:, 0]
    if "attention" in block:
        query, key, value = (rows(of("attention", n), 1, 2) for n in ("query", "key", "value"))
        embedded = rows(found["norm"]["__call__"][0], 0)
        branch = rows(of("attention", "out"))
        mid, after = rows(of("norm1")), rows(of("norm2"))
    else:
        query, key, value = (rows(x, 1, 2) for x in of("qkv"))
        embedded, branch = rows(found["embedded"][0], 0), rows(of("out"))
        after = embedded + jnp.cumsum(branch + out, axis=0)
        mid = after - out
    return LayerActivations(embedded, query, key, value, branch, mid, mlp, out, after, where)


def standardised(x: Float[Array, "n s"], mask: Array | None = None) -> Float[Array, "n s"]:
    """Gives every unit mean 0 and deviation 1 over the samples that count, and 0 at others.

    A unit that is constant over those, up to rounding, is 0: it can be told from no other one.

    Args:
      x: Activations.
      mask: Which samples count, of s or of a divisor of s that is repeated; all if not given.
    """
    given = jnp.finfo(x.dtype).eps
    (x,) = wide(x)
    where = jnp.ones(x.shape[1]) if mask is None else jnp.tile(mask, x.shape[1] // len(mask))
    share = where / jnp.maximum(jnp.sum(where), 1)
    centred = jnp.where(where > 0, x - (x @ share)[:, None], 0)
    # What rounding leaves of a constant would be scaled up to ±1.
    highest, lowest = (
        sign * jnp.max(jnp.where(where > 0, sign * x, -jnp.inf), axis=1) for sign in (1, -1)
    )
    rounding = jnp.maximum(ROUNDINGS * jnp.finfo(x.dtype).eps, given)
    rounding *= jnp.maximum(highest, -lowest)
    centred = jnp.where((highest - lowest > rounding)[:, None], centred, 0)
    return centred / (jnp.sqrt(jnp.square(centred) @ share)[:, None] + 1e-9)


def blocks(tree: Mapping[str, Any]) -> Any:
    """Stacks blocks on a leading axis, scanned or not."""
    return tree[STACKED] if STACKED in tree else stack_trees([tree[n] for n in blocks_of(tree)])


def stream(acts: LayerActivations) -> Float[Array, "d n"]:
    """Concatenates the residual sum before, between and after all branches."""
    every = [acts.embedded[None], acts.mid, acts.after]
    return jnp.concatenate(every).reshape(-1, acts.embedded.shape[-1]).T


def part_sizes(acts: LayerActivations) -> tuple[Float[Array, "l 2 d"], Float[Array, "l 2 d"]]:
    """Averages absolute activations in shortcut and branch of each layer's two residual sums."""
    before = jnp.concatenate([acts.embedded[None], acts.after[:-1]])
    count = jnp.ones(len(acts.embedded)) if acts.mask is None else acts.mask
    share = count / jnp.maximum(jnp.sum(count), 1)

    def sizes(*parts: Array) -> Array:
        return jnp.stack([jnp.einsum("lsd,s->ld", jnp.abs(x), share) for x in parts], axis=1)

    return sizes(before, acts.mid), sizes(acts.branch, acts.out)


def shortcut_shares(acts: LayerActivations, policy: str) -> Float[Array, "l 2 d"]:
    """Computes the shortcut's share in both residual sums of each layer, as `align` takes it.

    With it all policies but "identity" and "shared" are one compiled program.

    Args:
      acts: Activations of the anchor.
      policy: Name of a policy of `residual_map`.

    Raises:
      UserError: The policy has no share.
    """
    sizes = part_sizes(acts)
    return jnp.broadcast_to(shortcut_share(policy, sizes), sizes[0].shape)
