"""Thresholds of activations without training: channel by channel (CHESS), or uniform (CATS).

Junhui He, Shangyu Wu, Weidong Wen, Chun Jason Xue, Qingan Li: CHESS: Optimizing LLM Inference via
Channel-Wise Thresholding and Selective Sparsification, arXiv:2409.01366.

A gated MLP is (g ⊙ u) W_d with g = SiLU(x W_g), u = x W_u. A channel whose g is set to zero needs
neither its column of W_u nor its row of W_d. What it costs depends on u, which is not known when
channels are left out; CHESS puts its usual size m in its place:

1. T is the quantile of the importance |g_i| m_i over all tokens and channels of a layer.
2. Channel i is left out where |g_i| < τ_i = T / m_i.

Inputs of the projections to queries and back from heads may be thinned out likewise, by one
threshold a layer; keys and values stay as they are.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rml.errors import UserError, unknown
from rml.models.block_hooks import Thresholds
from rml.models.pretrained.files import read_safetensors
from rml.ops.shares import whole_part
from rml.sparsity.files import write_new

RULES = ("uniform", "abs", "rms", "abs_down", "rms_down", "product", "product_down")
"""Rules of `channel_scale`."""
PLACES = ("query", "key", "value", "output")
"""Projections of attention."""
BINS = 2048
"""Bins of a histogram."""
LOW, HIGH = -24, 8
"""Base-2 logarithms between which its bins lie, of a size over the layer's root mean square."""


class Moments(NamedTuple):
    """Means over tokens, stacked over layers.

    Attributes:
      up: Mean magnitude of u.
      up_square: Mean square of u.
      gate_square: Mean square of g over channels too.
      query_square: Mean square of what the projection to queries reads, over its width too.
      output_square: Mean square of what the projection back from heads reads, likewise.
    """

    up: Float[Array, "layers f"]
    up_square: Float[Array, "layers f"]
    gate_square: Float[Array, " layers"]
    query_square: Float[Array, " layers"]
    output_square: Float[Array, " layers"]


class Calibration(NamedTuple):
    """What two passes over texts found.

    Attributes:
      scales: Factor of each channel in its importance, [layers, f], by rule.
      units: Importance that bins are counted from, [layers], by rule and place.
      counts: Number of importances in each bin, [layers, bins], by rule and place.
    """

    scales: Mapping[str, Float[np.ndarray, "layers f"]]
    units: Mapping[str, Float[np.ndarray, " layers"]]
    counts: Mapping[str, Int[np.ndarray, "layers bins"]]


def importance(gate: Float[Array, "*b f"], scale: Float[Array, " f"]) -> Float[Array, "*b f"]:
    """Computes |g_i| m_i.

    Args:
      gate: The gate after its nonlinearity.
      scale: Usual size m of what each channel of the gate is multiplied by.

    Source: arXiv:2409.01366; m is E|u| in the authors' code of 2025, the root of E[u²] in that of
    2024.
    """
    return jnp.abs(gate) * scale


def channel_scale(
    rule: str, moments: Moments, down_norms: Float[Array, "layers f"]
) -> Float[Array, "layers f"]:
    """Computes the factor of each channel in its importance, by rule.

    Args:
      rule: "uniform" has 1, and one threshold for all channels: CATS. "abs" has the mean magnitude
        of u, CHESS as of 2025; "rms" its root mean square, CHESS as of 2024. "abs_down" and
        "rms_down" also have the norm of the channel's row of W_d, so that the importance does not
        change where u is scaled by a factor and the row by its inverse; they are this repository's.
        "product" and "product_down" are 1 and the row's norm, for rules that know u: they save
        rows of W_d alone.
      moments: What the first pass found.
      down_norms: Norms of the rows of W_d.

    Raises:
      ValueError: The rule is unknown.
    """
    check_rule(rule)
    scales = {"abs": moments.up, "rms": jnp.sqrt(moments.up_square)}
    scale = scales.get(rule.removesuffix("_down"), jnp.ones_like(moments.up))
    return scale * down_norms if rule.endswith("_down") else scale


def check_rule(rule: str) -> None:
    """Raises ValueError unless a rule is known."""
    if rule not in RULES:
        raise unknown("rule of thresholds", rule, RULES)


def kth_smallest(values: Float[Array, " n"], share: float) -> Float[Array, ""]:
    """Finds the k-th smallest of values, k = ⌊share · n⌋: as many but one lie below it.

    Args:
      values: Values, not negative.
      share: Share of them, 0 to 1.

    Returns:
      The value; 0 where k is 0, and infinity where k is n, so that nothing or all lies below it.

    Source: The quantile of the authors' code, which fails where k is 0.
    """
    n = values.shape[0]
    k = whole_part(share * n)
    if k in (0, n):
        return jnp.asarray(0.0 if k == 0 else jnp.inf, values.dtype)
    return jnp.partition(values, k - 1)[k - 1]


def bin_counts(sizes: Float[Array, "*b"]) -> Int[Array, " bins"]:
    """Counts sizes, in units of their layer, in bins of equal width of their logarithm.

    Args:
      sizes: Sizes, not negative; those beyond the bins count in the first or the last.
    """
    width = (HIGH - LOW) / BINS
    at = jnp.floor((jnp.log2(jnp.maximum(sizes.ravel(), 2.0**LOW)) - LOW) / width)
    at = jnp.clip(at, 0, BINS - 1).astype(jnp.int32)
    return jnp.zeros(BINS, jnp.int32).at[at].add(1)


def binned_quantile(
    counts: Int[np.ndarray, "*b bins"], share: float | Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b"]:
    """Finds the `kth_smallest` of sizes that were counted, within a bin's width of 1.1%.

    Args:
      counts: Counts of `bin_counts`.
      share: Share of sizes, 0 to 1, of all or of each.

    Returns:
      Sizes, in units of their layer.
    """
    running = np.cumsum(counts.astype(np.int64), axis=-1)
    total = running[..., -1:]
    wanted = np.floor(np.asarray(share)[..., None] * total + 1e-9).astype(np.int64)
    at = np.argmax(running >= np.maximum(wanted, 1), axis=-1)[..., None]
    own = np.take_along_axis(counts, at, -1)
    before = np.take_along_axis(running, at, -1) - own
    log = LOW + (HIGH - LOW) / BINS * (at + (wanted - before) / np.maximum(own, 1))
    found = np.where(wanted == 0, 0.0, np.where(wanted == total, np.inf, 2.0**log))
    return found[..., 0]


def thresholds_of(
    calibration: Calibration,
    *,
    sparsity: float | Float[np.ndarray, " layers"],
    rule: str | None = "abs",
    attention: Collection[str] = (),
) -> Thresholds:
    """Finds thresholds below which a share of importances lies in every layer.

    Args:
      calibration: What was found on texts, for this rule.
      sparsity: The share, 0 to 1, of all layers or of each; channels differ in theirs, the layer's
        mean is this.
      rule: See `channel_scale`; None leaves the MLP alone.
      attention: Projections of attention whose inputs are thinned out by as much. The paper takes
        "query" and "output".

    Raises:
      ValueError: The share is not in 0 to 1, the rule or a place is unknown or was not calibrated.

    Source: arXiv:2409.01366.
    """
    if not np.all((np.asarray(sparsity) >= 0) & (np.asarray(sparsity) <= 1)):
        raise ValueError(f"sparsity={sparsity}, expected 0 to 1")

    def quantile(name: str) -> np.ndarray:
        return binned_quantile(calibration.counts[name], sparsity) * calibration.units[name]

    found: dict[str, jax.Array] = {}
    if rule is not None:
        check_rule(rule)
        if rule not in calibration.counts:
            raise ValueError(
                f"rule {rule!r} was not calibrated, only {', '.join(calibration.scales)}"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            least = quantile(rule)[:, None] / calibration.scales[rule]
        # A channel that is multiplied by nothing is left out; with no share at all none is.
        nothing = np.where(np.asarray(sparsity) == 0, 0.0, np.inf)[..., None]
        least = np.where(np.isnan(least), nothing, least)
        place = "hidden" if rule.startswith("product") else "gate"
        found[place] = jnp.asarray(least, jnp.float32)
    for name in attention:
        if name not in PLACES:
            raise unknown("place of attention", name, PLACES)
        if not {"query", "output"} <= set(calibration.counts):
            raise ValueError(
                f"place {name!r} was not calibrated, only {', '.join(calibration.counts)}"
            )
        found[name] = jnp.asarray(quantile("output" if name == "output" else "query"), jnp.float32)
    return Thresholds(**found)


def random_channels(
    key: Key[Array, ""], *, layers: int, channels: int, sparsity: float
) -> Thresholds:
    """Leaves out the same channels of every token, drawn at random in each layer.

    Args:
      key: Key of the draw.
      layers: Number of layers.
      channels: Number of channels of a layer.
      sparsity: Share of them that is left out, 0 to 1; their number is rounded down.

    Raises:
      ValueError: The share is not in 0 to 1.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity}, expected 0 to 1")
    keys = jax.random.split(key, layers)
    order = jax.vmap(lambda own: jax.random.permutation(own, channels))(keys)
    count = whole_part(sparsity * channels)
    return Thresholds(gate=jnp.where(order < count, jnp.inf, 0.0))


def save_thresholds(file: str | Path, thresholds: Thresholds) -> None:
    """Writes thresholds as safetensors, those that are given by their names, whole or not at all.

    Args:
      file: The file, which must not exist.
      thresholds: The thresholds.

    Raises:
      UserError: The file exists.
    """
    write_new(file, {name: x for name, x in thresholds._asdict().items() if x is not None})


def load_thresholds(file: str | Path) -> Thresholds:
    """Reads what `save_thresholds` wrote.

    Args:
      file: The file.

    Raises:
      UserError: It is missing or damaged, or has a tensor of another name.
    """
    found = read_safetensors(Path(file))
    if others := sorted(set(found) - set(Thresholds._fields)):
        known = ", ".join(Thresholds._fields)
        raise UserError(f"{file} has a tensor {others[0]!r}, expected thresholds: {known}")
    return Thresholds(**{name: jnp.asarray(x.read()) for name, x in found.items()})
