"""What is trained of a frozen model: edits of some heads, adapters, biases, or everything."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments.common.selection import at_edge
from experiments.sparsity.lofit_tasks import Bed, Encoder, Model, Texts, hits, task_loss
from rml.models import HeadEdits, apply_lora, init_lora
from rml.ops import trees
from rml.sparsity import (
    Directions,
    edit_shape,
    head_outputs,
    masked,
    mean_differences,
    penalty,
    probe_scores,
    shifts,
)
from rml.training import descend

RED = "red"
"""A scale and an offset of every coordinate of what each MLP adds: Wu et al., Advancing Parameter
Efficiency in Fine-tuning via Representation Editing, arXiv:2402.15179."""
WEIGHTS = ("lora_1", "lora_8", "biases", RED, "full")
"""Ways of tuning parameters rather than edits of heads."""
CLIP = 1.0
"""Largest norm of a gradient, that of the authors' trainer."""


class Arm(NamedTuple):
    """What a way of tuning made, at the rate or strength that validation texts chose.

    Attributes:
      right: Which test texts are named rightly.
      validation: Accuracy on validation texts.
      rate: The learning rate, or the strength of a shift.
      numbers: How many numbers were trained.
      edits: Edits of heads, where it made some.
      params: The encoder's parameters, where it changed them.
      at_edge: Whether the rate is the least or the largest that was tried.
    """

    right: np.ndarray
    validation: float
    rate: float
    numbers: int
    edits: Any = None
    params: Any = None
    at_edge: bool = False


def best(
    model: Model, bed: Bed, held: dict[str, Texts], rates: Sequence[float], numbers: int,
    made: Callable[[int], dict[str, Any]],
) -> Arm:  # fmt: skip
    """The best of several tries on validation texts, the first of equals, read on test texts.

    Args:
      model: The frozen model.
      bed: The task.
      held: Its validation and test texts.
      rates: Rates or strengths.
      numbers: How many numbers each try trained.
      made: The parameters or edits of a try by its number, by the names that `hits` has for them.
    """
    tries = [made(at) for at in range(len(rates))]
    found = [hits(model, held["validation"], bed.prototypes, **own).mean() for own in tries]
    at = int(np.argmax(found))
    right = hits(model, held["test"], bed.prototypes, **tries[at])
    edge = at_edge(rates[at], rates)
    return Arm(right, float(found[at]), rates[at], numbers, at_edge=edge, **tries[at])


def optimizer(rate: Any, steps: int) -> optax.GradientTransformation:
    """Adam on clipped gradients, its rate falling to 0 along a line."""
    schedule = optax.linear_schedule(rate, 0, steps)
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(schedule))


@functools.partial(jax.jit, static_argnames="encoder")
def scaled_heads(
    encoder: Encoder, params: Any, beds: Bed, first: Array, rate: float, factor: float
) -> Array:
    """The change A of all heads' scale after step 1, on every bed [beds, layers, heads, k]."""

    def of_bed(bed: Bed) -> Array:
        def objective(edits: HeadEdits, batch: Texts) -> Array:
            lost = task_loss(encoder, params, edits, batch, bed.prototypes)
            return lost + factor * penalty(edits)

        rates = optimizer(rate, len(bed.train.label))
        found = descend(objective, HeadEdits(first), bed.train, optimizer=rates)
        return found.params.scale - 1

    return jax.lax.map(of_bed, beds)


@functools.partial(jax.jit, static_argnames="encoder")
def slopes(encoder: Encoder, params: Any, bed: Bed) -> Array:
    """The gradient of the mean loss over all steps with respect to the scale of all heads."""

    def of_batch(batch: Texts) -> Array:
        own = jax.grad(
            lambda scale: task_loss(encoder, params, HeadEdits(scale), batch, bed.prototypes)
        )
        return own(jnp.ones(edit_shape(encoder.module)))

    return jax.lax.map(of_batch, bed.train).mean(0)


@functools.partial(jax.jit, static_argnames="encoder")
def offsets(
    encoder: Encoder, params: Any, bed: Bed, first: Array, heads: Array, rates: Array
) -> Array:
    """Offsets of some heads after step 2, at every rate [rates, layers, heads, k].

    Heads and rates are arguments: every way of choosing heads is the same program.
    """

    def at_rate(rate: Array) -> Array:
        def objective(edits: HeadEdits, batch: Texts) -> Array:
            return task_loss(encoder, params, masked(edits, heads), batch, bed.prototypes)

        rates = optimizer(rate, len(bed.train.label))
        found = descend(objective, HeadEdits(offset=first), bed.train, optimizer=rates)
        return jnp.asarray(masked(found.params, heads).offset)

    return jax.vmap(at_rate)(rates)


def tuned_heads(
    config: Any, model: Model, bed: Bed, held: dict[str, Texts], first: Array, heads: Array
) -> Arm:
    """Step 2 with some heads."""
    rates = config.rates.offset
    found = offsets(model.encoder, model.params, bed, first, heads, jnp.asarray(rates))
    numbers = int(heads.sum()) * first.shape[-1]
    return best(model, bed, held, rates, numbers, lambda at: {"edits": HeadEdits(offset=found[at])})


def adapted(kind: str, params: Any, own: Any) -> Any:
    """The encoder's parameters with what was trained: adapters, or leaves in their places.

    RED's scale and offset of what MLPs give are part of their last matrices and biases.
    """
    if kind.startswith("lora"):
        return apply_lora(params, own)
    if kind == RED:
        last = params["blocks"]["mlp_out"]
        new = {
            "kernel": last["kernel"] * own["scale"][:, None],
            "bias": last["bias"] * own["scale"] + own["offset"],
        }
        return {**params, "blocks": {**params["blocks"], "mlp_out": new}}
    return jax.tree.map(
        lambda new, leaf: leaf if new is None else new, own, params, is_leaf=lambda x: x is None
    )


@functools.partial(jax.jit, static_argnames=("encoder", "kind"))
def weights(encoder: Encoder, params: Any, bed: Bed, first: Any, rates: Array, *, kind: str) -> Any:
    """The parameters that were trained, or adapters, at every rate."""

    def at_rate(rate: Array) -> Any:
        def objective(own: Any, batch: Texts) -> Array:
            whole = adapted(kind, params, own)
            return task_loss(encoder, whole, None, batch, bed.prototypes)

        rates = optimizer(rate, len(bed.train.label))
        return descend(objective, first, bed.train, optimizer=rates).params

    return jax.lax.map(at_rate, rates)


def trainable(config: Any, params: Any, kind: str) -> Any:
    """What training starts from: adapters "lora_RANK" of attention, "biases", RED, or all.

    Where a model has no bias, the scales of its norms are in their place.
    """
    if kind == "full":
        return params
    if kind == RED:
        rows = params["blocks"]["mlp_out"]["bias"]
        return {"scale": jnp.ones_like(rows), "offset": jnp.zeros_like(rows)}
    ends = {trees.leaf_name(path).rpartition(".")[2]
            for path, _ in jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip
    last = "kernel" if kind.startswith("lora") else "bias" if "bias" in ends else "scale"
    found = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if trees.leaf_name(path).endswith(last) else None, params
    )
    if last != "kernel":
        return found
    rank = int(kind.rpartition("_")[2])
    return init_lora(jax.random.key(config.seed), found, rank=rank, within="attention")


def tuned_weights(config: Any, model: Model, bed: Bed, held: dict[str, Texts], kind: str) -> Arm:
    """Tunes adapters, biases, scales and offsets of MLPs (RED) or everything."""
    rates, first = config.rates[kind], trainable(config, model.params, kind)
    found = weights(model.encoder, model.params, bed, first, jnp.asarray(rates), kind=kind)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(first))

    def made(at: int) -> dict[str, Any]:
        return {"params": _tried(model.params, found, at, kind=kind)}

    return best(model, bed, held, rates, numbers, made)


@functools.partial(jax.jit, static_argnames="kind")
def _tried(params: Any, found: Any, at: int, *, kind: str) -> Any:
    """The encoder's parameters of one of several tries."""
    return adapted(kind, params, trees.take_tree(found, at))


def probed(model: Model, bed: Bed, count: int) -> tuple[Array, Directions]:
    """Scores of heads by probes of whether the frozen model is right, and the way to its being so.

    Half of the training texts fit the probes, the other half scores them.

    Args:
      model: The frozen model.
      bed: The task, whose first pass over its texts has each once.
      count: Number of texts of a pass.
    """
    texts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], bed.train)
    right = jnp.asarray(hits(model, texts, bed.prototypes))
    outputs = head_outputs(
        model.encoder.module, {"params": model.params}, texts.tokens, texts.mask,
        pooling=model.encoder.pooling,
    )  # fmt: skip
    half = len(right) // 2
    scores = probe_scores(outputs[:, :, :half], right[:half], outputs[:, :, half:], right[half:])
    return scores, mean_differences(outputs, right)


def shifted(
    config: Any, model: Model, bed: Bed, held: dict[str, Texts], heads: Array, way: Directions
) -> Arm:
    """ITI: heads shifted, nothing trained; the mean of each head's outputs is what is estimated."""
    strengths = config.rates.iti
    numbers = int(heads.sum()) * way.unit.shape[-1]
    return best(
        model, bed, held, strengths, numbers,
        lambda at: {"edits": shifts(way, heads, strength=strengths[at])},
    )  # fmt: skip
