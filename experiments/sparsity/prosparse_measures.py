"""What the recipe on ProSparse compares: nats at equal sparsity, the law of the last factor."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import optimize

from experiments.common.small_lm import differences
from experiments.sparsity.prosparse_training import RELU, Reading, main_peak
from rml.sparsity import expected_union, weights_read

TOP = "top"
"""The model with the largest gates of each token alone."""


def summarised(config: Any, found: dict[str, Reading], chosen: str) -> dict[str, float]:
    """Nats and sparsity of all, and what the claims compare, with intervals over windows."""
    metrics: dict[str, float] = {"tries_pro": len(config.peaks), "chosen_peak": peak_of(chosen)}
    for name, own in found.items():
        metrics |= {f"nats_{name}": own.nats.mean(), f"size_{name}": own.size.sum()}
    pro, relu, plain = found["pro"], found[RELU], found[chosen]
    main = main_peak(config)
    sine, line, gate = (found[f"{kind}_{main:g}"] for kind in ("progressive", "linear", "gate"))

    def more(own: np.ndarray, than: np.ndarray) -> np.ndarray:
        return (own - than) / than.mean()

    pairs = {f"excess_{name}": more(found[name].nats, relu.nats) for name in
             ("pro", "random", "chess", TOP, "silu", "shifted")}  # fmt: skip
    pairs |= {
        "gain_over_constant": more(at_sparsity(config, found, "constant", plain), plain.nats),
        "gain_over_linear": more(line.nats, at_sparsity(config, found, "progressive", line)),
        "gain_over_gate": more(gate.nats, at_sparsity(config, found, "progressive", gate)),
        "gain_over_top": more(found[TOP].nats, pro.nats),
        "threshold_cost": more(pro.nats, plain.nats),
        "threshold_cost_random": more(found["pro_random"].nats, plain.nats),
    }
    pairs |= zeros_compared(found, {"": "pro", "_relu": RELU})
    r2, fit = law(config, found)
    order = np.random.default_rng(config.seed).permutation(len(config.peaks))
    metrics |= {"law_r2": r2, "law_r2_shuffled": law(config, found, order)[0]}
    metrics |= dict(zip(("law_a", "law_b", "law_c"), fit, strict=True))
    metrics |= {
        "ramps_apart": abs(more(sine.nats, line.nats).mean()),
        "constant_apart": abs(more(sine.nats, found[f"constant_{main:g}"].nats).mean()),
    }
    for end, own in (("", pro), ("_relu", relu)):
        union = expected_union(jnp.asarray(own.live), 8).mean()
        metrics |= {
            f"mlp_read_batch_8{end}": float(weights_read(union)),
            f"never_live{end}": float((own.live == 0).mean()),
        }
    return metrics | differences(pairs)


def zeros_compared(
    found: Mapping[str, Reading], ends: Mapping[str, str]
) -> dict[str, Float[np.ndarray, " windows"]]:
    """Computes sparsity of every reading, and what follows from it, window by window.

    Args:
      found: Readings by name.
      ends: Name of the reading of which weights that are read and the first layer are measured,
        by the last part of a metric's name.

    Returns:
      By metric the values of all windows.
    """
    metrics = {f"sparsity_{name}": own.zeros.mean(1) for name, own in found.items()}
    for end, name in ends.items():
        zeros = found[name].zeros
        metrics[f"mlp_read{end}"] = np.array([weights_read(1 - float(own.mean())) for own in zeros])
        metrics[f"first_layer_denser{end}"] = zeros[:, 1:].mean(1) - zeros[:, 0]
    return metrics


def peak_of(name: str) -> float:
    """The last factor in a variant's name."""
    return float(name.rpartition("_")[2])


def at_sparsity(config: Any, found: dict[str, Reading], kind: str, wanted: Reading) -> np.ndarray:
    """Nats of every window at a sparsity, between the two variants of a kind nearest to it.

    Beyond the variants the last one counts as it is.
    """
    own = sorted(
        (found[RELU], *(found[f"{kind}_{peak:g}"] for peak in config.peaks)),
        key=lambda reading: reading.zeros.mean(),
    )
    zeros = np.array([reading.zeros.mean() for reading in own])
    place = float(np.interp(wanted.zeros.mean(), zeros, np.arange(len(zeros))))
    low, share = int(place), place - int(place)
    high = min(low + 1, len(own) - 1)
    return (1 - share) * own[low].nats + share * own[high].nats


def law(
    config: Any, found: dict[str, Reading], order: Any = slice(None)
) -> tuple[float, np.ndarray]:
    """Fits 100 - exp(c - a λ^b) to sparsity in percent: R², and a, b and c; NaN where it fails."""
    peaks = np.asarray(config.peaks, float)
    zeros = 100 * np.array([found[f"progressive_{p:g}"].zeros.mean() for p in config.peaks])[order]

    def curve(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return 100 - np.exp(np.clip(c - a * x**b, -50, 50))

    bounds = ((0, 0.01, -10), (50, 3, 10))
    try:
        fit, _ = optimize.curve_fit(curve, peaks, zeros, (1.76, 0.3, 3.49), bounds=bounds)
    except RuntimeError:  # no optimum within SciPy's number of evaluations
        return math.nan, np.full(3, math.nan)
    lost = np.sum((zeros - curve(peaks, *fit)) ** 2)
    return float(1 - lost / max(np.sum((zeros - zeros.mean()) ** 2), 1e-12)), fit
