"""A small language model, then trained further by variants of the penalty on its activations."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.comparison import for_each
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from experiments.common.small_lm import Text, language_model, next_nats, task, trained
from rml.models import Probe, Thresholds
from rml.models.attention import attend
from rml.ops.trees import stack_trees
from rml.sparsity import (
    Statistics,
    activation_penalty,
    activation_statistics,
    linear_stages,
    sine_stages,
)
from rml.training import Progress, RunDirectory, Task, TrainState

BASE = "silu"
RELU = "relu"
PROBE = Probe(activation_statistics)


class Reading(NamedTuple):
    """What a model made of windows.

    Attributes:
      nats: Mean nats a token of each window, [windows].
      zeros: Share of zeros that the MLP's last matrix read, [windows, layers].
      live: Share of tokens at which each channel was not zero, [seeds, layers, f]: channel i of one
        seed has nothing to do with that of another.
      size: Mean magnitude of gate times input, by layer.
    """

    nats: np.ndarray
    zeros: np.ndarray
    live: np.ndarray
    size: np.ndarray


def main_peak(config: Any) -> float:
    """The last factor at which forms of the penalty are compared."""
    return config.peaks[len(config.peaks) // 2]


def penalties(config: Any) -> dict[str, dict[str, float]]:
    """By name of a variant what of `config.penalty` it changes; all train as one program."""
    main = main_peak(config)
    found = {RELU: {"peak": 0.0}}
    for peak in config.peaks:
        found[f"progressive_{peak:g}"] = {"peak": peak}
        found[f"constant_{peak:g}"] = {"peak": peak, "sine": 0.0, "constant": 1.0}
    found[f"linear_{main:g}"] = {"peak": main, "sine": 0.0, "linear": 1.0}
    found[f"gate_{main:g}"] = {"peak": main, "gate": 1.0}
    return found


def stage_steps(stages: Any, steps: int) -> list[int]:
    """Steps, of so many, at which the penalty begins and each stage ends."""
    return [round(share * steps) for share in (stages.start, *stages.ends)]


def factor(config: Any, step: Any) -> jax.Array:
    """λ at a step: a sine's stages, a line's, or one factor, by which of three weights is 1."""
    own = config.penalty
    start, *ends = stage_steps(config.stages, config.train.steps)
    peaks = own.peak * jnp.asarray(config.stages.shares)
    given: dict[str, Any] = {"ends": ends, "start": start}
    return (
        own.sine * sine_stages(step, peaks=peaks, **given)
        + own.linear * linear_stages(step, peaks=peaks, **given)
        + own.constant * jnp.where(step < start, 0.0, own.peak)
    )


def continued(config: Any, text: Text, start: Callable[[Any], Any]) -> Task:
    """The problem of training further with the penalty of the config's `penalty`."""

    def penalty(state: TrainState, found: Statistics) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        own = config.penalty.gate
        both = (activation_penalty(found, of=of) for of in ("gate", "hidden"))
        gate, hidden = both
        size, now = own * gate + (1 - own) * hidden, factor(config, state.step)
        return now * size, {"factor": now, "zeros": found.zeros.mean(), "size": size}

    return task(config, text, start=start(config), probe=PROBE, penalty=penalty)


def base_models(config: Any, run: RunDirectory, text: Text) -> list[Any]:
    """Parameters of every seed of the model that all variants start from."""
    return trained(config, run, text, {"base": attend})["base"]


def further(
    config: Any, run: RunDirectory, text: Text, base: list[Any], activation: str,
    changes: Mapping[str, Mapping[str, float]],
) -> dict[str, list[Any]]:  # fmt: skip
    """Trains variants of one nonlinearity further, all of them and all seeds as one program.

    Args:
      config: The run's config.
      run: Its directory; the variants have one in `methods`, by the nonlinearity's name.
      text: The text.
      base: First parameters of each seed.
      activation: Name of the gate's nonlinearity.
      changes: What each variant changes of `config.penalty`, by its name.

    Returns:
      By name the parameters of every seed.
    """
    own = config.copy_and_resolve_references()
    own.model.activation = activation
    own.train.steps = config.continued.steps
    own.train.checkpoint_every = config.continued.steps
    own.train.log_every = max(1, config.continued.steps // 50)
    own.optimizer.update({k: config.continued[k] for k in ("learning_rate", "warmup_steps")})
    first = config.seeds * config.seed
    stacked = stack_trees(base)

    def start(config: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[config.seed - first], stacked)

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], list[Any]]:
        configs = [
            replaced(own, {"seed": first + i} | {f"penalty.{k}": v for k, v in given.items()})
            for given in changes.values()
            for i in range(config.seeds)
        ]
        together = many(lambda one: continued(one, text, start), configs)
        state = on_one_device(train(own, inner, together, "eval/nats"))
        found = together.evaluate(state)
        Progress().note(f"{name}: {found['nats']:.4f} nats a token of validation windows")
        return found, [unstack(state, i).params for i in range(len(configs))]

    folder = activation.replace(":", "_")
    params = for_each(run, [folder], measure)[folder][1]
    return {
        name: params[i * config.seeds : (i + 1) * config.seeds] for i, name in enumerate(changes)
    }


class Reader:
    """Reads windows with models of one shape.

    Attributes:
      config: The run's config.
    """

    def __init__(self, config: Any) -> None:
        """Keeps the config."""
        self.config = config

    def module(self, activation: str) -> Any:
        """The model with a nonlinearity."""
        return language_model(self.config).clone(activation=activation)

    def read(
        self, activation: str, params: list[Any], windows: np.ndarray,
        thresholds: Thresholds | None = None,
    ) -> Reading:  # fmt: skip
        """Reads windows with the models of every seed, whose means are given but for channels."""
        module = self.module(activation)
        shape = (module.depth, module.mlp)
        given = Thresholds(gate=jnp.zeros(shape)) if thresholds is None else thresholds
        read = [_read(module, own, jnp.asarray(windows), given) for own in params]
        nats, found = (
            jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *part)
            for part in zip(*read, strict=True)
        )
        nats, zeros, size = (of.mean(0) for of in (nats, found.zeros, found.hidden_size))
        return Reading(nats.mean(-1), zeros, found.live.mean(1), size.mean(0))

    def at_threshold(self, threshold: float) -> Thresholds:
        """FATReLU's threshold in every channel; of ReLU's gates it is the same."""
        module = self.module(RELU)
        return Thresholds(gate=jnp.full((module.depth, module.mlp), threshold))


@functools.partial(jax.jit, static_argnames="module")
def _read(
    module: Any, params: Any, windows: jax.Array, thresholds: Thresholds
) -> tuple[jax.Array, Statistics]:
    """Nats [windows, t - 1] and statistics of every window."""
    variables = {"params": params}

    def of_window(window: jax.Array) -> tuple[jax.Array, Statistics]:
        states = module.apply(variables, window[None, :-1], thresholds=thresholds, probe=PROBE)
        logits = module.apply(variables, states.last, method="logits")
        return next_nats(logits, window[None])[0], states.probed

    return jax.lax.map(of_window, windows, batch_size=8)
