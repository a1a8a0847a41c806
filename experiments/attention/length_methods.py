"""What extends a small language model to longer texts: laws of positions, training, scaling."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import small_lm
from experiments.common.comparison import for_each
from experiments.common.pretraining import train
from rml.attention import interpolated_positions, pose_positions, sample_positions
from rml.models import Llama
from rml.models.attention import attend
from rml.training import RunDirectory, Task, TrainState

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


def scaled(module: Llama, way: str, scale: float) -> Llama:
    """A model with other rotary frequencies.

    Raises the base by `scale` to the power d / (d - 2) for "ntk", which is what dynamic scaling by
    a factor of 1 does to a text of so many windows; "yarn" is that of `rml.models.rope`.
    """
    if way == "yarn":
        return module.clone(rope_scaling={"rope_type": "yarn", "factor": float(scale)})
    width = module.head_shape()[1]
    return module.clone(theta=module.theta * scale ** (width / (width - 2)))
