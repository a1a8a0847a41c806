"""Students of teachers of other families; all of one family and one kind are one program.

What differs among the students of a program are floats of the config: which teacher they have, the
weights of losses and their options, and the seed of the initial weights. Students of one kind have
exits, those of the other maps of their features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.distillation.families import Bed
from experiments.distillation.students import batches, network
from rml import models
from rml.data import augment
from rml.distillation import ExitNetwork, Maps, Outputs
from rml.losses import (
    dkd_loss,
    fitnet_loss,
    kd_loss,
    rkd_distance,
    smoothed_cross_entropy,
    target_enhanced_loss,
)
from rml.training import Loss, Task, TrainState, build_optimizer, gradient_task


def with_exits(config: Any, family: str) -> ExitNetwork:
    """A student as it is trained with exits."""
    exits = models.Exits(config.classes, **config.exits)
    return ExitNetwork(models.build(**config.students[family]), config.classes, exits)


def enhanced(config: Any, logits: Array, batch: Any) -> Array:
    """The loss beside the teacher in the form of the code or, as `paper` says, of the paper."""
    given, known = config.given, (logits, batch["teacher"], batch["label"])
    forms = {
        form: target_enhanced_loss(*known, gamma=given.gamma, form=form)
        for form in ("code", "paper")
    }
    return given.paper * forms["paper"] + (1 - given.paper) * forms["code"]


def value(config: Any, found: Outputs, mapped: Array | None, batch: Any) -> Array:
    """The loss of each image: that of the label, and the losses whose weights are not 0.

    Args:
      config: The config of the student, of which `given` is read.
      found: What the student makes of the images.
      mapped: Its features in the width of the teacher's, where it has no exits.
      batch: "label", and the logits "teacher" and "features" of the student's own teacher.
    """
    given, labels = config.given, batch["label"]
    triple = found.logits, batch["teacher"], labels
    each = given.label * smoothed_cross_entropy(found.logits, labels, smoothing=given.smoothing)
    each += given.kd * kd_loss(*triple, temperature=given.temperature)
    each += given.dkd * dkd_loss(
        *triple, temperature=given.temperature, others_weight=given.others
    )  # fmt: skip
    each += given.enhanced * enhanced(config, found.logits, batch)
    if found.exits is not None:
        label = jax.vmap(lambda own: smoothed_cross_entropy(own, labels, smoothing=0.0))
        beside = jax.vmap(lambda own: enhanced(config, own, batch))
        at_exits = given.hard * label(found.exits) + (1 - given.hard) * beside(found.exits)
        each += given.exits * jnp.sum(at_exits, axis=0)
    if mapped is not None:
        each += given.fitnet * fitnet_loss(mapped, batch["features"])
        each += given.rkd * rkd_distance(found.features, batch["features"])
    return each


def of_teacher(config: Any, families: Any, batch: Any) -> dict[str, Array]:
    """A batch with what one teacher says; with `own` 0, of the next image in it, which is any."""
    weights = jnp.stack([jnp.asarray(config.given[name]) for name in families])
    own = {key: jnp.tensordot(batch[key], weights, (1, 0)) for key in ("teacher", "features")}
    share = config.given.own
    known = {key: share * x + (1 - share) * jnp.roll(x, 1, axis=0) for key, x in own.items()}
    return {**batch, **known}


def task(config: Any, bed: Bed, *, family: str, exits: bool) -> Task:
    """The problem of one student."""
    plain = network(config, family)
    trained: nn.Module = with_exits(config, family) if exits else plain
    maps = Maps("student")

    def init(key: Any) -> Any:
        images = jnp.zeros((2, *config.data.image_shape))
        variables = trained.init(key, images, train=True)
        params = {"network": variables["params"]}
        if not exits:
            features = jax.eval_shape(trained.apply, nn.meta.unbox(variables), images).features
            rows = (jnp.zeros(features.shape), jnp.zeros((2, bed.train["features"].shape[-1])))
            params["maps"] = maps.init(key, *rows)["params"]
        return {**variables, "params": params}

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        variables = {"params": params["network"], **state.model_state}
        images = augment.to_float(batch["image"])
        found, changed = trained.apply(
            variables, images, train=True, mutable=list(state.model_state)
        )
        own, mapped = of_teacher(config, bed.families, batch), None
        if not exits:
            mapped, _ = maps.apply({"params": params["maps"]}, found.features, own["features"])
        each = value(config, found, mapped, own)
        return Loss(jnp.mean(each), model_state=changed)

    return gradient_task(
        loss=loss,
        init_variables=init,
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=lambda part=0, parts=1: batches(config, bed),
        evaluate=lambda state: {},
        batch_spec={
            name: jax.ShapeDtypeStruct((config.train.batch_size, *own.shape[1:]), own.dtype)
            for name, own in bed.train.items()
        },
    )
