"""What extends a small language model to longer texts: laws of positions, training, scaling."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import small_lm
from experiments.common.comparison import for_each
from experiments.common.pretraining import train
from rml.attention import interpolated_positions, pose_positions, sample_positions
from rml.models import Llama
from rml.models.attention import attend
from rml.training import CompiledTask, RunDirectory, Task, TrainState, make_mesh

BASE, TAUGHT, PLAIN = "base", "e2", "plain"
FEWER = "e2_fewer"
"""E²-LLM on a fraction of the others' tokens."""
UNTRAINED = ("interpolated", "ntk", "yarn")
"""Ways of reading with the base model's weights."""
LONG = "interpolated_long"
"""Position interpolation that is trained on long windows, all of one length."""
TRAINED = {
    PLAIN: "plain training",
    TAUGHT: "E²-LLM",
    FEWER: "E²-LLM, fewer tokens",
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
Law = Callable[[Any, int, int], jax.Array]
"""Positions of texts from a key, the number of texts and their length."""


def unseen(config: Any) -> int:
    """A scale half as large again as the largest in training."""
    return config.extension.largest * 3 // 2


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
        **dict.fromkeys((TAUGHT, FEWER), functools.partial(sample, largest=extension.largest)),
        "no_offset": functools.partial(sample, largest=extension.largest, offset=False),
        "no_scale": functools.partial(sample, **one),
        "pose": functools.partial(pose_positions, window=window, scale=extension.largest),
        LONG: functools.partial(plain, scale=float(extension.long)),
    }


def extended(config: Any, run: RunDirectory, text: small_lm.Text, base: Any) -> dict[str, Any]:
    """Parameters after each extension of the base model, each in a directory of its own."""

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        own, problem = extension(config, text, name, base)
        state = train(own, inner, problem, "eval/nats")
        return problem.evaluate(state), state.params

    return {name: params for name, (_, params) in for_each(run, TRAINED, measure).items()}


def config_of(config: Any, name: str) -> Any:
    """A run's config with the steps, rate, length and batch of an extension."""
    own, options = config.copy_and_resolve_references(), config.extension
    own.train.steps, own.optimizer.learning_rate = options.steps, options.learning_rate
    own.optimizer.warmup_steps = options.warmup_steps
    if name == FEWER:
        own.train.steps //= options.fewer
        own.optimizer.warmup_steps //= options.fewer
    if name == LONG:  # as many tokens in a batch
        own.text.length *= options.long
        own.train.batch_size //= options.long
    return own


def extension(
    config: Any, text: small_lm.Text, name: str, start: Any, texts: int | None = None
) -> tuple[Any, Task]:
    """The problem of predicting every next token of windows whose positions a law draws.

    The law's number is part of the state, so that one program serves all laws of a length.

    Args:
      config: The run's config.
      text: The text.
      name: Which of `TRAINED`.
      start: Parameters of the base model.
      texts: Number of windows in a batch; that of the extension if not given.

    Returns:
      The extension's config and the problem.
    """
    own, laws = config_of(config, name), positions_of(config)
    own.train.batch_size = texts or own.train.batch_size
    among = [other for other in laws if (other == LONG) == (name == LONG)]

    def drawn(state: TrainState, shape: tuple[int, int]) -> jax.Array:
        draws = [
            lambda key, law=laws[other]: jnp.broadcast_to(law(key, *shape), shape)
            for other in among
        ]
        return jax.lax.switch(state.extra["law"], draws, state.step_key)

    law = {"law": jnp.asarray(among.index(name))}
    return own, small_lm.task(own, text, attend, positions=drawn, start=start, extra=law)


def costs(config: Any, text: small_lm.Text, base: Any) -> dict[str, float]:
    """Tokens that E²-LLM and interpolation on long windows see, and memory of their steps.

    The memory is what XLA plans for a step, in MB: parameters, moments, gradients, activations.
    Both steps have as many windows as a batch of long ones, so that they differ in length alone.
    """
    metrics, texts = {}, config_of(config, LONG).train.batch_size
    for name in (TAUGHT, FEWER, LONG):
        own = config_of(config, name)
        metrics[f"tokens_{name}"] = float(own.train.steps * own.train.batch_size * own.text.length)
    for name in (TAUGHT, LONG):
        own, problem = extension(config, text, name, base, texts)
        step: Any = CompiledTask(problem, make_mesh(own.mesh)).step
        planned = step.memory_analysis()
        held = planned.argument_size_in_bytes + planned.output_size_in_bytes
        held += planned.temp_size_in_bytes - planned.alias_size_in_bytes
        metrics[f"memory_{name}"] = held / 1e6
    return metrics | {
        "tokens_share": metrics[f"tokens_{FEWER}"] / metrics[f"tokens_{LONG}"],
        "memory_share": metrics[f"memory_{TAUGHT}"] / metrics[f"memory_{LONG}"],
    }


def scaled(module: Llama, way: str, scale: float) -> Llama:
    """A model with other rotary frequencies.

    Raises the base by `scale` to the power d / (d - 2) for "ntk", which is what dynamic scaling by
    a factor of 1 does to a text of so many windows; "yarn" is that of `rml.models.rope`.
    """
    if way == "yarn":
        return module.clone(rope_scaling={"rope_type": "yarn", "factor": float(scale)})
    width = module.head_shape()[1]
    return module.clone(theta=module.theta * scale ** (width / (width - 2)))
