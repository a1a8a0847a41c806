"""E²-LLM: a small language model taught on short windows to read texts sixteen times as long.

Liu et al., E²-LLM: Efficient and Extreme Length Extension of Large Language Models,
arXiv:2401.06951. A model is trained here from scratch on short windows of speeches. It is then
trained a little longer on windows that are no longer, with scales and offsets of positions drawn
anew for every text. Beside it stand, from the same start and with as many tokens, plain training,
the method without offsets or with one scale, PoSE, and position interpolation on long windows;
and, untrained, position interpolation, NTK-aware scaling and YaRN. Each reads texts of a length by
the scale that is best on validation texts, of equally many. Sizes and margins are ours.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.late import speeches
from experiments.common import figures, small_lm
from experiments.common.comparison import for_each
from experiments.common.pretraining import train
from rml.attention import interpolated_positions, pose_positions, sample_positions
from rml.errors import UserError
from rml.evaluation.long_text import by_position, token_nats
from rml.models import Llama
from rml.models.attention import attend
from rml.training import Claim, Progress, RunDirectory, Task, TrainState

SOURCE = "arXiv:2401.06951, sections 4.2 to 4.4; sizes and margin are this repository's"
BASE, TAUGHT, PLAIN = "base", "e2", "plain"
UNTRAINED = ("interpolated", "ntk", "yarn")
"""Ways of reading with the base model's weights."""
LONG = "interpolated_long"
"""Position interpolation that is trained on windows of the length itself."""
TRAINED = {
    PLAIN: "plain training",
    TAUGHT: "E²-LLM",
    "no_offset": "E²-LLM without offsets",
    "no_scale": "E²-LLM with one scale",
    "pose": "PoSE",
    LONG: "interpolation, trained on long windows",
}
TITLES = {
    "interpolated": "interpolation, untrained",
    "ntk": "NTK-aware, untrained",
    "yarn": "YaRN, untrained",
    **TRAINED,
}
CLAIMS = (
    Claim("Nats a token at 16 windows are at most 5% above those at one",
          "rise_16x", "<=", 0.05, SOURCE, stated="2026-11-26", null="rise_16x_extrapolated"),
    Claim("At 16 windows it loses 0.02 nats less than the best scaling without training",
          "gain_16x", ">=", 0.02, SOURCE, stated="2026-11-26", null="gain_16x_plain"),
    Claim("At 8 windows it is within 0.03 nats of interpolation trained on windows so long",
          "beyond_long_8x", "<=", 0.03, SOURCE, stated="2026-11-26", null="beyond_long_8x_plain"),
    Claim("Without drawn scales 0.01 nats more are lost at 16 windows",
          "lost_without_scale", ">=", 0.01, f"{SOURCE}, table 5", stated="2026-11-26",
          null="lost_without_scale_1x"),
    Claim("Without offsets 0.01 nats more are lost at 16 windows",
          "lost_without_offset", ">=", 0.01, f"{SOURCE}, table 5", stated="2026-11-26",
          null="lost_without_offset_1x"),
    Claim("On texts of one window it loses at most 3% of the base model's nats",
          "rise_1x", "<=", 0.03, SOURCE, stated="2026-11-26", null="rise_1x_interpolated"),
    Claim("A scale half as large again as any in training costs at most 10% at 16 windows",
          "rise_unseen", "<=", 0.1, f"{SOURCE}, figure 5", stated="2026-11-26",
          null="rise_unseen_untrained"),
)  # fmt: skip
CAPTIONS = {
    "lengths.png": "Nats a token beyond E²-LLM's in the last half of a text against its length in "
    "windows of the base model; bands: 95% interval over texts, paired.",
    "scales.png": "Nats a token of the extended model against position, by the scale of its "
    "positions; the first window is the length of training.",
    "loss.png": "Cross-entropy (nats a token) against steps of the base model's training.",
}
PICTURE = "lengths.png"
Law = Callable[[Any, int, int], jax.Array]
"""Positions of texts from a key, the number of texts and their length."""


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains the base model and every extension, reads long texts with each, compares, draws."""
    check(config)
    text = small_lm.read_text(config)
    texts = long_texts(config, text.tokenizer)
    base = small_lm.trained(config, run, text, {BASE: attend})[BASE][0]
    figures.training_curves(
        run.figure, run.of_method(BASE).path, {"train/loss": "cross-entropy (nats)"}, None
    )
    params = {**dict.fromkeys(UNTRAINED, base), **extended(config, run, text, base)}
    found = {}
    for name, own in params.items():
        way = name if name in UNTRAINED else UNTRAINED[0]
        found[name] = {part: nats(config, own, texts[part], way) for part in texts}
        Progress().note(f"{name}: {found[name]['test'][-1].mean():.3f} nats at the largest scale")
    metrics, chosen = summarised(config, found)
    draw(config, run, found, chosen)
    return metrics


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    extension = config.extension
    if config.long.multiples[0] != 1 or not {8, 16} <= set(config.long.multiples):
        raise UserError(f"long.multiples is {config.long.multiples}, expected 1, ..., 8, ..., 16")
    if list(config.long.multiples) != sorted(config.long.multiples):
        raise UserError(f"long.multiples is {config.long.multiples}, expected to ascend")
    wanted = {1, extension.largest, unseen(config)}
    if not wanted <= set(config.long.scales):
        raise UserError(f"long.scales is {config.long.scales}, expected {sorted(wanted)} among it")
    if config.train.batch_size % extension.long:
        raise UserError(
            f"extension.long is {extension.long}, expected a divisor of "
            f"train.batch_size={config.train.batch_size}"
        )


def unseen(config: Any) -> int:
    """A scale half as large again as the largest in training."""
    return config.extension.largest * 3 // 2


def long_texts(config: Any, tokenizer: Any) -> dict[str, np.ndarray]:
    """Beginnings of long documents of the validation and the test split, [n, longest]."""
    length = config.text.length * config.long.multiples[-1]
    return {
        part: speeches(config, part, tokenizer, length)[: config.long[part]]
        for part in ("validation", "test")
    }


def positions_of(config: Any) -> dict[str, Law]:
    """By extension, positions of texts from a key, their number and their length."""
    extension, window = config.extension, config.text.length

    def plain(key: Any, batch: int, length: int, scale: float = 1.0) -> jax.Array:
        del key, batch
        return interpolated_positions(length, window=window, scale=scale)

    sample = functools.partial(sample_positions, window=window)
    one = dict(least=extension.one_scale, largest=extension.one_scale)
    return {
        PLAIN: plain,
        TAUGHT: functools.partial(sample, largest=extension.largest),
        "no_offset": functools.partial(sample, largest=extension.largest, offset=False),
        "no_scale": functools.partial(sample, **one),
        "pose": functools.partial(pose_positions, window=window, scale=extension.largest),
        LONG: functools.partial(plain, scale=float(extension.long)),
    }


def extended(config: Any, run: RunDirectory, text: small_lm.Text, base: Any) -> dict[str, Any]:
    """Parameters after each extension of the base model, each in a directory of its own."""
    laws = positions_of(config)

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        own = config.copy_and_resolve_references()
        own.train.steps = config.extension.steps
        own.optimizer.update({k: config.extension[k] for k in ("learning_rate", "warmup_steps")})
        among = [other for other in laws if (other == LONG) == (name == LONG)]
        if name == LONG:  # as many tokens in a batch
            own.text.length *= config.extension.long
            own.train.batch_size //= config.extension.long
        problem = extension(own, text, [laws[other] for other in among], among.index(name), base)
        state = train(own, inner, problem, "eval/nats")
        return problem.evaluate(state), state.params

    return {name: params for name, (_, params) in for_each(run, laws, measure).items()}


def extension(
    config: Any, text: small_lm.Text, laws: Sequence[Law], chosen: int, start: Any
) -> Task:
    """The problem of predicting every next token of windows whose positions a law draws.

    The law's number is part of the state, so that one program serves all laws.

    Args:
      config: The run's config with the extension's steps, rate, length and batch.
      text: The text.
      laws: See `positions_of`.
      chosen: Which of them draws.
      start: Parameters of the base model.
    """

    def drawn(state: TrainState, shape: tuple[int, int]) -> jax.Array:
        draws = [lambda key, law=law: jnp.broadcast_to(law(key, *shape), shape) for law in laws]
        return jax.lax.switch(state.extra["law"], draws, state.step_key)

    law = {"law": jnp.asarray(chosen)}
    return small_lm.task(config, text, attend, positions=drawn, start=start, extra=law)


def nats(config: Any, params: Any, texts: np.ndarray, way: str) -> np.ndarray:
    """Nats of tokens 1 to t - 1 of texts by every scale, [scales, texts, t - 1].

    Texts that begin as these do have these nats, since a token does not see those after it.

    Args:
      config: The run's config.
      params: A model's parameters.
      texts: Tokens [texts, t].
      way: One of `UNTRAINED`: what a scale does to the positions or to the frequencies.
    """
    module = small_lm.language_model(config, attend)
    found = []
    for scale in config.long.scales:
        m = jnp.arange(texts.shape[1], dtype=jnp.float32)
        own = module
        if way == "interpolated":
            m = m / scale
        else:
            own = scaled(module, way, scale)
        found.append(_nats(own, params, texts, m))
    return np.stack(found)


def scaled(module: Llama, way: str, scale: float) -> Llama:
    """A model with other rotary frequencies.

    Raises the base by `scale` to the power d / (d - 2) for "ntk", which is what dynamic scaling by
    a factor of 1 does to a text of so many windows; "yarn" is that of `rml.models.rope`.
    """
    if way == "yarn":
        return module.clone(rope_scaling={"rope_type": "yarn", "factor": float(scale)})
    width = module.head_shape()[1]
    return module.clone(theta=module.theta * scale ** (width / (width - 2)))


def summarised(
    config: Any, found: dict[str, dict[str, np.ndarray]]
) -> tuple[dict[str, float], dict[tuple[str, int], int]]:
    """Metrics, and of each model and length the place of the scale that is best on validation.

    A text of k windows counts by the tokens of its last half.
    """
    scales = list(config.long.scales)
    window = config.text.length

    def at(values: np.ndarray, k: int) -> Any:
        return values[..., k * window // 2 - 1 : k * window - 1].mean((-2, -1))

    chosen, means, metrics = {}, {}, {}
    for name, parts in found.items():
        for k in config.long.multiples:
            chosen[name, k] = int(np.argmin(at(parts["validation"], k)))
            means[name, k] = float(at(parts["test"], k)[chosen[name, k]])
            metrics[f"nats_{name}_{k}x"] = means[name, k]
            metrics[f"scale_{name}_{k}x"] = float(scales[chosen[name, k]])
    start = found[UNTRAINED[0]]
    for k in config.long.multiples:
        plain = at(start["test"], k)[scales.index(1)]
        means["extrapolated", k] = metrics[f"nats_extrapolated_{k}x"] = float(plain)
    best = {
        k: min(UNTRAINED, key=lambda name: at(found[name]["validation"], k)[chosen[name, k]])
        for k in config.long.multiples
    }
    largest, beyond = scales.index(config.extension.largest), scales.index(unseen(config))
    taught = at(found[TAUGHT]["test"], 16)
    for name, ending in ((TAUGHT, ""), (PLAIN, "_plain")):
        metrics[f"gain_16x{ending}"] = means[best[16], 16] - means[name, 16]
        metrics[f"beyond_long_8x{ending}"] = means[name, 8] - means[LONG, 8]
    for k, ending in ((16, ""), (1, "_1x")):
        for part in ("scale", "offset"):
            metrics[f"lost_without_{part}{ending}"] = means[f"no_{part}", k] - means[TAUGHT, k]
    short = float(at(start["test"], 1)[largest])
    metrics |= {
        "rise_16x": means[TAUGHT, 16] / means[TAUGHT, 1] - 1,
        "rise_16x_extrapolated": means["extrapolated", 16] / means["extrapolated", 1] - 1,
        "rise_1x": means[TAUGHT, 1] / means["extrapolated", 1] - 1,
        "rise_1x_interpolated": short / means["extrapolated", 1] - 1,
        "rise_unseen": float(taught[beyond] / taught[largest]) - 1,
        "rise_unseen_untrained": float(at(start["test"], 16)[beyond] / taught[largest]) - 1,
    }
    return metrics, chosen


def draw(config: Any, run: RunDirectory, found: Any, chosen: dict[tuple[str, int], int]) -> None:
    """Draws nats against length, and those of the extended model against position by scale."""
    window, multiples = config.text.length, list(config.long.multiples)

    def by_length(name: str) -> np.ndarray:
        """Means over the last half of texts of every length, [lengths, texts]."""
        values = found[name]["test"]
        return np.stack([
            values[chosen[name, k]][:, k * window // 2 - 1 : k * window - 1].mean(-1)
            for k in multiples
        ])  # fmt: skip

    beyond = {name: by_length(name) - by_length(TAUGHT) for name in found if name != TAUGHT}
    series: dict[str, Any] = {
        TITLES[name]: (np.log2(multiples), *figures.band(values)) for name, values in beyond.items()
    }
    figures.curves(
        run.figure("lengths.png"), series, "windows of the base model (log₂)",
        "nats a token beyond E²-LLM's", reference=(TITLES[TAUGHT], 0.0),
    )  # fmt: skip
    edges = [1, *(window * k for k in multiples)]
    series = {}
    for place, scale in enumerate(config.long.scales):
        bins = by_position(found[TAUGHT]["test"][place], edges).T
        series[f"scale {scale:g}"] = (np.log2(multiples), *figures.band(bins))
    figures.curves(run.figure("scales.png"), series, "position, windows (log₂)", "nats a token")


def _nats(module: Llama, params: Any, texts: np.ndarray, positions: jax.Array) -> np.ndarray:
    found = [_text_nats(module, params, text, positions) for text in texts]
    return np.asarray(jax.device_get(found))


@functools.partial(jax.jit, static_argnames="module")
def _text_nats(module: Llama, params: Any, text: jax.Array, positions: jax.Array) -> jax.Array:
    variables = {"params": params}

    def head(hidden: jax.Array) -> jax.Array:
        return jnp.asarray(module.apply(variables, hidden, method="logits"))

    hidden = jnp.asarray(module.apply(variables, text[None], positions=positions[None]))
    return token_nats(hidden[0], head, text)
