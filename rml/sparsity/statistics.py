"""How sparse a decoder's feed-forward layers are: by layer, by channel, by pairs of channels."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from rml.models.block_hooks import Activations


class Statistics(NamedTuple):
    """Means over the text tokens of a batch, stacked over layers where a probe makes them.

    Attributes:
      hidden_size: [layers], mean magnitude of gate times up projection, over channels too.
      gate_size: [layers], mean magnitude of the gate.
      zeros: [layers], share of zeros in gate times up projection, the paper's sparsity.
      gate_zeros: [layers], share of zeros in the gate, which need no row of two matrices.
      live: [layers, f], share of tokens at which a channel of gate times up projection is not zero.
    """

    hidden_size: Float[Array, "*layers"]
    gate_size: Float[Array, "*layers"]
    zeros: Float[Array, "*layers"]
    gate_zeros: Float[Array, "*layers"]
    live: Float[Array, "*layers f"]


def token_mean(values: Shaped[Array, "b t ..."], activations: Activations) -> Float[Array, "..."]:
    """Averages over text tokens; 0 where there is none.

    Args:
      values: A value, or an array of them, of every token.
      activations: Activations whose mask says which tokens are text.
    """
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if activations.mask is None:
        return wide.mean((0, 1))
    mask = activations.mask.reshape(*activations.mask.shape, *(1,) * (values.ndim - 2))
    return jnp.sum(wide * mask, (0, 1)) / jnp.maximum(activations.mask.sum(), 1)


def activation_statistics(activations: Activations, own: Any = None) -> Statistics:
    """Measures a block, as the function of a `rml.models.block_hooks.Probe`.

    Args:
      activations: What the block computed. Padding does not count.
      own: Unused.

    Returns:
      The statistics of one layer. Sizes have gradients.
    """
    del own
    gate, hidden = activations.gate, activations.hidden
    return Statistics(
        hidden_size=token_mean(jnp.abs(hidden), activations).mean(),
        gate_size=token_mean(jnp.abs(gate), activations).mean(),
        zeros=token_mean(hidden == 0, activations).mean(),
        gate_zeros=token_mean(gate == 0, activations).mean(),
        live=token_mean(hidden != 0, activations),
    )


def live_pairs(activations: Activations, own: Any = None) -> Float[Array, "f f"]:
    """Computes the share of text tokens at which two channels are live together, as a probe.

    Args:
      activations: What the block computed.
      own: Unused.

    Returns:
      A matrix whose diagonal is the share of tokens at which a channel is live. Channels i and j
      are as often live together as independent ones where entry (i, j) is the product of theirs.
    """
    del own
    live = (activations.hidden != 0).astype(jnp.float32)
    count: Array | int = live.shape[0] * live.shape[1]
    if activations.mask is not None:
        live, count = live * activations.mask[..., None], jnp.maximum(activations.mask.sum(), 1)
    return jnp.einsum("btf,btg->fg", live, live) / count


def expected_union(live: Float[Array, "*layers f"], tokens: int) -> Float[Array, "*layers"]:
    """Computes the share of channels live at any of several tokens, were tokens independent.

    It is what a batch of so many texts must read where each token reads its own rows.

    Args:
      live: Share of tokens at which each channel is live.
      tokens: Number of tokens decoded at once.
    """
    return jnp.mean(1 - (1 - live) ** tokens, axis=-1)


def weights_read(
    live: float | Float[Array, "*b"], *, gate_dense: bool = True
) -> float | Float[Array, "*b"]:
    """Computes the share of a gated MLP's weights that decoding one token reads.

    Args:
      live: Share of channels that are live.
      gate_dense: Whether the gate's matrix is read whole, to know which are live; otherwise a
        predictor knows, whose own weights are not counted.

    Returns:
      (1 + 2 live) / 3 or `live`. One token is multiplied once by every weight that is read, so that
      it is the share of bytes and of multiplications too.
    """
    return (1 + 2 * live) / 3 if gate_dense else live
