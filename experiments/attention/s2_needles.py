"""Needles in real text that small models learn to find, with each pattern of S2-attention."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.common import small_lm
from experiments.common.claims import with_bounds
from experiments.common.comparison import for_each
from experiments.common.many import on_one_device, replaced
from experiments.common.pretraining import train
from rml import data
from rml.data.source import Arrays
from rml.errors import UserError
from rml.evaluation import place_needle
from rml.models import Llama
from rml.ops import t_interval
from rml.training import (
    Loss,
    Progress,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    gradient_task,
)

ROWS = 32
"""Prompts that are evaluated at a time."""
PREFIX = "needles_"
"""What directories of these models begin with."""


class Prompts(NamedTuple):
    """Windows of text that hide a mark and an answer behind it, and end in the mark.

    Attributes:
      tokens: [n, t].
      answer: [n], which of the answers stands behind the mark.
      distance: [n], tokens from the last of the answer to the end.
    """

    tokens: Int[np.ndarray, "n t"]
    answer: Int[np.ndarray, " n"]
    distance: Int[np.ndarray, " n"]


def prompts(config: Any, text: small_lm.Text, part: str, count: int) -> Prompts:
    """Hides answers in windows of a part of the text, at depths drawn evenly.

    Answers and the mark are tokens of their own, after those of the text. An answer is repeated:
    attention that is still even over all tokens hardly sees a single one.
    """
    options, length = config.needles, config.needles.length
    rng = np.random.default_rng((config.seed, small_lm.PARTS.index(part)))
    windows = rng.choice(text.windows(part, length), count)
    answers, depths = rng.integers(options.answers, size=count), rng.random(count)
    first = config.text.vocabulary
    mark = np.array([first + options.answers])
    placed = [
        place_needle(
            window,
            np.append(mark, np.full(options.repeats, first + answer)),
            mark,
            length=length,
            depth=float(depth),
        )
        for window, answer, depth in zip(windows, answers, depths, strict=True)
    ]
    starts = np.array([own.start for own in placed])
    tokens = np.stack([own.tokens for own in placed]).astype(np.int32)
    return Prompts(
        tokens, *(x.astype(np.int32) for x in (answers, length - 1 - options.repeats - starts))
    )


def resized(config: Any) -> Any:
    """The config of the models that look for needles, as `small_lm` reads it."""
    options = config.needles
    return replaced(config, {
        "text.vocabulary": config.text.vocabulary + options.answers + 1,
        "text.length": options.length,
        "model.width": options.width, "model.mlp": options.mlp,
        "optimizer": options.optimizer, "train": options.train,
    })  # fmt: skip


def scores_of(
    module: Llama, params: Any, tokens: Int[Array, "b t"], answers: int
) -> Float[Array, "b t a"]:
    """Logits of the answers at every place of prompts."""
    hidden: Any = module.apply({"params": params}, tokens)
    logits = jnp.asarray(module.apply({"params": params}, hidden, method="logits"))
    return logits[..., module.vocabulary - 1 - answers : -1]


def task(config: Any, attention: Any, learned: Prompts, validated: Prompts) -> Task:
    """The problem of saying which answer a prompt hides.

    In training every place from the answer on is asked for it: the last one alone teaches little.

    Args:
      config: The run's config, `resized`.
      attention: What attends in all layers, or in each.
      learned: What is trained on.
      validated: What the share found is told of.
    """
    module, answers = small_lm.language_model(config, attention), config.needles.answers
    size = config.train.batch_size

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        del state
        scores = scores_of(module, params, batch["tokens"], answers)
        wanted = jnp.broadcast_to(batch["answer"][:, None], scores.shape[:2])
        nats = optax.softmax_cross_entropy_with_integer_labels(scores, wanted)
        left = jnp.arange(scores.shape[1])[::-1]
        return Loss(nats.mean(where=left <= batch["distance"][:, None]))

    def batches(part: int = 0, parts: int = 1) -> grain.IterDataset:
        source = Arrays(learned._asdict(), name=config.data.name, split=config.data.train)
        return data.batches(source, batch_size=size, seed=config.seed, part=part, parts=parts)

    return gradient_task(
        init_variables=lambda key: module.init(key, jnp.zeros((1, 2), jnp.int32)),
        loss=loss,
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=batches,
        evaluate=lambda state: {
            "found": float(found(module, state.params, validated, answers).mean())
        },
        batch_spec={
            "tokens": jax.ShapeDtypeStruct((size, config.text.length), np.int32),
            "answer": jax.ShapeDtypeStruct((size,), np.int32),
            "distance": jax.ShapeDtypeStruct((size,), np.int32),
        },
    )


def found(module: Llama, params: Any, asked: Prompts, answers: int) -> Bool[np.ndarray, " n"]:
    """Whether the right answer scores above all others in each prompt."""
    cuts = range(0, len(asked.tokens), ROWS)
    scores = np.concatenate(
        [_scores(params, asked.tokens[i : i + ROWS], module=module, answers=answers) for i in cuts]
    )
    right = np.arange(answers) == asked.answer[:, None]
    return np.asarray(scores[right] > np.where(right, -np.inf, scores).max(axis=1))


@functools.partial(jax.jit, static_argnames=("module", "answers"))
def _scores(params: Any, tokens: Array, *, module: Llama, answers: int) -> Array:
    return scores_of(module, params, tokens, answers)[:, -1]


def searched(
    config: Any, run: RunDirectory, text: small_lm.Text, attentions: Mapping[str, Any]
) -> tuple[Prompts, dict[str, Bool[np.ndarray, " n"]]]:
    """Trains a model with each attention on prompts and asks all for the same needles.

    Returns:
      The test prompts, and by name whether the needle of each was found.
    """
    options, own = config.needles, resized(config)
    count = own.train.steps * own.train.batch_size
    learned = prompts(config, text, "train", count)
    validated = prompts(config, text, "validation", options.tested)
    asked = prompts(config, text, "test", options.tested)

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        attention = attentions[name.removeprefix(PREFIX)]
        module = small_lm.language_model(own, attention)
        state = on_one_device(
            train(own, inner, task(own, attention, learned, validated), "eval/found")
        )
        params = nn.meta.unbox(state.params)
        share = found(module, params, validated, options.answers).mean()
        Progress().note(f"needles by {name.removeprefix(PREFIX)}: {share:.3f} of validation found")
        return {"found": share}, found(module, params, asked, options.answers)

    trained = for_each(run, [f"{PREFIX}{name}" for name in attentions], measure)
    return asked, {name.removeprefix(PREFIX): own for name, (_, own) in trained.items()}


def compared(
    asked: Prompts, by: Mapping[str, Bool[np.ndarray, " n"]], *, near: int, width: int
) -> dict[str, float]:
    """Shares of needles that are found beyond the window, and among the nearest ones.

    Args:
      asked: The prompts.
      by: Whether each needle was found, by "dense", "s2", "homogeneous" and "window".
      near: Number of last tokens that all see.
      width: Number of last tokens that the window sees.

    Returns:
      Metrics; those over the window, of S2 and of one shard in all heads, with intervals over
      prompts.

    Raises:
      UserError: No prompt has its needle beyond the window, or near.
    """
    far, close = asked.distance >= width, asked.distance < near
    for what, some in (("beyond the window", far), ("among the nearest tokens", close)):
        if some.sum() < 2:
            raise UserError(
                f"{some.sum()} of {len(some)} needles lie {what}, expected at least 2; raise "
                "needles.tested"
            )
    metrics = {f"needles_{name}": float(own[far].mean()) for name, own in by.items()}
    most = max(metrics["needles_dense"], 1 / len(far))
    for name in ("s2", "homogeneous"):
        metrics[f"needle_share_{name}"] = metrics[f"needles_{name}"] / most
    gained = by["s2"].astype(float) - by["window"]
    alike = by["homogeneous"].astype(float) - by["window"]
    metrics |= with_bounds("needles_over_window", t_interval(gained[far]))
    # Without shards of its own in each head: what is gained by any blocks at strides.
    metrics |= with_bounds("needles_homogeneous_over_window", t_interval(alike[far]))
    return metrics | with_bounds("needles_over_window_near", t_interval(gained[close]))
