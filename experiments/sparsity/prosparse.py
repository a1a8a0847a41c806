"""ProSparse: a small language model made sparse by a penalty that rises in stages.

Song et al., ProSparse: Introducing and Enhancing Intrinsic Activation Sparsity within Large
Language Models, arXiv:2402.13516. One model with SiLU learns real text. It is trained further for
equally many tokens with SiLU, with ReLU alone, with shifted ReLU, with ReLU and the penalty (in
stages along a sine or a line, constant, or on the gate alone), and with the largest gates of each
token at the sparsity of the method; CHESS thins out the SiLU model without training. The method's
last factor and threshold are chosen on validation windows. The unit of intervals is a window.
Model, text, sizes, factors and margins are this repository's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from experiments.common.small_lm import Text, differences, read_text
from experiments.sparsity import prosparse_figures
from experiments.sparsity.prosparse_training import (
    BASE,
    RELU,
    Reader,
    Reading,
    base_models,
    further,
    penalties,
)
from experiments.sparsity.prosparse_uses import predicted, thinned
from experiments.sparsity.timed_ffn import speedups
from rml.errors import UserError
from rml.sparsity import expected_union, random_channels, weights_read
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2402.13516; model, text, sizes and margin are this repository's"
LATER = "the margin was set after the first measurement"
TOP = "top"
LEAST, POINT = 0.85, 0.01
"""Sparsity that is asked for, and what a threshold has to add."""
CLAIMS = (
    Claim("85% of what the MLP's last matrix reads is zero",
          "sparsity_pro", ">=", LEAST, f"{SOURCE}: 89% in table 1",
          stated="2026-11-26", null="sparsity_relu"),
    Claim("Its nats are at most 2% above those of ReLU alone at equal tokens",
          "excess_pro", "<=", 0.02, f"{SOURCE}, tables 1 and 2, whose own are further apart; the "
          "null was chosen after the first measurement",
          stated="2026-11-26", null="excess_random"),
    Claim("At equal sparsity the stages lose fewer nats than a constant factor",
          "gain_over_constant", ">=", 0.0, f"{SOURCE}, table 3",
          stated="2026-11-26", null="gain_over_linear"),
    Claim("A sine and a line differ by at most 0.2% of nats",
          "ramps_apart", "<=", 0.002, f"our question; {LATER}",
          stated="2026-11-26", null="constant_apart"),
    Claim("The least threshold that adds a point of sparsity costs at most 0.2% of nats",
          "threshold_cost", "<=", 0.002, f"{SOURCE}, step 3",
          stated="2026-11-26", null="threshold_cost_random"),
    Claim("Sparsity follows 100 - exp(c - a λ^b) in the last factor: R² of at least 0.95",
          "law_r2", ">=", 0.95, f"{SOURCE}, appendix", stated="2026-11-26",
          null="law_r2_shuffled"),
    Claim("The first layer is denser than the mean of the others by ten points",
          "first_layer_denser", ">=", 0.1, f"{SOURCE}; {LATER}", stated="2026-11-26",
          null="first_layer_denser_relu"),
    Claim("Decoding reads at most 45% of the MLP's weights",
          "mlp_read", "<=", 0.45, SOURCE, stated="2026-11-26", null="mlp_read_relu"),
    Claim("One token's feed-forward of 8,192 channels is 1.3 times as fast as the dense one",
          "speedup_wide", ">=", 1.3, f"{SOURCE}, table 5: other hardware",
          stated="2026-11-26", null="speedup_wide_relu"),
)  # fmt: skip
CAPTIONS = prosparse_figures.CAPTIONS
PICTURE = "tradeoff.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains the model and all variants, chooses on validation, reads test windows, draws."""
    check(config)
    text, reader, progress = read_text(config), Reader(config), Progress()
    validation, test = (
        text.windows(part, config.text.length, config.text.windows)
        for part in ("validation", "test")
    )
    base = base_models(config, run, text)
    shifted = f"shifted_relu:{config.shift:g}"
    plain = {BASE: {"peak": 0.0}}
    params = further(config, run, text, base, RELU, penalties(config))
    silu = further(config, run, text, base, BASE, plain)[BASE]
    moved = further(config, run, text, base, shifted, {"shifted": {"peak": 0.0}})["shifted"]
    tried = {name: reader.read(RELU, own, validation) for name, own in params.items()}
    chosen = choose(config, tried)
    threshold = choose_threshold(config, reader, params[chosen], validation, tried[chosen])
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
    metrics |= predicted(config, reader, text, {"pro": params[chosen], "relu": params[RELU]})
    for name, own in (("", pro), ("_relu", found[RELU])):
        timed = speedups(config.timing, sparsity=float(own.zeros.mean()), seed=config.seed)
        metrics |= {f"speedup_{shape}{name}": value for shape, value in timed.items()}
    prosparse_figures.draw(config, run, found, chosen)
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    peaks = list(config.peaks)
    if len(peaks) < 5 or sorted(set(peaks)) != peaks or peaks[0] <= 0:
        raise UserError(f"peaks is {config.peaks}, expected at least 5 that ascend from above 0")
    check_steps(config)


def check_steps(config: Any) -> None:
    """Raises `UserError` unless stages and thresholds ascend."""
    ends = (config.stages.start, *config.stages.ends)
    if sorted(set(ends)) != list(ends) or ends[0] < 0 or ends[-1] > 1:
        raise UserError(f"stages.start and ends are {ends}, expected to ascend from 0 to 1")
    if config.thresholds[0] != 0 or sorted(set(config.thresholds)) != list(config.thresholds):
        raise UserError(f"thresholds is {config.thresholds}, expected to ascend from 0")


def choose(config: Any, tried: dict[str, Reading]) -> str:
    """The stages' variant of the fewest validation nats among those sparse enough, or the last."""
    names = [f"progressive_{peak:g}" for peak in config.peaks]
    enough = [name for name in names if tried[name].zeros.mean() >= LEAST]
    return min(enough or names[-1:], key=lambda name: tried[name].nats.mean())


def choose_threshold(
    config: Any, reader: Reader, params: list[Any], windows: np.ndarray, without: Reading
) -> float:
    """The least threshold that adds a point of sparsity on validation windows, or the largest."""
    for threshold in config.thresholds[1:]:
        own = reader.read(RELU, params, windows, reader.at_threshold(threshold))
        if own.zeros.mean() >= without.zeros.mean() + POINT:
            return float(threshold)
    return float(config.thresholds[-1])


def randomly(config: Any, without: Reading, thinned: Reading) -> Any:
    """Random channels left out, so many that as many zeros are added as by the threshold."""
    layers, channels = without.live.shape
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


def summarised(config: Any, found: dict[str, Reading], chosen: str) -> dict[str, float]:
    """Nats and sparsity of all, and what the claims compare, with intervals over windows."""
    metrics: dict[str, float] = {"tries_pro": len(config.peaks), "chosen_peak": peak_of(chosen)}
    for name, own in found.items():
        metrics |= {
            f"nats_{name}": own.nats.mean(), f"sparsity_{name}": own.zeros.mean(),
            f"size_{name}": own.size.sum(),
        }  # fmt: skip
    pro, relu, plain = found["pro"], found[RELU], found[chosen]
    main = config.peaks[len(config.peaks) // 2]
    sine, line = found[f"progressive_{main:g}"], found[f"linear_{main:g}"]

    def more(own: np.ndarray, than: np.ndarray) -> np.ndarray:
        return (own - than) / than.mean()

    pairs = {f"excess_{name}": more(found[name].nats, relu.nats) for name in
             ("pro", "random", "chess", TOP, "silu", "shifted")}  # fmt: skip
    pairs |= {
        "gain_over_constant": more(at_sparsity(config, found, "constant", plain), plain.nats),
        "gain_over_linear": more(line.nats, at_sparsity(config, found, "progressive", line)),
        "gain_over_top": more(found[TOP].nats, pro.nats),
        "threshold_cost": more(pro.nats, plain.nats),
        "threshold_cost_random": more(found["pro_random"].nats, plain.nats),
    }
    fits = law(config, found)
    order = np.random.default_rng(config.seed).permutation(len(config.peaks))
    metrics |= {"law_r2": fits[0], "law_r2_shuffled": law(config, found, order)[0]}
    metrics |= {
        "ramps_apart": abs(more(sine.nats, line.nats).mean()),
        "constant_apart": abs(more(sine.nats, found[f"constant_{main:g}"].nats).mean()),
    }
    for end, own in (("", pro), ("_relu", relu)):
        live = 1 - float(own.zeros.mean())
        union = expected_union(jnp.asarray(own.live), 8).mean()
        metrics |= {
            f"first_layer_denser{end}": own.zeros[1:].mean() - own.zeros[0],
            f"mlp_read{end}": float(weights_read(live)),
            f"mlp_read_batch_8{end}": float(weights_read(union)),
            f"never_live{end}": float((own.live == 0).mean()),
        }
    return metrics | differences(pairs)


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
    """Fits 100 - exp(c - a λ^b) to sparsity in percent: R², and a, b and c."""
    peaks = np.asarray(config.peaks, float)
    zeros = 100 * np.array([found[f"progressive_{p:g}"].zeros.mean() for p in config.peaks])[order]

    def curve(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return 100 - np.exp(np.clip(c - a * x**b, -50, 50))

    bounds = ((0, 0.01, -10), (50, 3, 10))
    fit, _ = optimize.curve_fit(curve, peaks, zeros, (1.76, 0.3, 3.49), bounds=bounds)
    lost = np.sum((zeros - curve(peaks, *fit)) ** 2)
    return float(1 - lost / max(np.sum((zeros - zeros.mean()) ** 2), 1e-12)), fit
