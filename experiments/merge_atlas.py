"""Coefficients of trained encoders' vectors, learned from labelled data of each one's own task."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments import merge_judging
from experiments.merge_images import HEAD_SCALE
from experiments.merge_judging import held_out, spread, tasks_of
from rml.data import tokens
from rml.errors import UserError
from rml.merging import average, compose, learn_scaling
from rml.ops import normalize, trees

HELD_OUT = 5
"""Every fifth example of a task trains no coefficient: the rate is chosen on these."""
RATES = (1e-2, 3e-2, 0.1)
"""Rates of which the best on held-out examples is taken, where none is given."""
BATCH = 32
"""Examples of a step, as many of each task."""
STEPS = 100


class Learned(NamedTuple):
    """An encoder with learned coefficients, and how they were found.

    Attributes:
      encoder: The encoder.
      rate: Rate of the coefficients.
      losses: Cross-entropy of held-out examples of the base and of the encoder.
    """

    encoder: Any
    rate: float
    losses: tuple[float, float]


class Examples(NamedTuple):
    """Examples of all tasks.

    Attributes:
      inputs: What the encoder's function takes beside variables, [n, ...] each.
      label: Classes, from 0 within each task.
      task: Places of tasks.
    """

    inputs: tuple[Array, ...]
    label: Int[Array, " n"]
    task: Int[Array, " n"]


def atlas(base: Any, named: dict[str, Any], options: argparse.Namespace, given: dict) -> Learned:
    """Learns a coefficient of each block of each encoder's vector, by the mean loss over all tasks.

    A task's head is the class means of the base's features, and stays as it is. Statistics of
    normalisation are averaged.

    Args:
      base: Encoder that all were fine-tuned from.
      named: Encoders by the names that messages give them.
      options: Those of the command: `task`, `read` and `examples`.
      given: Options of `rml.merging.learn_scaling`, and `steps`; a `learning_rate` is the only try.

    Raises:
      UserError: There is not one task for each encoder, trees differ, data cannot be read, or no
        rate leaves a finite loss.
    """
    tasks = tasks_of(options, len(named), HELD_OUT)
    ways = dict(given)
    steps, rate = ways.pop("steps", STEPS), ways.pop("learning_rate", None)
    rates = RATES if rate is None else (rate,)
    if steps != int(steps) or steps < 1:
        raise UserError(f"steps is {steps}, expected a whole number from 1 on")
    variables = {name: own.variables for name, own in named.items()}
    trees.check_trees(base.variables, variables)
    trees.check_values(base.variables, variables)
    stacked = trees.stack_trees(list(variables.values()))
    start = base.variables["params"]
    rest = {name: own for name, own in average(base.variables, stacked).items() if name != "params"}
    vectors = trees.task_vectors(start, stacked["params"])
    train, held, heads, known = examples_of(base, tasks)
    # As many of each task in every step, in an order of their own.
    share, rng = max(1, BATCH // len(tasks)), np.random.default_rng(0)
    places = [np.flatnonzero(np.asarray(train.task) == i) for i in range(len(tasks))]
    rows = np.concatenate([_drawn(rng, own, int(steps), share) for own in places], axis=1)

    def loss(own: Any, data: Examples, chosen: Any, heads: Any, known: Any, rest: Any) -> Array:
        inputs = tuple(x[chosen] for x in data.inputs)
        found = normalize(base.function({**rest, "params": own}, *inputs))
        task = data.task[chosen]
        logits = HEAD_SCALE * jnp.einsum("bd,bcd->bc", found, heads[task])
        logits = jnp.where(known[task], logits, -jnp.inf)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, data.label[chosen])
        return jnp.mean(each)

    @jax.jit
    def fit(rate: Any, start: Any, vectors: Any, rows: Any, *beside: Any) -> Any:
        train, held, *others = beside
        found = learn_scaling(
            lambda own, chosen: loss(own, train, chosen, *others), start, vectors, rows,
            learning_rate=rate, **ways,
        )  # fmt: skip
        own = compose(start, vectors, found.params)
        every = jnp.arange(len(held.label))
        return own, *(loss(params, held, every, *others) for params in (start, own))

    beside = (start, vectors, jnp.asarray(rows), train, held, heads, known, rest)
    tried = {rate: fit(rate, *beside) for rate in rates}
    best = min(tried, key=lambda rate: _or_infinite(tried[rate][2]))
    own, before, after = tried[best]
    if not jnp.isfinite(after):
        raise UserError(f"the loss is {after} at every learning_rate of {rates}, expected less")
    embedder = dataclasses.replace(base.embedder, variables={**rest, "params": own})
    encoder = dataclasses.replace(base, embedder=embedder)
    return Learned(encoder, best, (float(before), float(after)))


def examples_of(
    base: Any, tasks: Sequence[argparse.Namespace]
) -> tuple[Examples, Examples, Float[Array, "t c d"], Any]:
    """Training and held-out examples of tasks, frozen heads, and which of their classes there are.

    Held-out examples of classes that no training example has are left out.
    """
    parts: list[list[Any]] = [[], []]
    means = []
    for place, task in enumerate(tasks):
        inputs, labels = spread(base, task)
        features = normalize(jnp.asarray(base.embedder(inputs)))
        out = held_out(len(labels), HELD_OUT)
        classes = np.unique(labels[~out])
        label = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
        members = jax.nn.one_hot(label[~out], len(classes))
        means.append(normalize(members.T @ features[~out]))
        arrays = _arrays(base, inputs)
        usable = out & np.isin(labels, classes)
        for part, chosen in zip(parts, (~out, usable), strict=True):
            part.append((tuple(x[chosen] for x in arrays), label[chosen],
                         np.full(chosen.sum(), place)))  # fmt: skip
    most = max(map(len, means))
    heads = jnp.stack([jnp.pad(own, ((0, most - len(own)), (0, 0))) for own in means])
    known = jnp.stack([jnp.arange(most) < len(own) for own in means])
    train, held = (_joined(part) for part in parts)
    if not len(held.label):
        raise UserError(
            "no held-out example is of a class of the training examples, expected more --examples"
        )
    return train, held, heads, known


def told(learned: Learned, named: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Lines that say how right experts and the encoder are, and how its coefficients were found."""
    before, after = learned.losses
    return [
        *merge_judging.told({"merged": learned.encoder}, named, options),
        f"cross-entropy of examples that were not learned from: {before:.3f} before, {after:.3f} "
        f"after; rate {learned.rate:g}",
    ]


def _arrays(encoder: Any, inputs: Any) -> tuple[np.ndarray, ...]:
    """Inputs as the encoder's function takes them: images, or tokens and their mask."""
    if encoder.kind == "images":
        return (inputs,)
    own = encoder.embedder
    return tokens.pad(
        tokens.encode(own.tokenizer, inputs, max_length=own.max_length), width=own.max_length
    )


def _joined(parts: Sequence[tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]]) -> Examples:
    inputs, label, task = zip(*parts, strict=True)
    joined = tuple(jnp.asarray(np.concatenate(own)) for own in zip(*inputs, strict=True))
    if len(joined) > 1:  # no text is longer
        joined = tuple(own[:, : int(joined[1].any(0).sum())] for own in joined)
    return Examples(
        joined, *(jnp.asarray(np.concatenate(own).astype(np.int32)) for own in (label, task))
    )


def _drawn(rng: Any, places: np.ndarray, steps: int, share: int) -> np.ndarray:
    """Places of so many examples a step, every one as often as others."""
    passes = -(-steps * share // len(places))
    order = np.concatenate([rng.permutation(places) for _ in range(passes)])
    return order[: steps * share].reshape(steps, share)


def _or_infinite(loss: Any) -> float:
    """A loss, infinite where it is no number, so that no other is worse."""
    return float(jnp.where(jnp.isfinite(loss), loss, jnp.inf))
