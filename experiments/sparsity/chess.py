"""CHESS: half of a trained decoder's channels left out, without training, by several rules.

He et al., CHESS: Optimizing LLM Inference via Channel-Wise Thresholding and Selective
Sparsification, arXiv:2409.01366. Thresholds are calibrated on training documents and tested on
others: CATS's uniform one, CHESS's by channel with the mean or the root mean square of what the
gate multiplies, CHESS's with the norm of the row that the channel would read ("abs_down", ours),
the product once both factors are known (a bound: it saves one matrix of three), the largest gates
of every token, and channels at random. "shuffled" has the thresholds of other channels of the
layer, "by_layer" more of the layers that matter less (ours), "by_other_layer" the same shares in
another order. The true next line is chosen among four, in the place of the paper's eight tasks. The
unit of intervals is a document. Models, texts, sizes and margins are this repository's.
"""

from typing import Any

from experiments.sparsity import chess_figures
from experiments.sparsity.chess_measures import (
    HALF,
    MOST,
    costs,
    of_choices,
    on_prose,
    shares_off,
    summarised,
)
from experiments.sparsity.chess_readings import Reader, Reading, by_layer, variants
from experiments.sparsity.timed_ffn import speedups
from rml.errors import UserError, unknown
from rml.sparsity import save_thresholds, thresholds_of
from rml.training import Claim, Progress, RunDirectory
from rml.training.durable import replacing

SOURCE = "arXiv:2409.01366, abstract and the authors' code; data, sizes and margin are ours"
ANEW = "worded anew after the first measurement"
CLAIMS = (
    Claim("With half of the gates left out, CHESS has fewer nats than a uniform threshold",
          "gain_half", ">=", 0.0, f"{SOURCE}; {ANEW}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="gain_half_shuffled",
          says="With half of the gates left out, CHESS saves {mean:+.1%} of the loss of a uniform "
          "threshold ({nats_dense:.2f} nats a token with all gates)"),
    Claim("With 7 in 10 left out, CHESS has 3% fewer nats than a uniform threshold",
          "gain_most", ">=", 0.03, f"{SOURCE}; {ANEW}",
          stated="2026-11-26", null="gain_most_shuffled",
          says="With 7 in 10 gates left out, CHESS saves {mean:+.1%} of the loss of a uniform "
          "threshold"),
    Claim("Thinning out the inputs of queries and output by half costs at most 1% more",
          "selective_cost", "<=", 0.01, SOURCE, stated="2026-11-26", null="every_cost",
          says="Half of the inputs of queries and output left out as well changes the loss by "
          "{mean:+.1%}; of every projection of attention, by {every_cost:+.1%}"),
    Claim("One token's feed-forward of 8,192 channels is 1.2 times as fast as the dense one",
          "speedup_wide", ">=", 1.2, f"{SOURCE}, abstract: up to 1.27 end to end on a CPU",
          stated="2026-11-26", null="speedup_narrow",
          says="With half left out, a token's feed-forward of 8,192 channels is {mean:.2f} times "
          "as fast as the dense one, one of 1,536 channels {speedup_narrow:.2f} times"),
)  # fmt: skip
NEEDED = {
    "half": {"uniform", "abs", "rms", "product", "shuffled", "selective", "selective_every", "top"},
    "most": {"uniform", "abs", "rms", "abs_down", "shuffled", "by_layer", "by_other_layer"},
}
"""Rules that claims compare, with half of the channels left out and with most."""
CAPTIONS = chess_figures.CAPTIONS
PICTURE = "nats.png"
THRESHOLDS = "thresholds.safetensors"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Calibrates, reads with every rule and share, reads prose, times, saves thresholds, draws."""
    check(config)
    progress, reader = Progress(), Reader(config)
    found = reader.observe(reader.code)
    dense = reader.read(reader.code)
    progress.note(f"dense: {dense.nats.mean():.4f} nats a token")
    readings: dict[float, dict[str, Reading]] = {}
    divergence = reader.divergence(found)
    for share in config.shares:
        made = variants(found, share, config.seed)
        made |= by_layer(found, share, config.seed, divergence, config.layers.share)
        names = config.rules[{HALF: "half", MOST: "most"}.get(share, "other")]
        own = {name: reader.read(reader.code, made[name]) for name in names if name != "top"}
        if "top" in names:
            own["top"] = reader.read(reader.code, activation=reader.top(share))
        readings[share] = own
        shown = {name: round(float(own[name].nats.mean()), 4) for name in own}
        progress.note(f"{share:.0%} left out: {shown}")
    half = thresholds_of(found, sparsity=HALF, attention=("query", "output"))
    with replacing(run.path / THRESHOLDS) as place:
        save_thresholds(place, half)
    metrics = summarised(dense, readings) | costs(reader.module, readings[HALF])
    metrics |= {"divergence_least": divergence.min(), "divergence_most": divergence.max()}
    metrics |= shares_off(reader, found, readings[HALF])
    metrics |= on_prose(config, reader, found) | of_choices(config, reader, found)
    timed = speedups(config.timing, sparsity=HALF, seed=config.seed)
    metrics |= {f"speedup_{name}": value for name, value in timed.items()}
    chess_figures.of_nats(run, reader.module, dense, readings)
    chess_figures.of_channels(run, readings[HALF])
    chess_figures.of_layers(run, {name: readings[HALF][name] for name in ("uniform", "abs")})
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    if not {HALF, MOST} <= set(config.shares) or not all(0 < x < 1 for x in config.shares):
        raise UserError(f"shares is {config.shares}, expected {HALF}, {MOST} and others in (0, 1)")
    for name, needed in NEEDED.items():
        if missing := sorted(needed - set(config.rules[name])):
            raise UserError(
                f"rules.{name} is {config.rules[name]}, expected {', '.join(missing)} in it"
            )
    for rule in sorted({rule for names in config.rules.values() for rule in names}):
        if rule not in chess_figures.NAMES:
            raise unknown("rule of config.rules", rule, chess_figures.NAMES)
    for name in ("documents", "length"):
        if config.layers[name] > config.calibration[name]:
            raise UserError(
                f"layers.{name} is {config.layers[name]}, expected at most calibration.{name}, "
                f"{config.calibration[name]}"
            )
    if config.reading.documents < 2:
        raise UserError(
            f"reading.documents is {config.reading.documents}, expected at least 2 for an interval"
        )
