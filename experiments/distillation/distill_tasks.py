"""The training of one teacher and of its students, whose images may be augmented and on any mesh.

The name of a directory of the run says what is trained in it: "teacher", or a student as
"<side>_<i>" with the i-th learning rate of `config.rates`.
"""

import inspect
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from experiments.common.encoders import ProjectedEncoder
from experiments.common.images import augmentation, batch_spec, open_images, training_batches
from experiments.common.supervised import classification, one_crop, right
from experiments.distillation.ofakd_sides import AGAIN as OTHER_SEED
from rml import models
from rml.data import augment
from rml.distillation import (
    METHODS,
    ExitNetwork,
    Maps,
    Network,
    Outputs,
    ScaleNetwork,
    loss_beside,
    network_variables,
    through_teacher,
)
from rml.errors import UserError, unknown
from rml.losses import smoothed_cross_entropy
from rml.models import ViT
from rml.training import Loss, Task, TrainState, build_optimizer, gradient_task

TEACHER, STUDENT, ALONE = "teacher", "student", "alone"
FIXED, APART, AGAIN = "fixed", "apart", "again"
SIDES = (ALONE, AGAIN, FIXED, APART, STUDENT)
"""Students: without a teacher, the same with another seed, and with a teacher that reads images as
they are, views of its own, or the student's views."""
UNTAUGHT = (ALONE, AGAIN)
PARTS = ("train", "validation", "test")


class Taught(nn.Module):
    """A student, and linear maps of its features and of its teacher's.

    Attributes:
      student: The student, with exits or without.
      maps: Maps, see `rml.distillation.Method`.
    """

    student: nn.Module
    maps: nn.Module

    def __call__(
        self, images: Array, features: Array | None = None, *, train: bool, **more: Any
    ) -> tuple[Any, tuple[Array, Array] | None]:
        """The student's outputs, and its features and the teacher's after maps, if these are."""
        found = self.student(images, train=train, **more)
        return found, None if features is None else self.maps(found.features, features)


def side_of(name: str) -> tuple[str, int]:
    """The side that a directory's name says, and the number of its learning rate."""
    side, _, number = name.rpartition("_")
    if side not in SIDES or not number.isdigit():
        raise unknown("student of the run", name, [f"{side}_0" for side in SIDES])
    return side, int(number)


def sources(config: Any) -> dict[str, Any]:
    """Opens all images of a config."""
    found = {part: open_images(config, part, labelled=True) for part in PARTS}
    for source in found.values():
        if source.num_classes != config.classes:
            raise UserError(
                f"{source.name} has {source.num_classes} classes, expected "
                f"classes={config.classes}: set --config.classes"
            )
    return found


def classifier(config: Any, model: Any) -> ProjectedEncoder:
    """A network as it is used, with logits of `config.classes`."""
    dtype = jnp.dtype(config.dtype)
    return ProjectedEncoder(
        models.build(**model, dtype=dtype), models.Classifier(config.classes, dtype=dtype)
    )


def teacher_task(config: Any) -> Task:
    """The problem of the teacher: to tell classes apart."""
    own, opened = config.copy_and_resolve_references(), cache(lambda: sources(config))
    for key in ("optimizer", "train"):
        own[key] = own.teaching[key]
    return classification(
        own, classifier(own, own.teacher), train=lambda: opened()["train"],
        held_out=lambda: opened()["validation"],
    )  # fmt: skip


def student(config: Any, side: str) -> Taught:
    """A student as it is trained."""
    encoder = models.build(**config.student, dtype=jnp.dtype(config.dtype))
    row, exits = METHODS[config.beside.loss], dict(config.beside.exits)
    net: Network | ExitNetwork | ScaleNetwork = Network(encoder, config.classes)
    if exits and side not in UNTAUGHT:
        net = ExitNetwork(encoder, config.classes, models.Exits(config.classes, **exits))
    if row.reads == "tokens" and side not in UNTAUGHT:
        vit, tokens = of_tokens(config), config.beside.tokens
        net = ScaleNetwork(
            encoder, config.classes, grid=grid_of(config, vit), width=vit.width,
            heads=tokens.heads, scale=tokens.scale,
        )  # fmt: skip
    return Taught(net, Maps(row.maps))


def of_tokens(config: Any) -> ViT:
    """The encoder of a teacher of tokens.

    Raises:
      UserError: It is no ViT.
    """
    vit = models.build(**config.teacher, dtype=jnp.dtype(config.dtype))
    if not isinstance(vit, ViT):
        raise UserError(
            f"teacher.name is {config.teacher.name!r} and beside.loss {config.beside.loss!r}, "
            "which reads tokens; expected a ViT"
        )
    return vit


def grid_of(config: Any, vit: ViT) -> tuple[int, int]:
    """Rows and columns of the patches of a training image."""
    rows, columns = (-(-n // vit.patch_size) for n in batch_spec(config)["image"].shape[-3:-1])
    return rows, columns


def used(variables: PyTree) -> dict[str, PyTree]:
    """The variables of a student that its `classifier` takes."""
    own = {name: part["student"] for name, part in variables.items() if "student" in part}
    names = {"encoder": "encoder", "classifier": "head"}
    return {
        name: {names[key]: leaf for key, leaf in part.items()}
        for name, part in network_variables(own).items()
    }


def says(module: ProjectedEncoder, images: Array, *, stages: bool = False) -> Outputs:
    """What a teacher says of images, with `stages` the outputs of its encoder's stages too."""
    found = module.encoder(images, train=False, stages=True) if stages else None
    features = found.features if found else module.encoder(images, train=False)
    logits = jnp.asarray(module.head(features, train=False))
    return Outputs(logits, features, stages=found.stages if found else None)


def of_images(config: Any, variables: PyTree, images: Array) -> tuple[Outputs, dict[str, Any]]:
    """What the teacher says of images, and its last blocks as `path` where it teaches tokens."""
    above = classifier(config, config.teacher)
    if METHODS[config.beside.loss].reads != "tokens":
        plain: Any = above.apply(variables, images, method=says)
        return plain, {}
    vit, own = of_tokens(config), {"params": variables["params"]["encoder"]}
    end = partial(through_teacher, vit, own)
    found: Any = above.apply(variables, images, stages=True, method=says)
    places = math.prod(grid_of(config, vit))  # without a class token
    tokens = end(found.stages[-1][:, -places:], start=vit.depth)
    path = partial(end, start=vit.depth - config.beside.tokens.blocks)
    return Outputs(found.logits, found.features, tokens=tokens), {"path": path}


def seeded(config: Any, name: str) -> Any:
    """The config of one student, of which one side has another seed."""
    own = config.copy_and_resolve_references()
    own.seed += OTHER_SEED * (side_of(name)[0] == AGAIN)
    return own


def student_task(config: Any, name: str, teacher: PyTree = None) -> Task:
    """The problem of one student.

    Args:
      config: The run's config.
      name: Name of its directory.
      teacher: Variables of the teacher; random ones if not given, for shapes alone.
    """
    side, number = side_of(name)
    own, opened = seeded(config, name), cache(lambda: sources(config))
    own.optimizer.learning_rate = own.rates[number]
    row, beside, options = METHODS[own.beside.loss], own.beside, dict(own.beside.options)
    above, module, pipeline = classifier(own, own.teacher), student(own, side), augmentation(own)
    spec = batch_spec(own)
    blank = jnp.zeros((2, *spec["image"].shape[-3:]))

    def first_teacher(key: Any, _: Any = None) -> dict[str, PyTree]:
        if side in UNTAUGHT:
            return {}
        if teacher is None:
            return {TEACHER: above.init(key, blank, train=False)}
        boxes = jax.eval_shape(lambda key: above.init(key, blank, train=False), key)
        return {TEACHER: jax.tree.map(
            lambda box, value: box.replace_boxed(jnp.asarray(value)), boxes, teacher,
            is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
        )}  # fmt: skip

    def init(key: Any) -> PyTree:
        if side in UNTAUGHT or row.reads != "features":
            return module.init(key, blank, train=True)
        shape = jax.eval_shape(
            lambda key: above.init_with_output(key, blank, method=says)[0], key
        ).features.shape  # fmt: skip
        return module.init(key, blank, jnp.zeros(shape), train=True)

    def seen(images: Array, plain: Array, key: Any) -> Array:
        if side == FIXED:
            return plain
        return pipeline(key, plain) if side == APART else images

    def loss_of(found: Any, mapped: Any, known: Outputs, labels: Array) -> Array:
        if row.reads == "tokens":
            return row.loss(found, known.logits, known.tokens, labels, share=1.0, **options)
        ours, theirs = (found.logits, known.logits) if row.reads == "logits" else mapped
        return loss_beside(row, found, ours, theirs, labels, options=options)

    def loss(params: PyTree, state: TrainState, batch: Any) -> Loss:
        key, other = jax.random.split(state.step_key)
        plain = one_crop(augment.to_float(batch["image"]))
        images = pipeline(key, plain)
        known: Outputs | None = None
        more: dict[str, Any] = {}
        if side not in UNTAUGHT:
            known, more = of_images(own, state.extra[TEACHER], seen(images, plain, other))
        theirs = known.features if known and row.reads == "features" else None
        (found, mapped), changed = module.apply(
            state.training_variables(params), images, theirs, train=True,
            mutable=list(state.model_state), **more,
        )  # fmt: skip
        each = smoothed_cross_entropy(
            found.logits, batch["label"], smoothing=own.loss.smoothing
        ).astype(jnp.float32)
        metrics = {"accuracy": jnp.mean(jnp.argmax(found.logits, axis=-1) == batch["label"])}
        if known is not None:
            told = loss_of(found, mapped, known, batch["label"])
            each = beside.label * each + beside.weight * told
            agree = jnp.argmax(found.logits, axis=-1) == jnp.argmax(known.logits, axis=-1)
            metrics |= {"beside": jnp.mean(told), "agreement": jnp.mean(agree)}
        return Loss(jnp.mean(each), metrics, model_state=changed)

    def evaluate(state: TrainState) -> dict[str, float]:
        net = classifier(own, own.student)
        found = right(own, net, used(state.variables), opened()["validation"])
        return {"accuracy": float(jnp.mean(found))}

    return gradient_task(
        loss=loss,
        init_variables=init,
        optimizer=build_optimizer(dict(own.optimizer), steps=own.train.steps),
        batches=lambda part=0, parts=1: training_batches(own, opened()["train"], part, parts),
        evaluate=evaluate,
        batch_spec=spec,
        extra=first_teacher,
    )


def check(config: Any) -> None:
    """Raises `UserError` unless the loss beside the teacher is known, and has what it reads."""
    beside = config.beside
    if beside.loss not in METHODS:
        raise unknown("beside.loss", beside.loss, METHODS)
    row = METHODS[beside.loss]
    if beside.exits and row.reads != "logits":
        raise UserError(
            f"beside.exits is {dict(beside.exits)} and beside.loss {beside.loss!r}, which reads "
            f"{row.reads}; expected no exits, or a loss on logits"
        )
    if row.reads == "tokens" and not 1 <= beside.tokens.blocks <= (
        depth := of_tokens(config).depth
    ):
        raise UserError(
            f"beside.tokens.blocks is {beside.tokens.blocks}, expected 1 to {depth}, the teacher's"
        )
    named: Mapping[str, Any] = inspect.signature(row.loss).parameters
    taken = [key for key, own in named.items() if own.kind is own.KEYWORD_ONLY and key != "share"]
    for key in beside.options:
        if key not in taken:
            raise unknown(f"option of {beside.loss} in beside.options", key, taken)
    if not config.rates:
        raise UserError("rates is empty, expected at least one learning rate")
