"""HyperAttention in a trained language model: its error, its cost, and what layers lose by it.

Han et al., HyperAttention: Long-context Attention in Near-Linear Time, arXiv:2310.05869. SmolLM2
reads long speeches with it, beside uniform samples without sorting, a window with sinks, and
Performer. All but the last see equally many keys a query on average. Each has as many tries of what
matters to it, the longest exact piece among them where there is one; the one that loses least on
validation speeches is taken. Sizes and margins are this repository's. The paper's guarantee, as we
remember it, asks that alpha, see `rml.attention.hardness`, be below a power of the length. The
share of heads whose alpha is below the root of the number of keys is measured and not claimed. Nor
is the length from which on a layer is faster: at most the first length that is timed, where the
metric `crossover` is that.
"""

import functools
from typing import Any

import jax
import numpy as np

from experiments.attention import approximation, hyperattention_figures
from experiments.attention.equal_keys import options_of
from experiments.attention.late import speeches
from experiments.attention.layer_errors import layer_errors
from experiments.attention.layerwise import Decoder, Exact
from experiments.ranges import Range
from rml.attention.hyper_samples import HyperSettings
from rml.errors import UserError
from rml.evaluation import log_log_slopes
from rml.models import pretrained
from rml.ops.blocked_attention import BLOCK
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2310.05869, abstract and the authors' code; sizes and margin are this repository's"
CLAIMS = (
    Claim("A layer's error falls with samples at a log-log slope within 0.1 of -1/2",
          "samples_slope_distance", "<=", 0.1, SOURCE,
          stated="2026-11-26", null="samples_slope_distance_recent"),
    Claim("Blocks sorted by hashes have an error 5% below that of blocks by position",
          "gain_of_sorting", ">=", 0.05, f"{SOURCE}; stated after the first measurement, in which "
          "blocks by position passed a claim on blocks as well",
          stated="2026-11-26", null="gain_between_draws"),
    Claim("At equal keys it is 10% below the error of uniform samples without sorting",
          "gain_over_uniform", ">=", 0.1, SOURCE,
          stated="2026-11-26", null="gain_unhashed"),
    Claim("Counted operations grow as a power of tokens of 1.15 at most",
          "flops_power", "<=", 1.15, SOURCE,
          stated="2026-11-26", null="flops_power_exact", any_data=True),
    Claim("Those of causal attention grow as a power of 1.25 at most",
          "flops_power_causal", "<=", 1.25, SOURCE,
          stated="2026-11-26", null="flops_power_exact", any_data=True),
    Claim("With half of the layers replaced a text loses less than 0.25 nats a token",
          "lost_hyperattention_half", "<=", 0.25, SOURCE,
          stated="2026-11-26", null="lost_uniform_half"),
    Claim("It then loses less than with a window and sinks at equal keys",
          "hyperattention_beyond_window_half", "<=", 0.0, SOURCE,
          stated="2026-11-26", null="uniform_beyond_window_half"),
)  # fmt: skip
RANGES = {"errors.seeds": Range(2, whole=True)}  # of which there is an interval
CAPTIONS = hyperattention_figures.CAPTIONS
PICTURE = "layers.png"
METHODS = {
    "hyperattention": "hyperattention",
    "uniform": "hyperattention",  # without planes nothing is sorted
    "window": "window",
    "performer": "performer",
}
"""Rows of `rml.attention.METHODS` by what is compared."""


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Counts costs, chooses options, measures lost nats and errors, draws."""
    check(config)
    progress = Progress()
    loaded = pretrained.load(config.model.name, **config.model.get("options", {}))
    decoder = Decoder(loaded.module, loaded.variables)
    if (
        decoder.depth // 2 not in config.layers
        or max(config.layers) > decoder.depth
        or max(config.errors.measured_layers) >= decoder.depth
    ):
        raise UserError(
            f"layers is {config.layers} and errors.measured_layers "
            f"{config.errors.measured_layers}, expected half of {decoder.depth} and no more than "
            "all of it in the first and less than it in the second"
        )
    shortest, longest = min(config.lengths), max(config.lengths)
    read = speeches(config, "validation", loaded.tokenizer, shortest)[: config.validated]
    if len(read) < config.validated:
        raise UserError(f"validated is {config.validated}, expected at most {len(read)} speeches")
    found = speeches(config, "test", loaded.tokenizer, longest)
    if len(found) < max(config.documents):
        raise UserError(
            f"documents is {config.documents}, expected at most {len(found)}: the test speeches of "
            f"{longest} tokens"
        )
    metrics = costs(config, loaded.module, run)
    progress.note(f"operations grow as a power of {metrics['flops_power']:.3f}")
    chosen = choose(config, decoder, read)
    metrics |= {f"chosen_{name}": value for name, value in chosen.items()}
    metrics["chosen_hyperattention"], metrics["chosen_share"] = chosen["hyperattention"]
    metrics |= {f"tries_{name}": len(tries) for name, tries in config.tries.items()}
    progress.note(f"chosen on validation: {chosen}")
    order = np.random.default_rng(config.seed).permutation(len(found))
    texts = found[order[: max(config.documents)]]
    captured: Exact | None = None
    for n, documents in zip(config.lengths, config.documents, strict=True):
        layers = config.layers if n == shortest else (decoder.depth // 2,)
        capture = config.errors.measured_layers if n == longest else ()
        captured, nats = lost(config, decoder, texts[:documents, :n], chosen, layers, capture)
        metrics |= summarised(nats, n, shortest, decoder.depth // 2)
        if n == shortest:
            hyperattention_figures.of_nats(run, nats, decoder.depth // 2)
        progress.note(f"{n} tokens: " + ", ".join(
            f"{name} {metrics[f'lost_{name}_half_{n}']:.3f}" for name in METHODS
        ))  # fmt: skip
    assert captured is not None
    metrics |= layer_errors(config, list(captured.captured.values()), run)
    progress.note(f"gain over uniform samples: {metrics['gain_over_uniform']:.3f}")
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    if config.least > BLOCK:
        raise UserError(f"least is {config.least}, expected at most {BLOCK}: more is not counted")
    if set(config.tries) != set(METHODS):
        raise UserError(f"tries has {sorted(config.tries)}, expected {sorted(METHODS)}")
    if len({len(values) for values in config.tries.values()}) > 1:
        raise UserError(f"tries has {config.tries.to_dict()}, expected equally many of each")
    if list(config.lengths) != sorted(config.lengths) or min(config.lengths) <= config.least:
        raise UserError(
            f"lengths is {config.lengths}, expected to ascend from above {config.least}"
        )
    if len(config.documents) != len(config.lengths):
        raise UserError(
            f"documents is {config.documents}, expected as many numbers as lengths="
            f"{config.lengths} has"
        )
    # Errors of layers are those of queries of the longest text's second half to its first half.
    keys, errors = max(config.lengths) // 2, config.errors
    nearest = errors.block + max(errors.samples)
    if max(nearest, *errors.blocks) >= keys:
        raise UserError(
            f"errors.block={errors.block} with errors.samples={errors.samples}, or errors.blocks="
            f"{errors.blocks}, has {max(nearest, *errors.blocks)} keys, expected less than the "
            f"{keys} of half of the longest of lengths"
        )
    for name, choices in config.tries.items():
        for choice in choices:
            for n in config.lengths:
                options_of(config, name, choice, n)


def choose(config: Any, decoder: Decoder, speeches: np.ndarray) -> dict[str, Any]:
    """Options of each method that lose least on validation speeches, a third of layers replaced."""
    rngs = jax.random.split(jax.random.key(config.seed + 1), 1)
    exact, layers = [decoder.exact(own) for own in speeches], max(1, decoder.depth // 3)

    def nats(name: str, choice: Any) -> float:
        options = options_of(config, name, choice, speeches.shape[1])
        pairs = zip(exact, speeches, strict=True)
        read = [
            decoder.replaced(own, text, rngs, METHODS[name], options, layers=layers)
            for own, text in pairs
        ]
        return float(np.mean(read))

    return {name: min(config.tries[name], key=functools.partial(nats, name)) for name in METHODS}


def lost(
    config: Any, decoder: Decoder, texts: np.ndarray, chosen: dict[str, Any], layers: Any,
    capture: Any,
) -> tuple[Exact, dict[tuple[str, int], np.ndarray]]:  # fmt: skip
    """Nats that texts lose by each method with last layers replaced.

    Args:
      config: The run's config.
      decoder: The model.
      texts: Tokens [documents, n].
      chosen: Option of each method.
      layers: Numbers of last layers.
      capture: Layers whose queries, keys and values of the last text are kept.

    Returns:
      What exact attention makes of the last text; by method and number of layers the nats
      [documents, planes, n - 1] beyond exact attention's.
    """
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    rngs = jax.random.split(jax.random.key(config.seed), config.draws)
    for number, text in enumerate(texts):
        exact = decoder.exact(text, capture if number == len(texts) - 1 else ())
        for name, row in METHODS.items():
            options = options_of(config, name, chosen[name], len(text))
            own = rngs if row == "hyperattention" else rngs[:1]
            for count in layers:
                nats = decoder.replaced(exact, text, own, row, options, layers=count)
                found.setdefault((name, count), []).append(nats - exact.nats)
    return exact, {key: np.stack(values) for key, values in found.items()}


def summarised(
    nats: dict[tuple[str, int], np.ndarray], n: int, shortest: int, half: int
) -> dict[str, float]:
    """Means of lost nats, and of half of the layers what each method loses beyond the window."""
    means = {key: float(values.mean()) for key, values in nats.items()}
    metrics = {f"lost_{name}_{count}_of_{n}": mean for (name, count), mean in means.items()}
    metrics |= {f"lost_{name}_half_{n}": means[name, half] for name in METHODS}
    if n == shortest:
        metrics |= {f"lost_{name}_half": means[name, half] for name in METHODS}
        for name in METHODS:
            metrics[f"{name}_beyond_window_half"] = means[name, half] - means["window", half]
    return metrics


def costs(config: Any, module: Any, run: RunDirectory) -> dict[str, float]:
    """Powers of counted operations, and measured seconds of a layer over exact attention's."""
    counts = config.costs
    settings = HyperSettings(config.planes, config.block, config.samples, config.least)
    kv_heads, width = module.head_shape()
    counted = {"settings": settings, "width": width}
    own, exact = approximation.flops(counts.counted, causal=False, **counted)
    causal, _ = approximation.flops(counts.counted, causal=True, **counted)
    series = {"HyperAttention": own, "HyperAttention, causal": causal, "exact": exact}
    powers = log_log_slopes(counts.counted, np.stack(list(series.values())))
    names = ("flops_power", "flops_power_causal", "flops_power_exact")
    metrics = dict(zip(names, map(float, powers), strict=True))
    hyperattention_figures.of_costs(run, counts.counted, series)
    timed = approximation.seconds(
        counts.timed, settings=settings, heads=module.heads, kv_heads=kv_heads, width=width
    )
    ratios = timed[1] / timed[0]
    for n, ratio in zip(counts.timed, ratios, strict=True):
        metrics[f"times_faster_at_{n}"] = float(ratio)
    metrics["crossover"] = approximation.crossover(counts.timed, ratios)
    return metrics
