"""CHESS: half of a trained decoder's channels left out, without training, by several rules.

He et al., CHESS: Optimizing LLM Inference via Channel-Wise Thresholding and Selective
Sparsification, arXiv:2409.01366. Thresholds are calibrated on training documents and tested on
others: CATS's uniform one, CHESS's by channel with the mean or the root mean square of what the
gate multiplies, CHESS's with the norm of the row that the channel would read ("abs_down", ours),
the product once both factors are known (a bound: it saves one matrix of three), the largest gates
of every token, and channels at random. "shuffled" has the thresholds of other channels of the
layer. The unit of intervals is a document. Models, texts, sizes and margins are this repository's.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common.small_lm import differences
from experiments.sparsity import chess_figures
from experiments.sparsity.chess_readings import Reader, Reading, variants, weights_of_layer
from experiments.sparsity.timed_ffn import speedups
from rml.errors import UserError
from rml.sparsity import (
    expected_union,
    save_thresholds,
    thresholds_of,
    weights_read,
)
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2409.01366, abstract and the authors' code; data, sizes and margin are ours"
OURS = "this repository's own question"
HALF, MOST = 0.5, 0.7
CLAIMS = (
    Claim("With half of the gates left out, CHESS loses 1% fewer nats than a uniform threshold",
          "gain_half", ">=", 0.01, SOURCE, stated="2026-11-26", null="gain_half_shuffled"),
    Claim("With 7 in 10 left out, 3% fewer",
          "gain_most", ">=", 0.03, SOURCE, stated="2026-11-26", null="gain_most_shuffled"),
    Claim("Mean magnitude and root mean square of u give nats within 0.5% of each other",
          "moments_apart", "<=", 0.005, f"{SOURCE}; the two codes differ in it",
          stated="2026-11-26", null="rules_apart"),
    Claim("With 7 in 10 left out, the norm of the row read loses fewer nats still",
          "gain_down", ">=", 0.0, OURS, stated="2026-11-26", null="gain_rms"),
    Claim("Thinning out the inputs of queries and output by half costs at most 1% more",
          "selective_cost", "<=", 0.01, SOURCE, stated="2026-11-26", null="every_cost"),
    Claim("Thresholds of code lose at most 1% on prose against thresholds of prose",
          "transfer_cost", "<=", 0.01, OURS, stated="2026-11-26", null="transfer_cost_shuffled"),
    Claim("With half left out, decoding reads at most 70% of the MLP's weights",
          "mlp_read", "<=", 0.7, SOURCE, stated="2026-11-26", null="mlp_read_product"),
    Claim("One token's feed-forward of 8,192 channels is 1.2 times as fast as the dense one",
          "speedup_wide", ">=", 1.2, f"{SOURCE}, abstract: up to 1.27 end to end on a CPU",
          stated="2026-11-26", null="speedup_narrow"),
)  # fmt: skip
CAPTIONS = chess_figures.CAPTIONS
PICTURE = "nats.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Calibrates, reads with every rule and share, reads prose, times, saves thresholds, draws."""
    check(config)
    progress, reader = Progress(), Reader(config)
    found = reader.observe(reader.code)
    dense = reader.read(reader.code)
    progress.note(f"dense: {dense.nats.mean():.4f} nats a token")
    readings: dict[float, dict[str, Reading]] = {}
    for share in config.shares:
        made = variants(found, share, config.seed)
        names = made if share == HALF else config.others
        own = {name: reader.read(reader.code, made[name]) for name in names}
        own["top"] = reader.read(reader.code, activation=reader.top(share))
        readings[share] = own
        shown = {name: round(float(own[name].nats.mean()), 4) for name in own}
        progress.note(f"{share:.0%} left out: {shown}")
    half = thresholds_of(found, sparsity=HALF, attention=("query", "output"))
    save_thresholds(run.path / "thresholds.safetensors", half)
    metrics = summarised(dense, readings) | costs(reader.module, readings[HALF])
    metrics |= on_prose(config, reader, found)
    timed = speedups(config.timing, sparsity=HALF, seed=config.seed)
    metrics |= {f"speedup_{name}": value for name, value in timed.items()}
    chess_figures.of_nats(run, dense, readings)
    chess_figures.of_channels(run, readings[HALF])
    chess_figures.of_layers(run, {name: readings[HALF][name] for name in ("uniform", "abs")})
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    if not {HALF, MOST} <= set(config.shares) or not all(0 < x < 1 for x in config.shares):
        raise UserError(f"shares is {config.shares}, expected {HALF}, {MOST} and others in (0, 1)")
    needed = {"uniform", "abs", "rms", "abs_down", "shuffled"}
    if not needed <= set(config.others):
        raise UserError(f"others is {config.others}, expected {sorted(needed)} among it")
    if config.reading.documents < 2:
        raise UserError(
            f"reading.documents is {config.reading.documents}, expected at least 2 for an interval"
        )


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
        "gain_rms": saved(most, "rms", "abs"),
        "gain_top": saved(half, "top", "abs"),
        "gain_product": saved(half, "product", "abs"),
        "selective_cost": -saved(half, "selective", "abs"),
        "every_cost": -saved(half, "selective_every", "abs"),
    }
    apart = {"moments_apart": moments_apart, "rules_apart": rules_apart}
    return metrics | apart | differences(pairs)


def costs(module: Any, half: dict[str, Reading]) -> dict[str, float]:
    """Shares of weights that decoding one token reads, and several at once."""
    live = 1 - float(half["abs"].zeros.mean())
    size = weights_of_layer(module)
    mlp = float(weights_read(live))
    read = mlp * 3 * size["mlp"] + 2 * HALF * size["query"] + 2 * size["key"]
    union = expected_union(jnp.asarray(half["abs"].live), 8).mean()
    return {
        "mlp_read": mlp,
        # The gate and what it multiplies are read whole where their product decides.
        "mlp_read_product": (3 - half["product"].zeros.mean()) / 3,
        "layer_read_selective": read / size["all"],
        "mlp_read_batch_8": float(weights_read(union)),
    }


def on_prose(config: Any, reader: Reader, found: Any) -> dict[str, float]:
    """What thresholds of code lose on prose, against thresholds of prose."""
    own = reader.observe(reader.prose, ("abs",))
    made = variants(found, HALF, config.seed)
    nats = {
        "own": reader.read(reader.prose, thresholds_of(own, sparsity=HALF)).nats,
        "code": reader.read(reader.prose, made["abs"]).nats,
        "shuffled": reader.read(reader.prose, made["shuffled"]).nats,
    }
    metrics = {f"prose_nats_{name}": own.mean() for name, own in nats.items()}
    lost = {name: (nats[name] - nats["own"]) / nats["own"].mean() for name in ("code", "shuffled")}
    return metrics | differences(
        {"transfer_cost": lost["code"], "transfer_cost_shuffled": lost["shuffled"]}
    )
