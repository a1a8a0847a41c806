"""HyperAttention's error in layers of a trained decoder by the length of its text.

Han et al., HyperAttention: Long-context Attention in Near-Linear Time, arXiv:2310.05869. Queries of
the second half of a text attend to the keys of its first half, where a causal layer is
approximated, at equally many keys a query: by samples drawn uniformly, as in the authors' code; by
the paper's other estimator as we remember it, whose values are sampled by their norms and whose
sums of rows are bounded, and which draws as many samples once more for these sums; by samples
alone; by the nearest keys with sinks. Alpha, by which the paper measures how hard a matrix is, is
large in a decoder whose queries all attend to the first tokens. So HyperAttention stands
here once more behind four first keys that every query sees: an addition of ours, for which its
claims say so. Sizes and margins are this repository's, stated before the first measurement.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.approximation import Halves
from experiments.attention.late import speeches
from experiments.attention.layerwise import Decoder
from experiments.attention.long_halves import exact_halves, log_errors, method_of
from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.selection import at_edge
from experiments.ranges import Range
from rml.attention.hyper_samples import check_settings
from rml.errors import UserError
from rml.evaluation import log_log_slopes, paired_bootstrap
from rml.models import Llama, pretrained
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2310.05869, abstract and the authors' code; sizes and margin are this repository's"
OURS = f"{SOURCE}, and so are keys that are seen apart"
CLAIMS = (
    Claim("Values sampled by their norms, under bounded sums, have an error 5% below that of "
          "uniform samples at equal keys", "gain_of_norms", ">=", 0.05, SOURCE,
          stated="2026-12-02", null="gain_between_draws"),
    Claim("At equal keys the error grows as a power of tokens of 0.1 at most", "power_uniform",
          "<=", 0.1, SOURCE, stated="2026-12-02", null="power_window"),
    Claim("Its error is below that of the nearest keys with sinks", "gain_over_window", ">=", 0.0,
          SOURCE, stated="2026-12-02", null="gain_of_samples_over_window"),
    Claim("Behind four first keys that all queries see its error is half as large", "gain_of_sinks",
          ">=", 0.5, OURS, stated="2026-12-02", null="gain_of_other_keys"),
    Claim("Then it is below that of the nearest keys with sinks", "gain_of_sinks_over_window",
          ">=", 0.0, OURS, stated="2026-12-02", null="gain_of_samples_over_window"),
)  # fmt: skip
RANGES = {
    "draws": Range(2, whole=True),  # of which each half is a null
    "documents": Range(1, whole=True),
    "seen": Range(2, whole=True),
    "apart": Range(1, whole=True),
}
NAMES = {
    "uniform": "HyperAttention", "value_norm": "values by norm", "unsorted": "samples alone",
    "window": "window and sinks", "sinks": "HyperAttention behind sinks",
}  # fmt: skip
CAPTIONS = {
    "errors.png": "Relative error of a layer against tokens of the text (log₂) at equally many "
    "keys a query, geometric mean and 95% interval over texts, layers and heads.",
    "layers.png": "Relative error of a layer against its number, on the longest texts that the "
    "model was trained to read; geometric mean and 95% interval over texts and heads.",
    "alpha.png": "Alpha against tokens of the text (log₂): n times the largest squared norm of a "
    "column of attention, of all keys and of all but the first ones; median over texts, layers and "
    "heads.",
}
PICTURE = "errors.png"
ALPHA = ("all", "without_first")
"""Of which keys alpha is measured."""


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses options on a validation text, measures errors and alpha by length, draws."""
    check(config)
    progress = Progress()
    loaded = pretrained.load(config.model.name, **config.model.get("options", {}))
    if not isinstance(loaded.module, Llama) or max(config.measured_layers) >= loaded.module.depth:
        raise UserError(
            f"measured_layers is {config.measured_layers} and model.name {config.model.name!r}, "
            "expected layers of a decoder such as smollm2"
        )
    decoder = Decoder(loaded.module, loaded.variables)
    found = speeches(config, "test", loaded.tokenizer, max(config.lengths))
    if len(found) < config.documents:
        raise UserError(
            f"documents is {config.documents}, expected at most {len(found)}: the test speeches of "
            f"{max(config.lengths)} tokens"
        )
    rng = np.random.default_rng(config.seed)
    on = speeches(config, "validation", loaded.tokenizer, config.validated)
    text = on[rng.integers(len(on))]
    captured = decoder.captured(text, config.measured_layers).values()
    parts = [exact_halves(*qkv, first=config.apart)[0] for qkv in captured]
    chosen = {name: choose(config, name, parts) for name in NAMES}
    metrics: dict[str, float] = {}
    for name, tries in config.tries.items():
        metrics |= {f"tries_{name}": len(tries), f"chosen_{name}": list(tries).index(chosen[name])}
        if name in ("uniform", "window"):  # others' tries are in no order
            metrics[f"at_edge_{name}"] = at_edge(chosen[name], tries)
    progress.note(f"chosen on validation: {chosen}")
    logs, alpha = measured(config, decoder, found[rng.permutation(len(found))], chosen, progress)
    metrics |= summarised(config, logs, alpha)
    draw(config, run, logs, alpha)
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless every method can be tried, and lengths are in their order."""
    if set(config.tries) != set(NAMES) or len({len(own) for own in config.tries.values()}) > 1:
        raise UserError(
            f"tries is {config.tries.to_dict()}, expected equally many of {sorted(NAMES)}"
        )
    lengths = list(config.lengths)
    if lengths != sorted({*lengths}) or sum(n <= config.trained for n in lengths) < 2:
        raise UserError(
            f"lengths is {config.lengths}, expected to ascend and to have two of at most trained="
            f"{config.trained}"
        )
    least = min(*lengths, config.validated) // 2
    if config.seen + config.apart > least:
        raise UserError(
            f"seen is {config.seen} and apart {config.apart}, expected at most {least} together: "
            "half of the shortest of lengths and validated"
        )
    for name, tries in config.tries.items():
        for choice in tries:
            own = method_of(config, name, choice)
            if own.settings is None:
                wrong = not 0 < own.apart < config.seen
            else:
                wrong = min(own.settings.block, own.settings.samples) < 1
                try:
                    check_settings(own.settings)
                except ValueError as error:
                    raise UserError(f"tries.{name} has {choice}: {error}") from error
            if wrong:
                raise UserError(
                    f"tries.{name} has {choice}, expected it to leave some of the {config.seen} "
                    "keys to each part"
                )


def choose(config: Any, name: str, parts: list[Halves]) -> Any:
    """The try of a method with the least mean logarithm of the error on parts of validation."""

    def mean(choice: Any) -> float:
        method = method_of(config, name, choice)
        own = [
            log_errors(part, draws(config, 0, layer), method=method, keys=config.seen)
            for layer, part in enumerate(parts)
        ]
        return float(np.mean(own))

    return min(config.tries[name], key=mean)


def draws(config: Any, *place: int) -> jax.Array:
    """Keys of the draws of one place: samples shared by places would shrink no interval."""
    rng = jax.random.key(config.seed)
    for number in place:
        rng = jax.random.fold_in(rng, number)
    return jax.random.split(rng, config.draws)


def measured(
    config: Any, decoder: Decoder, texts: np.ndarray, chosen: Mapping[str, Any],
    progress: Progress,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """Errors and alpha of the first texts, by length.

    Args:
      config: The run's config.
      decoder: The model.
      texts: Tokens of texts.
      chosen: The try of each method.
      progress: What is told of each text.

    Returns:
      By method, and by "other" for keys in the middle seen apart, logarithms of errors
      [texts, lengths, layers, draws, heads]; of "all" keys and of those "without_first" alpha
      [texts, lengths, layers, heads].
    """
    methods = {name: method_of(config, name, choice) for name, choice in chosen.items()}
    methods["other"] = methods["sinks"]._replace(middle=True)
    logs: dict[str, list[Any]] = {name: [] for name in methods}
    alpha: list[Any] = []
    for number, text in enumerate(texts[: config.documents], 1):
        layers = list(decoder.captured(text, config.measured_layers).values())
        found = []
        for n in config.lengths:
            # A causal model makes of a beginning what it makes of it in the whole text.
            beginnings = [tuple(x[:, :n] for x in qkv) for qkv in layers]
            found.append([exact_halves(*qkv, first=config.apart) for qkv in beginnings])
        alpha.append([[np.asarray(own) for _, own in row] for row in found])
        for name, method in methods.items():
            logs[name].append([
                [np.asarray(log_errors(
                    part, draws(config, number, n, layer), method=method, keys=config.seen))
                 for layer, (part, _) in enumerate(row)]
                for n, row in zip(config.lengths, found, strict=True)
            ])  # fmt: skip
        progress.note(f"text {number} of {config.documents}: " + ", ".join(
            f"{shown} {np.exp(np.mean(logs[name][-1])):.3f}" for name, shown in NAMES.items()
        ))  # fmt: skip
    of_keys = dict(zip(ALPHA, np.moveaxis(np.array(alpha), 3, 0), strict=True))
    return {name: np.array(own) for name, own in logs.items()}, of_keys


def summarised(
    config: Any, logs: dict[str, np.ndarray], alpha: dict[str, np.ndarray]
) -> dict[str, float]:
    """Metrics: errors by length and their powers, gains where the model was trained, alpha."""
    lengths = np.array(config.lengths)
    trained = lengths <= config.trained
    longest = np.flatnonzero(trained)[-1]
    metrics: dict[str, float] = {}
    for name in NAMES:
        means = np.exp(logs[name].mean((0, 2, 3, 4)))
        metrics |= {f"error_{name}_{n}": mean for n, mean in zip(lengths, means, strict=True)}
        metrics[f"power_{name}"] = float(log_log_slopes(lengths[trained], means[trained]))
    own = {name: one[:, longest].mean(2) for name, one in logs.items()}
    draws = logs["uniform"][:, longest]
    compared = {  # of each pair the latter is the one that has less error if there is a gain
        "gain_of_norms": (own["uniform"], own["value_norm"]),
        "gain_between_draws": (draws[:, :, ::2].mean(2), draws[:, :, 1::2].mean(2)),
        "gain_over_samples": (own["unsorted"], own["uniform"]),
        "gain_over_window": (own["window"], own["uniform"]),
        "gain_of_samples_over_window": (own["window"], own["unsorted"]),
        "gain_of_sinks": (own["uniform"], own["sinks"]),
        "gain_of_other_keys": (own["uniform"], own["other"]),
        "gain_of_sinks_over_window": (own["window"], own["sinks"]),
    }
    for name, pair in compared.items():
        saved = paired_bootstrap(
            *(jnp.asarray(x.ravel()) for x in pair), key=jax.random.key(config.seed)
        )
        metrics |= with_bounds(name, (1 - np.exp(-value) for value in saved[:3]))
    for name, one in alpha.items():
        medians = np.median(one, axis=(0, 2, 3))
        metrics |= {f"alpha_{name}_{n}": v for n, v in zip(lengths, medians, strict=True)}
        metrics[f"alpha_power_{name}"] = float(log_log_slopes(lengths[trained], medians[trained]))
        share = one[:, longest] < (lengths[longest] / 2) ** 0.5
        metrics[f"alpha_share_below_root_{name}"] = share.mean()
    return metrics


def draw(
    config: Any, run: RunDirectory, logs: dict[str, np.ndarray], alpha: dict[str, np.ndarray]
) -> None:
    """Draws errors against tokens and against layers, and alpha against tokens."""
    lengths = np.array(config.lengths)
    at, label = np.log2(lengths), "tokens (log₂)"
    longest = np.flatnonzero(lengths <= config.trained)[-1]
    series, layers = {}, {}
    for name, shown in NAMES.items():
        by_length = np.moveaxis(logs[name].mean(3), 1, 0).reshape(len(lengths), -1)
        series[shown] = (at, *map(np.exp, figures.band(by_length)))
        by_layer = np.moveaxis(logs[name][:, longest].mean(2), 1, 0).reshape(
            len(config.measured_layers), -1
        )
        layers[shown] = (np.array(config.measured_layers), *map(np.exp, figures.band(by_layer)))
    figures.curves(run.figure("errors.png"), series, label, "relative error", logy=True, above=True)
    figures.curves(
        run.figure("layers.png"), layers, "layer", "relative error", logy=True, above=True
    )
    names = {"all": "all keys", "without_first": f"without the first {config.apart}"}
    lines = {name: (at, np.median(alpha[own], axis=(0, 2, 3))) for own, name in names.items()}
    lines["root of the keys"] = (at, (lengths / 2) ** 0.5)
    figures.curves(run.figure("alpha.png"), lines, label, "alpha", logy=True)
