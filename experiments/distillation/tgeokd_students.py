"""Students of one teacher whose ratios are given or learned; all of one kind are one program.

What differs among the students of a program are floats of the config: weights of rules, of parts of
the relations, the temperature, and the seed of the initial weights. All see the same batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments.common.encoders import initializer
from experiments.common.many import Stacked
from experiments.distillation import together
from experiments.distillation.noisy import Bed, classifier
from rml import data
from rml.data import augment
from rml.distillation import (
    FusionRatio,
    correctness_ratio,
    cosine_ratio,
    entropy_ratio,
    fused_loss,
    linear_ratio,
    ratio_lookahead,
    relations,
    saturation,
    wls_ratio,
)
from rml.losses import annealing_loss, dkd_loss, kd_loss
from rml.training import Loss, RunDirectory, Task, TrainState, build_optimizer, gradient_task

HALF = 0.5
"""Share of DKD beside the label: both have the weight 1 in its paper."""
LOSSES = "losses"
"""Form of what is read that has no relation: the losses beside the teacher and the label."""


class Students(NamedTuple):
    """Trained students of a program.

    Attributes:
      params: Parameters with a leading axis of students.
      omega: Parameters of the networks of ratios likewise; empty where ratios are given.
      accuracy: What the bed judges by, of each on validation images, [students].
    """

    params: Any
    omega: Any
    accuracy: np.ndarray


def losses_of(config: Any, *, rules: bool) -> Callable[..., tuple[Array, Array, Array]]:
    """Makes `losses(params, batch)`: of each image beside the teacher, beside the label, logits.

    Beside the teacher is KD or, with `rules` and as their weights say, DKD or the first stage of
    annealing, which reads a third argument, the share of the training that is over.
    """
    model, given = classifier(config), config.given

    def losses(params: Any, batch: Any, progress: Any = 1.0) -> tuple[Array, Array, Array]:
        images = augment.to_float(batch["image"])
        logits = jnp.asarray(model.apply({"params": params}, images, train=True))
        triple = logits, batch["teacher"], batch["label"]
        beside = kd_loss(*triple, temperature=config.loss.temperature)
        if rules:
            decoupled = dkd_loss(
                *triple, temperature=config.loss.temperature, others_weight=given.setting
            )
            annealed = annealing_loss(
                *triple, temperature=config.loss.temperature,
                progress=progress / jnp.maximum(given.setting, 1e-6),
            )  # fmt: skip
            beside = (
                given.dkd * decoupled + given.annealing * annealed
                + (1 - given.dkd - given.annealing) * beside
            )  # fmt: skip
        label = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return beside, label, logits

    return losses


def task(config: Any, bed: Bed, *, learned: bool, rules: bool = True) -> Task:
    """The problem of one student.

    Args:
      config: The config of the student.
      bed: What it learns from.
      learned: Whether its ratio is learned rather than given.
      rules: Whether a ratio that is given may follow any rule; else it is the setting.
    """
    model, losses = classifier(config), losses_of(config, rules=rules and not learned)

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        progress = state.step / config.train.steps
        beside, label, logits = losses(params, batch, progress)
        if learned:
            own = jax.lax.stop_gradient(logits)
            ratio = ratio_of(state.extra["omega"], encoded(config, bed, own, batch))
        elif rules:
            ratio = rule(config, progress, logits, batch)
        else:
            ratio = jnp.full(beside.shape, config.given.setting, beside.dtype)
        return Loss(
            jnp.mean(fused_loss(ratio, beside, label)),
            by_group(ratio, batch, bed if learned else None),
        )

    def extra(key: Any, variables: Any) -> dict[str, Any]:
        del variables
        if not learned:
            return {}
        rows = {key: jnp.asarray(own[:2]) for key, own in bed.train.items()}
        delta = encoded(config, bed, rows["teacher"], rows)
        omega = nn.meta.unbox(FusionRatio().init(key, delta))["params"]
        return {"omega": omega, "moments": outer.init(omega)}

    def ahead(state: TrainState, batch: Any) -> TrainState:
        """The state with a ratio that one step ahead has judged on validation images."""
        held = {key: batch[f"validation_{key}"] for key in ("image", "label", "teacher")}
        delta = encoded(config, bed, losses(state.params, batch)[2], batch)
        omega, moments = state.extra["omega"], state.extra["moments"]
        _, found = ratio_lookahead(
            lambda omega: ratio_of(omega, delta),
            lambda params: losses(params, batch)[:2],
            lambda params: jnp.mean(losses(params, held)[1]),
            state.params, omega, learning_rate=config.learned.lookahead,
        )  # fmt: skip
        updates, moments = outer.update(found.gradient, moments, omega)
        return state.replace(
            extra={"omega": optax.apply_updates(omega, updates), "moments": moments}
        )

    # AdamW's decay stands apart from the gradient; a public re-implementation has it in Adam's.
    outer = optax.adamw(config.learned.rate, weight_decay=config.learned.weight_decay)
    single = gradient_task(
        loss=loss,
        init_variables=initializer(model, config),
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=lambda part=0, parts=1: batches(config, bed),
        evaluate=lambda state: {},
        batch_spec={
            name: jax.ShapeDtypeStruct((config.train.batch_size, *own.shape[1:]), own.dtype)
            for name, own in _rows(bed).items()
        },
        extra=extra,  # of both kinds, so that their students begin with the same weights
    )
    if not learned:
        return single
    return replace(single, step=lambda state, batch: single.step(ahead(state, batch), batch))


def rule(config: Any, progress: Any, logits: Array, batch: Any) -> Array:
    """The ratio of a rule: of all of them the one whose weight is 1."""
    own, teacher, labels = config.given, batch["teacher"], batch["label"]
    moving: dict[str, Any] = {"first": 1.0, "last": own.setting}
    return (
        own.constant * own.setting
        + own.linear * linear_ratio(progress, **moving)
        + own.cosine * cosine_ratio(progress, **moving)
        + own.correctness * correctness_ratio(teacher, labels, right=own.setting)
        + own.entropy * entropy_ratio(teacher, highest=own.setting)
        + own.wls * wls_ratio(logits, teacher, labels, strength=own.setting)
        + own.annealing * (progress < own.setting)
        + own.dkd * HALF
        + jnp.zeros(labels.shape)
    )


def encoded(config: Any, bed: Bed, logits: Array, batch: Any) -> Array:
    """What a learned ratio reads of images or, where asked, what it would of other images.

    It is their relations, parts of them times 0, or the losses beside the teacher and the label.
    """
    delta = jnp.asarray(_read(config, bed, logits, batch))
    # Images of a batch come in a random order: the next one is any other.
    own = config.relations.own
    return own * delta + (1 - own) * jnp.roll(delta, 1, axis=0)


def _read(config: Any, bed: Bed, logits: Array, batch: Any) -> Array:
    use, form = config.relations, config.relations.form
    labels = batch["label"]
    if form == LOSSES:
        beside = kd_loss(logits, batch["teacher"], temperature=config.loss.temperature)
        label = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.stack([beside, label], axis=-1)
    student, teacher = (jax.nn.softmax(z, axis=-1) for z in (logits, batch["teacher"]))
    truth = jax.nn.one_hot(labels, student.shape[-1])
    delta = relations(student, teacher, truth, jnp.asarray(bed.means)[labels], form=form)
    sides = [use.inter, use.sg, use.st, use.tg, use.inter]
    points = [use.points] * 3 + [use.points * use.inter]
    parts = sides if form == "norm" else points + sides
    width = delta.shape[-1] // len(parts)
    return delta * jnp.repeat(jnp.stack([jnp.asarray(part, delta.dtype) for part in parts]), width)


def ratio_of(omega: Any, delta: Array) -> Array:
    """The learned ratio of each image."""
    return jnp.asarray(FusionRatio().apply({"params": omega}, delta))


def by_group(ratio: Array, batch: Any, bed: Bed | None) -> dict[str, Array]:
    """The mean ratio of a batch; with a bed those of its groups, and how many are near 0 or 1.

    A group of which the batch has no image has NaN.
    """
    found = {f"ratio_{name}": value for name, value in saturation(ratio).items()}
    if bed is None:
        return {"ratio_mean": found["ratio_mean"]}
    for i, name in enumerate(bed.groups):
        found[f"ratio_{name}"] = jnp.mean(ratio, where=batch["group"] == i)
    return found


def batches(config: Any, bed: Bed) -> grain.IterDataset:
    """Training images and, under names of their own, as many validation images, for ever."""
    held = _held(bed)
    own = [
        data.batches(data.Arrays(arrays), batch_size=config.train.batch_size, seed=config.seed + i)
        for i, arrays in enumerate((bed.train, held))
    ]
    return Stacked(own, lambda parts: {**parts[0], **parts[1]})


def train_together(
    config: Any, run: RunDirectory, name: str, configs: Sequence[Any], bed: Bed, *, learned: bool
) -> Students:
    """Trains a student for each config, all on the same batches, as one program.

    Args:
      config: The run's config.
      run: Its directory; the program is `methods/<name>`.
      name: Name of the program.
      configs: One config a student; they differ in floats and seeds.
      bed: What they learn from.
      learned: Whether ratios are learned.
    """
    model = classifier(config)

    def judge(state: TrainState) -> np.ndarray:
        return bed.judge(model, {"params": state.params}, bed.validation).mean(1)

    state, accuracy = together.train_together(
        config, run, name, partial(task, bed=bed, learned=learned), configs,
        batches=lambda: batches(config, bed), judge=judge,
    )  # fmt: skip
    # In NumPy some of them are chosen without a program for each shape.
    params, omega = jax.device_get((state.params, state.extra.get("omega", {})))
    return Students(params, omega, accuracy)


def _rows(bed: Bed) -> dict[str, np.ndarray]:
    """The arrays that a batch has rows of, by their names in it."""
    return {**bed.train, **_held(bed)}


def _held(bed: Bed) -> dict[str, np.ndarray]:
    return {f"validation_{key}": bed.validation[key] for key in ("image", "label", "teacher")}
