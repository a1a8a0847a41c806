"""ProSparse: a small language model made sparse by a penalty that rises in stages.

Song et al., ProSparse: Introducing and Enhancing Intrinsic Activation Sparsity within Large
Language Models, arXiv:2402.13516. One model with SiLU learns real text. It is trained further for
equally many tokens with SiLU, with ReLU alone, with shifted ReLU, with ReLU and the penalty (in
stages along a sine or a line, constant, or on the gate alone), and with the largest gates of each
token at the sparsity of the method; CHESS thins out the SiLU model without training. The method's
last factor and threshold are chosen on validation windows. Prose is read beside the code that was
learned. The unit of intervals is a window.
Model, text, sizes, factors and margins are this repository's.
"""

import math
from typing import Any

import jax
import numpy as np

from experiments.common.small_lm import Text, held_out_windows, read_text
from experiments.sparsity import prosparse_figures
from experiments.sparsity.prosparse_measures import TOP, summarised
from experiments.sparsity.prosparse_training import (
    BASE,
    RELU,
    Reader,
    Reading,
    base_models,
    further,
    penalties,
    stage_steps,
)
from experiments.sparsity.prosparse_uses import on_prose, predicted, prose_windows, thinned
from experiments.sparsity.timed_ffn import speedups
from rml.errors import UserError
from rml.sparsity import random_channels
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2402.13516; model, text, sizes and margin are this repository's"
LEAST, POINT = 0.85, 0.01
"""Sparsity that is asked for, and what a threshold has to add."""
NO_POINT = dict.fromkeys(("threshold_cost", "threshold_cost_low", "threshold_cost_high"), math.inf)
"""Cost where no threshold adds as much: the claim on it does not hold."""
CLAIMS = (
    Claim("At equal sparsity its nats are not above those of each token's largest gates, trained "
          "as long", "gain_over_top", ">=", 0.0, f"{SOURCE}; the strongest simple baseline; the "
          "null is a sine beside a line; stated after the measurement",
          stated="2026-12-04", null="gain_over_linear",
          says="At {sparsity_pro:.0%} zeros, keeping each token's largest gates changes the loss "
          "by {mean:+.1%} beside ProSparse ({nats_top:.2f} against {nats_pro:.2f} nats a token)"),
    Claim("85% of what the MLP's last matrix reads is zero",
          "sparsity_pro", ">=", LEAST, f"{SOURCE}: 89% in table 1",
          stated="2026-11-26", null="sparsity_relu",
          says="ProSparse sets {mean:.0%} of activations to zero, ReLU alone {sparsity_relu:.0%}; "
          "the loss changes by {excess_pro:+.1%}"),
    Claim("At equal sparsity the stages lose fewer nats than a constant factor",
          "gain_over_constant", ">=", 0.0, f"{SOURCE}, table 3",
          stated="2026-11-26", null="gain_over_linear",
          says="At equal sparsity a constant penalty changes the loss by {mean:+.1%} beside one "
          "that rises in stages"),
    Claim("The least threshold that adds a point of sparsity costs at most 0.2% of nats",
          "threshold_cost", "<=", 0.002, f"{SOURCE}, step 3",
          stated="2026-11-26", null="threshold_cost_random",
          says="A threshold that adds a point of zeros changes the loss by {mean:+.2%}; as many "
          "random channels change it by {threshold_cost_random:+.2%}"),
)  # fmt: skip
CAPTIONS = prosparse_figures.CAPTIONS
PICTURE = "tradeoff.png"
STAGED = True  # variants begin from the base model


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains the model and all variants, chooses on validation, reads test windows, draws."""
    check(config)
    text, reader, progress = read_text(config), Reader(config), Progress()
    validation, test = held_out_windows(config, text).values()
    prose = prose_windows(config, text)  # what lacks is named before anything trains
    base = base_models(config, run, text)
    shifted = f"shifted_relu:{config.shift:g}"
    plain = {BASE: {"peak": 0.0}}
    params = further(config, run, text, base, RELU, penalties(config))
    silu = further(config, run, text, base, BASE, plain)[BASE]
    moved = further(config, run, text, base, shifted, {"shifted": {"peak": 0.0}})["shifted"]
    tried = {name: reader.read(RELU, own, validation) for name, own in params.items()}
    chosen = choose(config, tried)
    threshold, added = choose_threshold(config, reader, params[chosen], validation, tried[chosen])
    progress.note(f"chosen on validation windows: {chosen}, threshold {threshold:g}")
    found = {name: reader.read(RELU, own, test) for name, own in params.items()}
    least = reader.at_threshold(threshold)
    pro = reader.read(RELU, params[chosen], test, least)
    found |= {
        "silu": reader.read(BASE, silu, test),
        "shifted": reader.read(shifted, moved, test),
        "substituted": reader.read(RELU, base, test),
        "pro": pro,
        "pro_random": reader.read(RELU, params[chosen], test, randomly(config, found[chosen], pro)),
        "random": reader.read(RELU, params[RELU], test, randomly(config, found[RELU], pro)),
        "chess": thinned(reader, text, silu, test, float(pro.zeros.mean())),
        TOP: topped(config, run, text, reader, base, float(pro.zeros.mean()), test),
    }
    for name, own in found.items():
        progress.note(f"{name}: {own.nats.mean():.4f} nats, {own.zeros.mean():.1%} zeros")
    metrics = summarised(config, found, chosen) | {"chosen_threshold": threshold}
    metrics |= {} if added else NO_POINT
    metrics |= on_prose(
        reader, prose,
        {"pro": (params[chosen], least, pro), "relu": (params[RELU], None, found[RELU])},
    )  # fmt: skip
    metrics |= predicted(config, reader, text, {"pro": params[chosen], "relu": params[RELU]})
    for name, own in (("", pro), ("_relu", found[RELU])):
        timed = speedups(config.timing, sparsity=float(own.zeros.mean()), seed=config.seed)
        metrics |= {f"speedup_{shape}{name}": value for shape, value in timed.items()}
    prosparse_figures.draw(config, run, found, chosen)
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    check_peaks(config, 5)
    check_steps(config, config.continued.steps)


def check_peaks(config: Any, least: int) -> None:
    """Raises `UserError` unless so many last factors ascend and none is given beside them."""
    peaks = list(config.peaks)
    if len(peaks) < least or sorted(set(peaks)) != peaks or peaks[0] <= 0:
        raise UserError(
            f"peaks is {config.peaks}, expected at least {least} that ascend from above 0"
        )
    if config.penalty.peak:
        raise UserError(
            f"penalty.peak is {config.penalty.peak}, expected 0: the last factors are those of "
            "peaks"
        )


def check_steps(config: Any, steps: int) -> None:
    """Raises `UserError` unless stages and thresholds ascend, stages at so many steps."""
    stages, thresholds = config.stages, list(config.thresholds)
    ends = (stages.start, *stages.ends)
    if len(ends) < 2 or sorted(set(ends)) != list(ends) or ends[0] < 0 or ends[-1] > 1:
        raise UserError(f"stages.start and ends are {ends}, expected to ascend from 0 to 1")
    if len(stages.shares) != len(stages.ends):
        raise UserError(
            f"stages has {len(stages.shares)} shares and {len(stages.ends)} ends, expected as many"
        )
    at = stage_steps(stages, steps)[1:]
    if sorted(set(at)) != at:
        raise UserError(f"stages.ends are steps {at} of {steps}, expected steps that ascend")
    if len(thresholds) < 2 or thresholds[0] != 0 or sorted(set(thresholds)) != thresholds:
        raise UserError(
            f"thresholds is {config.thresholds}, expected two or more, ascending from 0"
        )


def choose(config: Any, tried: dict[str, Reading]) -> str:
    """The stages' variant of the fewest validation nats among those sparse enough, or the last."""
    names = [f"progressive_{peak:g}" for peak in config.peaks]
    enough = [name for name in names if tried[name].zeros.mean() >= LEAST]
    return min(enough or names[-1:], key=lambda name: tried[name].nats.mean())


def choose_threshold(
    config: Any, reader: Reader, params: list[Any], windows: np.ndarray, without: Reading
) -> tuple[float, bool]:
    """The least threshold that adds a point of sparsity on validation windows, or the largest.

    Returns:
      The threshold, and whether it adds a point.
    """
    for threshold in config.thresholds[1:]:
        own = reader.read(RELU, params, windows, reader.at_threshold(threshold))
        if own.zeros.mean() >= without.zeros.mean() + POINT:
            return float(threshold), True
    return float(config.thresholds[-1]), False


def randomly(config: Any, without: Reading, thinned: Reading) -> Any:
    """Random channels left out, so many that as many zeros are added as by the threshold."""
    layers, channels = without.live.shape[-2:]
    share = 1 - (1 - thinned.zeros.mean()) / max(1 - without.zeros.mean(), 1e-9)
    key = jax.random.key(config.seed)
    return random_channels(key, layers=layers, channels=channels, sparsity=float(max(share, 0.0)))


def topped(
    config: Any, run: RunDirectory, text: Text, reader: Reader, base: list[Any], sparsity: float,
    windows: np.ndarray,
) -> Reading:  # fmt: skip
    """The model that is trained further with the largest gates of each token alone."""
    kept = max(1, round((1 - sparsity) * config.model.mlp))
    name = f"top_silu:{kept}"
    own = further(config, run, text, base, name, {TOP: {"peak": 0.0}})[TOP]
    return reader.read(name, own, windows)
