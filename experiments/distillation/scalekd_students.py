"""Students in the space of a ViT's tokens; all of one family and one kind are one program.

What differs among the students of a program are floats of the config: which teacher they have, the
weights of losses and their options, the learning rate, and the seed of the initial weights.
Students of one kind have projectors that attend, those of another linear ones, those of the third
learned queries at the last stage too, those of the fourth exits; "plain" ones have nothing.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from experiments.common.many import replaced
from experiments.distillation import students, together
from experiments.distillation.families import Bed
from experiments.distillation.ofakd_students import with_exits
from experiments.distillation.scalekd_lessons import Lesson, Lessons, lesson, rows_of
from experiments.distillation.students import Changes, Students
from rml import models
from rml.data import augment
from rml.distillation import (
    ExitNetwork,
    Network,
    Outputs,
    Projected,
    ScaleNetwork,
    dual_view,
    network_variables,
)
from rml.losses import fitnet_loss, kd_loss, smoothed_cross_entropy, target_enhanced_loss
from rml.training import Loss, RunDirectory, Task, TrainState, build_optimizer, gradient_task

KINDS = ("linear", "attention", "learned", "exits")
"""Kinds of students, each of which is a program of each family: three of projectors, and exits."""
WITHOUT = ("plain", "exits")
"""Kinds without projectors."""


def student(config: Any, family: str, kind: str) -> Network | ExitNetwork | ScaleNetwork:
    """A student as it is trained."""
    if kind == "plain":
        return students.network(config, family)
    if kind == "exits":
        return with_exits(config, family)
    vit = next(iter(config.teachers.values()))
    grid = tuple(-(-side // vit.patch_size) for side in config.data.image_shape[:2])
    return ScaleNetwork(
        models.build(**config.students[family]), config.classes, grid=grid, width=vit.width,
        heads=config.projectors.heads, scale=config.given.scale,
        projector="linear" if kind == "linear" else "attention",
        queries="learned" if kind == "learned" else "path",
    )  # fmt: skip


def value(config: Any, found: Outputs | Projected, known: Lesson) -> Array:
    """The loss of each image: that of the label, and the losses whose weights are not 0.

    Where `path` is 0, the last stage but one is compared with the teacher's own tokens before its
    last blocks, since it does not pass these.
    """
    given = config.given
    each = given.label * smoothed_cross_entropy(
        found.logits, known.labels, smoothing=given.smoothing
    )
    each += given.kd * kd_loss(found.logits, known.logits, temperature=given.temperature)
    if isinstance(found, Projected):
        weights = {"direct": given.direct, "alternative": given.alternative}
        target = given.path * known.last + (1 - given.path) * known.third
        stages = given.third * dual_view(found.third, target, **weights)
        stages += dual_view(found.fourth, known.last, **weights)
        each += given.strength * stages
        each += given.fitnet * fitnet_loss(found.fourth[0], known.last)
    elif found.exits is not None:
        outputs = jnp.concatenate([found.exits, found.logits[None]])
        beside = target_enhanced_loss(outputs, known.logits, known.labels, gamma=given.gamma)
        each += given.ofa * jnp.sum(beside, axis=0)
    return each


def task(config: Any, bed: Bed, lessons: Lessons, *, family: str, kind: str) -> Task:
    """The problem of one student."""
    module = student(config, family, kind)

    def init(key: Any) -> Any:
        images = jnp.zeros((2, *config.data.image_shape))
        variables = module.init(key, images, train=True)
        return {**variables, "params": {"network": variables["params"]}}

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        variables = {"params": params["network"], **state.model_state}
        known = lesson(config, lessons, batch)
        given: dict[str, Any] = {} if kind in WITHOUT else {"path": known.path}
        found, changed = module.apply(
            variables, augment.to_float(known.images), train=True,
            mutable=list(state.model_state), **given,
        )  # fmt: skip
        return Loss(jnp.mean(value(config, found, known)), model_state=changed)

    return gradient_task(
        loss=loss,
        init_variables=init,
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=lambda part=0, parts=1: students.batches(config, rows_of(bed)),
        evaluate=lambda state: {},
        batch_spec={"row": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.int32)},
    )


def train(
    config: Any, run: RunDirectory, name: str, changes: Changes, bed: Bed, lessons: Lessons,
    *, family: str, kind: str,
) -> tuple[Students, PyTree]:  # fmt: skip
    """Trains a student of a family for each setting, all on the same batches, as one program.

    Returns:
      The students as they are used, and all variables that they were trained with.
    """
    plain = students.network(config, family)

    def variables(state: TrainState) -> dict[str, PyTree]:
        return {"params": state.params["network"], **state.model_state}

    state, accuracy = together.train_together(
        config, run, name, partial(task, bed=bed, lessons=lessons, family=family, kind=kind),
        [replaced(config, change) for change in changes.values()],
        batches=lambda: students.batches(config, rows_of(bed)),
        judge=lambda state: together.named_rightly(
            plain, network_variables(variables(state)), bed.validation
        ).mean(1),
    )  # fmt: skip
    whole = jax.device_get(variables(state))
    return Students(tuple(changes), network_variables(whole), accuracy), whole


def inspect(
    config: Any, family: str, variables: Mapping[str, PyTree], images: Any,
    path: Callable[[Array], Array],
) -> tuple[Projected, dict[str, Array]]:  # fmt: skip
    """What projectors that attend make of images, and where those of the direct view look.

    Args:
      config: The run's config.
      family: Family of the student.
      variables: All variables that it was trained with.
      images: Images as bytes.
      path: The teacher's last blocks.

    Returns:
      What the student makes of them, and by "third" and "fourth" the weights of attention, means
      over heads [n, places of the teacher, places of the student].
    """
    module = student(config, family, "attention")

    @jax.jit
    def found(variables: Any, images: Any) -> tuple[Projected, dict[str, Array]]:
        made, kept = module.apply(
            variables, augment.to_float(images), path=path, mutable=["intermediates"]
        )
        both = {name: kept["intermediates"][name]["attention"][0] for name in ("third", "fourth")}
        return made, {name: weights[0].mean(axis=1) for name, weights in both.items()}

    return found(nn.meta.unbox(variables), jnp.asarray(images))
