"""What the recipe on CHESS compares: nats, weights read, shares, prose, the choice of a line."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common.small_lm import differences
from experiments.sparsity.chess_readings import (
    EVERY,
    SELECTIVE,
    Reader,
    Reading,
    variants,
    weights_of_layer,
)
from rml.models import Thresholds
from rml.sparsity import expected_union, thresholds_of, weights_read

HALF, MOST = 0.5, 0.7
CHOOSERS = ("dense", "uniform", "abs", "shuffled")
"""What chooses lines."""
THINNED = {"attention": SELECTIVE, "selective": SELECTIVE, "selective_every": EVERY}
"""By rule projections of attention whose inputs are thinned out."""


def summarised(dense: Reading, readings: dict[float, dict[str, Reading]]) -> dict[str, float]:
    """Nats and shares of zeros of every reading, and differences with their intervals."""
    metrics: dict[str, float] = {"nats_dense": dense.nats.mean()}
    for share, own in readings.items():
        for name, reading in own.items():
            metrics |= {
                f"nats_{name}_{share:g}": reading.nats.mean(),
                f"zeros_{name}_{share:g}": reading.zeros.mean(),
            }
    half, most = readings[HALF], readings[MOST]

    def saved(own: dict[str, Reading], better: str, worse: str) -> np.ndarray:
        """Nats that one rule saves against another, over the other's mean."""
        return (own[worse].nats - own[better].nats) / own[worse].nats.mean()

    rules_apart, moments_apart = (
        abs(saved(half, "abs", other).mean()) for other in ("uniform", "rms")
    )
    pairs = {
        "gain_half": saved(half, "abs", "uniform"),
        "gain_half_shuffled": saved(half, "shuffled", "uniform"),
        "gain_most": saved(most, "abs", "uniform"),
        "gain_most_shuffled": saved(most, "shuffled", "uniform"),
        "gain_down": saved(most, "abs_down", "abs"),
        "gain_down_over_rms": saved(most, "abs_down", "rms"),
        "gain_rms": saved(most, "rms", "abs"),
        "gain_top": saved(half, "top", "abs"),
        "gain_product": saved(half, "product", "abs"),
        "selective_cost": -saved(half, "selective", "abs"),
        "every_cost": -saved(half, "selective_every", "abs"),
        "gain_layers": saved(most, "by_layer", "abs"),
        "gain_layers_shuffled": saved(most, "by_other_layer", "abs"),
    }
    apart = {"moments_apart": moments_apart, "rules_apart": rules_apart}
    return metrics | apart | differences(pairs)


def costs(module: Any, half: dict[str, Reading]) -> dict[str, float]:
    """Shares of weights that decoding one token reads, and several at once."""
    zeros = float(half["abs"].zeros.mean())
    union = expected_union(jnp.asarray(half["abs"].live), 8).mean()
    return {
        "mlp_read": float(weights_read(1 - zeros)),
        # The gate and what it multiplies are read whole where their product decides.
        "mlp_read_product": (3 - half["product"].zeros.mean()) / 3,
        "layer_read_selective": layer_read(module, "selective", HALF, zeros),
        "mlp_read_batch_8": float(weights_read(union)),
    }


def layer_read(module: Any, rule: str, share: float, zeros: float) -> float:
    """Share of a layer's weights, attention included, that decoding one token reads by a rule.

    Args:
      module: The decoder.
      rule: Name of the rule.
      share: Share that is left out of the inputs of projections, if the rule thins them out.
      zeros: Share of zeros that the MLP's last matrix reads.
    """
    size = weights_of_layer(module)
    read = (3 - zeros if rule == "product" else 3 - 2 * zeros) * size["mlp"]
    for place in EVERY:
        kept = 1 - share if place in THINNED.get(rule, ()) else 1
        read += kept * size["key" if place in ("key", "value") else "query"]
    return read / size["all"]


def shares_off(reader: Reader, found: Any, half: dict[str, Reading]) -> dict[str, float]:
    """How far any layer is from the half asked for, by its thresholds and by another layer's."""
    gate = thresholds_of(found, sparsity=HALF).gate
    other = reader.read(reader.code, Thresholds(gate=jnp.roll(jnp.asarray(gate), 1, axis=0)))
    return {"share_off": off(half["abs"]), "share_off_other_layer": off(other)}


def off(half: Reading) -> float:
    """The largest difference of a layer's share of zeros from half."""
    return float(np.abs(half.zeros - HALF).max())


def on_prose(config: Any, reader: Reader, found: Any) -> dict[str, float]:
    """What thresholds of code lose on prose, against thresholds of prose."""
    own = reader.observe(reader.prose, ("abs",))
    made = variants(found, HALF, config.seed)
    read = {
        "own": reader.read(reader.prose, thresholds_of(own, sparsity=HALF)),
        "code": reader.read(reader.prose, made["abs"]),
        "shuffled": reader.read(reader.prose, made["shuffled"]),
    }
    nats = {name: reading.nats for name, reading in read.items()}
    metrics = {f"prose_nats_{name}": own.mean() for name, own in nats.items()}
    metrics["share_off_prose"] = off(read["code"])
    lost = {name: (nats[name] - nats["own"]) / nats["own"].mean() for name in ("code", "shuffled")}
    return metrics | differences(
        {"transfer_cost": lost["code"], "transfer_cost_shuffled": lost["shuffled"]}
    )


def of_choices(config: Any, reader: Reader, found: Any) -> dict[str, float]:
    """How probable the true next line is among four, and how often it is the most probable."""
    made = variants(found, MOST, config.seed)
    found = {name: reader.choose(made.get(name)) for name in CHOOSERS}
    metrics: dict[str, float] = {}
    for name, odds in found.items():
        metrics |= {
            f"cloze_{name}": odds[:, 0].mean(),
            f"cloze_right_{name}": np.mean(odds.argmax(axis=1) == 0),
        }
    true = {name: odds[:, 0] for name, odds in found.items()}
    return metrics | differences(
        {
            "cloze_gain": true["abs"] - true["uniform"],
            "cloze_gain_shuffled": true["shuffled"] - true["uniform"],
        }
    )
