"""Shares of sparsity that differ by layer: how much each layer matters, and who gives how much.

CHESS (He et al., arXiv:2409.01366) leaves out the same share in every layer. That layers which
matter less may give more is this repository's own extension: the same importance decides between
layers that decides between channels.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.models import Llama
from rml.models.block_hooks import Thresholds
from rml.sparsity.thresholds import BINS, HIGH, LOW, Calibration

LEAST = 1e-6
"""Smallest sensitivity of a layer, over the largest: one that measures nothing still counts."""


def layer_divergence(
    module: Llama, variables: Any, windows: Int[np.ndarray, "n t"], thresholds: Thresholds
) -> Float[np.ndarray, " layers"]:
    """Measures how much thresholds of one layer alone change what a decoder predicts.

    Entry l is the mean over tokens of KL(p ‖ p_l), where p is the decoder's distribution of the
    next token, and p_l that with the thresholds of layer l alone.

    Args:
      module: The decoder.
      variables: Its variables.
      windows: Texts of equally many tokens, read one at a time.
      thresholds: Thresholds of all layers.

    Returns:
      Divergences, in nats a token.

    Raises:
      ValueError: There is no text.
    """
    if not len(windows):
        raise ValueError("no windows to measure layers on, expected at least one")
    found = [_divergences(module, variables, jnp.asarray(own)[None], thresholds) for own in windows]
    return np.mean([np.asarray(own) for own in found], axis=0)


def shares_by_sensitivity(
    calibration: Calibration,
    divergence: Float[np.ndarray, " layers"],
    *,
    measured: float,
    sparsity: float,
    rule: str = "abs",
) -> Float[np.ndarray, " layers"]:
    """Finds layers' shares of a given mean that cost least, if costs are like what is left out.

    Let D_l(q) be the sum of the squares of a layer's q smallest importances. A cost d_l that was
    measured at the share q₀ is taken to be s_l D_l(q₀), which gives s_l. The sum Σ_l s_l D_l(q_l)
    is least, at a given mean of the q_l, where all entries with s_l t² below one level are left
    out, whatever their layer: D_l is convex, with the square of the threshold as its slope.

    Args:
      calibration: What was found on texts, for this rule.
      divergence: Costs d_l, not negative, such as those of `layer_divergence`.
      measured: Share q₀ at which they were measured, above 0.
      sparsity: Mean of the shares, 0 to 1.
      rule: See `channel_scale`.

    Returns:
      Shares, for `thresholds_of`.

    Raises:
      ValueError: A share is out of range, costs are negative, not finite or none is above 0, or the
        rule was not calibrated.
    """
    if not 0 < measured <= 1 or not 0 <= sparsity <= 1:
        raise ValueError(
            f"measured={measured} and sparsity={sparsity}, expected above 0 to 1 and 0 to 1"
        )
    if rule not in calibration.counts:
        raise ValueError(f"rule {rule!r} was not calibrated, only {', '.join(calibration.scales)}")
    if not np.isfinite(divergence).all() or min(divergence) < 0 or max(divergence) <= 0:
        raise ValueError(
            f"divergence={divergence}, expected numbers that are not negative, one above 0"
        )
    counts = calibration.counts[rule].astype(np.float64)
    middle = 2.0 ** (LOW + (HIGH - LOW) / BINS * (np.arange(BINS) + 0.5))
    squares = (calibration.units[rule][:, None] * middle) ** 2
    total = counts.sum(axis=1, keepdims=True)
    before = np.cumsum(counts, axis=1) - counts
    below = np.clip(measured * total - before, 0, counts)
    cost = np.maximum(divergence / divergence.max(), LEAST)
    sensitivity = cost / np.maximum((below * squares).sum(axis=1), np.finfo(np.float64).tiny)
    # Every layer has as many entries as any other: the mean share is the share of all entries.
    level = (sensitivity[:, None] * squares).ravel()
    order = np.argsort(level, kind="stable")
    ordered = counts.ravel()[order]
    taken = np.clip(sparsity * ordered.sum() - (np.cumsum(ordered) - ordered), 0, ordered)
    out = np.zeros(counts.size)
    out[order] = taken
    return out.reshape(counts.shape).sum(axis=1) / total[:, 0]


@functools.partial(jax.jit, static_argnames="module")
def _divergences(
    module: Llama, variables: Any, tokens: Array, thresholds: Thresholds
) -> Float[Array, " layers"]:
    def log_probabilities(thresholds: Thresholds | None) -> Array:
        hidden = module.apply(variables, tokens, thresholds=thresholds)
        return jax.nn.log_softmax(jnp.asarray(module.apply(variables, hidden, method="logits")))

    dense = log_probabilities(None)

    def of_layer(layer: Array) -> Array:
        def alone(values: Array) -> Array:
            own = jnp.arange(len(values)) == layer
            return jnp.where(own.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)

        thinned = log_probabilities(jax.tree.map(alone, thresholds))
        return jnp.sum(jnp.exp(dense) * (dense - thinned), axis=-1).mean()

    return jax.lax.map(of_layer, jnp.arange(module.depth))
