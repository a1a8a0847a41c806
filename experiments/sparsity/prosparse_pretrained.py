"""ProSparse in a pretrained decoder, whose every weight is trained further on real text.

Song et al., ProSparse: Introducing and Enhancing Intrinsic Activation Sparsity within Large
Language Models, arXiv:2402.13516. From the same weights and for equally many tokens the decoder is
trained with its own SiLU, with ReLU alone, and with ReLU and a penalty whose factor rises along a
sine to each of `config.peaks`. The method's last factor and threshold are chosen on validation
windows. CHESS thins out the decoder trained with SiLU without training; its thresholds are set on
training windows to reach the method's sparsity. The unit of intervals is a window. `prosparse`
beside it compares the forms of the penalty in a model small enough for all of them.
"""

from typing import Any

import numpy as np

from experiments.common import figures
from experiments.common.comparison import for_each
from experiments.common.pretraining import train
from experiments.common.small_lm import Text, decoder, differences, held_out_windows, read_text
from experiments.ranges import Range
from experiments.sparsity.prosparse import (
    LEAST,
    NO_POINT,
    check_peaks,
    check_steps,
    choose,
    choose_threshold,
    randomly,
)
from experiments.sparsity.prosparse_measures import peak_of, zeros_compared
from experiments.sparsity.prosparse_training import BASE, RELU, Reader, Reading, continued
from experiments.sparsity.prosparse_uses import thinned
from rml.errors import UserError
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2402.13516; decoder, text, sizes and margin are this repository's"
CLAIMS = (
    Claim("CHESS, set to reach its sparsity without training for it, has no fewer nats",
          "chess_over_pro", ">=", 0.0, "the strongest simple baseline; our question; margin 0 "
          "since 2026-12-04", stated="2026-12-04", null="chess_over_random",
          says="At {sparsity_pro:.0%} zeros, CHESS, which trains nothing for them, changes the "
          "loss by {mean:+.1%} beside ProSparse ({nats_chess:.2f} against {nats_pro:.2f} nats a "
          "token)"),
    Claim("85% of what the MLP's last matrix reads is zero",
          "sparsity_pro", ">=", LEAST, f"{SOURCE}: 89% in table 1",
          stated="2026-11-27", null="sparsity_relu",
          says="ProSparse sets {mean:.0%} of a pretrained decoder's activations to zero; ReLU "
          "alone sets {sparsity_relu:.0%}"),
    Claim("Its nats are at most 2% above those of ReLU alone at equal tokens",
          "excess_pro", "<=", 0.02, f"{SOURCE}, tables 1 and 2, whose own are further apart; the "
          "null, CHESS without training, was chosen after the first measurement",
          stated="2026-11-30", null="excess_chess",
          says="ProSparse changes the loss by {mean:+.1%} beside ReLU alone ({nats_pro:.2f} "
          "against {nats_relu:.2f} nats a token)"),
    Claim("The least threshold that adds a point of sparsity costs at most 0.2% of nats",
          "threshold_cost", "<=", 0.002, f"{SOURCE}, step 3",
          stated="2026-11-27", null="threshold_cost_random",
          says="A threshold that adds a point of zeros changes the loss by {mean:+.2%}; as many "
          "random channels change it by {threshold_cost_random:+.2%}"),
)  # fmt: skip
RANGES = {"text.windows": Range(2, whole=True)}
CAPTIONS = {
    "methods.png": "Nats a token of test windows beyond the decoder trained further with SiLU, at "
    "equal tokens, with the share of zeros that the MLP's last matrix reads; error bars: 95% "
    "interval over windows, paired.",
    "layers.png": "Share of zeros that the MLP's last matrix reads, by layer.",
}
PICTURE = "methods.png"
SHOWN = {
    "substituted": "ReLU, untrained",
    RELU: "ReLU",
    "pro": "ProSparse",
    "chess": "CHESS, untrained",
    "random": "random channels",
}


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains the decoder by every variant, chooses on validation, reads test windows, draws."""
    check(config)
    base = decoder(config.model.name).variables["params"]
    text, reader, progress = read_text(config), Reader(config), Progress()
    validation, test = held_out_windows(config, text).values()
    variants = {BASE: 0.0, RELU: 0.0} | {f"progressive_{peak:g}": peak for peak in config.peaks}
    params = further(config, run, text, base, variants)
    tried = {name: reader.read(RELU, own, validation) for name, own in params.items()
             if name != BASE}  # fmt: skip
    chosen = choose(config, tried)
    threshold, added = choose_threshold(config, reader, params[chosen], validation, tried[chosen])
    progress.note(f"chosen on validation windows: {chosen}, threshold {threshold:g}")
    found = {name: reader.read(RELU, own, test) for name, own in params.items() if name != BASE}
    pro = reader.read(RELU, params[chosen], test, reader.at_threshold(threshold))
    found |= {
        "start": reader.read(BASE, [base], test),
        "substituted": reader.read(RELU, [base], test),
        BASE: reader.read(BASE, params[BASE], test),
        "pro": pro,
        "pro_random": reader.read(RELU, params[chosen], test, randomly(config, found[chosen], pro)),
        "random": reader.read(RELU, params[RELU], test, randomly(config, found[RELU], pro)),
        "chess": thinned(reader, text, params[BASE], test, float(pro.zeros.mean())),
    }
    for name, own in found.items():
        progress.note(f"{name}: {own.nats.mean():.4f} nats, {own.zeros.mean():.1%} zeros")
    draw(run, found)
    metrics = summarised(config, found, chosen) | {"chosen_threshold": threshold}
    metrics |= {} if added else NO_POINT
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    if config.model.activation != BASE:
        raise UserError(
            f"model.activation is {config.model.activation}, expected {BASE}: each variant has "
            "its own"
        )
    check_peaks(config, 1)
    check_steps(config, config.train.steps)


def further(
    config: Any, run: RunDirectory, text: Text, base: Any, variants: dict[str, float]
) -> dict[str, list[Any]]:
    """Trains the decoder once a variant, one after another.

    Args:
      config: The run's config.
      run: Its directory; each variant has its own in `methods`, where a stopped run continues.
      text: The text.
      base: The decoder's parameters.
      variants: Last factor of the penalty, by name; the gate is ReLU but in `BASE`.

    Returns:
      By name the parameters, in a list as `Reader` takes them.
    """

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], list[Any]]:
        own = config.copy_and_resolve_references()
        own.model.activation = BASE if name == BASE else RELU
        own.penalty.peak = float(variants[name])
        task = continued(own, text, lambda _: base)
        state = train(own, inner, task, "eval/nats")
        found = task.evaluate(state)
        Progress().note(f"{name}: {found['nats']:.4f} nats a token of validation windows")
        return found, [state.params]

    return {name: own for name, (_, own) in for_each(run, variants, measure).items()}


def summarised(config: Any, found: dict[str, Reading], chosen: str) -> dict[str, float]:
    """Nats and sparsity of all, and what the claims compare, with intervals over windows."""
    metrics: dict[str, Any] = {"tries_pro": len(config.peaks), "chosen_peak": peak_of(chosen)}
    for name, own in found.items():
        metrics[f"nats_{name}"] = own.nats.mean()

    def more(one: str, other: str) -> np.ndarray:
        than = found[other].nats
        return (found[one].nats - than) / than.mean()

    pairs = {
        f"excess_{name}": more(name, RELU) for name in ("pro", "random", "chess", BASE)
    } | {
        "chess_over_pro": more("chess", "pro"),
        "chess_over_random": more("chess", "random"),
        "threshold_cost": more("pro", chosen),
        "threshold_cost_random": more("pro_random", chosen),
        "relu_over_silu": more(RELU, BASE),
        "pro_over_silu": more("pro", BASE),
    }  # fmt: skip
    return metrics | differences(pairs | zeros_compared(found, {"": "pro", "_relu": RELU}))


def draw(run: RunDirectory, found: dict[str, Reading]) -> None:
    """Draws both figures."""
    names = [f"{title}\n{found[name].zeros.mean():.0%}" for name, title in SHOWN.items()]
    beyond = [t_interval(found[name].nats - found[BASE].nats) for name in SHOWN]
    figures.bars(
        run.figure("methods.png"), names, {"nats": [float(own.mean) for own in beyond]},
        {"nats": [float(own.high - own.mean) for own in beyond]}, ylabel="nats beyond SiLU",
        decimals=2,
    )  # fmt: skip
    layers = {
        title: (np.arange(1, found[name].zeros.shape[1] + 1), 100 * found[name].zeros.mean(0))
        for name, title in SHOWN.items()
        if name != "random"
    }
    figures.curves(run.figure("layers.png"), layers, "layer", "zeros (%)")
