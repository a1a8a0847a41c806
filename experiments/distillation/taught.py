"""Students beside one of several teachers, by weights of the losses of `METHODS`.

What differs among the students of a program are floats of the config: which teacher they have, the
weights of losses and their options, and the seed of the initial weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.distillation.families import Bed
from experiments.distillation.students import batches
from rml.data import augment
from rml.distillation import METHODS, Maps, Outputs, as_map
from rml.losses import smoothed_cross_entropy
from rml.training import Loss, Task, TrainState, build_optimizer, gradient_task

MAPS = "fitnet"
"""The method that compares maps, place by place of the teacher's grid; others on features read what
classifiers read."""


def of_kind(reads: str) -> tuple[str, ...]:
    """The names of all methods that read "logits" or "features"."""
    return tuple(name for name, row in METHODS.items() if row.reads == reads)


def key_of(method: str) -> str:
    """What of `Bed.train` a method reads of the teacher."""
    if method == MAPS:
        return "maps"
    return {"logits": "teacher", "features": "features"}[METHODS[method].reads]


def options(given: Any) -> dict[str, dict[str, Any]]:
    """The options of losses by their names, as a config gives them."""
    return {
        "kd": {"temperature": given.temperature},
        "soft_cross_entropy": {"temperature": given.temperature},
        "dkd": {"temperature": given.temperature, "others_weight": given.others},
        "dist": {"temperature": given.temperature},
        "ofa": {"gamma": given.gamma},
        "crd": {"size": given.images},
    }


def of_teacher(config: Any, families: Any, batch: Any) -> dict[str, Array]:
    """A batch with what one teacher says; with `own` 0, of the next image in it, which is any."""
    weights = jnp.stack([jnp.asarray(config.given[name]) for name in families])
    known = {key: x for key, x in batch.items() if key not in ("image", "label")}
    own = {key: jnp.tensordot(x, weights, (1, 0)) for key, x in known.items()}
    share = config.given.own
    known = {key: share * x + (1 - share) * jnp.roll(x, 1, axis=0) for key, x in own.items()}
    return {**batch, **known}


def pair(method: str, found: Outputs, batch: Any) -> tuple[Array, Array]:
    """What a method compares: outputs of a student and of its teacher, before any linear map.

    The student's last stage is resized to the teacher's grid.
    """
    theirs = batch[key_of(method)]
    if method == MAPS:
        assert found.stages is not None
        ours = as_map(found.stages[-1])
        return jax.image.resize(ours, (*theirs.shape[:3], ours.shape[-1]), "linear"), theirs
    return (found.logits if METHODS[method].reads == "logits" else found.features), theirs


def beside(
    config: Any, found: Outputs, mapped: Mapping[str, tuple[Array, Array]], batch: Any
) -> Array:
    """The losses beside the teacher, each with its weight; a sum over the methods in `mapped`.

    Args:
      config: The config of the student, of which `given` is read.
      found: What the student makes of the images; it is read by what takes this one's place.
      mapped: What each method compares, see `pair`, after maps, by its name.
      batch: "label".
    """
    del found
    given, known = options(config.given), batch["label"]
    losses = [
        config.given[name] * METHODS[name].loss(*pair, known, **given.get(name, {}))
        for name, pair in mapped.items()
    ]
    return jnp.asarray(sum(losses))


Beside = Callable[[Any, Outputs, Mapping[str, tuple[Array, Array]], Any], Array]
"""`beside`, or what takes its place."""


def value(config: Any, found: Outputs, pairs: Any, batch: Any, more: Beside = beside) -> Array:
    """The loss of each image: that of the label with its weight, and what stands beside it."""
    given, labels = config.given, batch["label"]
    label = smoothed_cross_entropy(found.logits, labels, smoothing=given.smoothing)
    return given.label * label + more(config, found, pairs, batch)


def task(
    config: Any, bed: Bed, student: nn.Module, methods: Sequence[str] = (), more: Beside = beside
) -> Task:
    """The problem of one student.

    Args:
      config: The config of the student, of which `given` is read.
      bed: What it learns from.
      student: The student as it is trained.
      methods: Methods whose losses are computed, of which the student has those whose weight is
        not 0.
      more: What is added to the loss of the label.
    """
    keys = ("image", "label", "teacher", *sorted({key_of(name) for name in methods} - {"teacher"}))
    bed = bed._replace(train={key: bed.train[key] for key in keys})
    maps = {name: Maps(METHODS[name].maps) for name in methods if METHODS[name].maps != "none"}
    asked: dict[str, Any] = {"stages": True} if MAPS in methods else {}

    def init(key: Any) -> Any:
        images = jnp.zeros((2, *config.data.image_shape))
        variables = student.init(key, images, train=True)
        said = {name: jnp.zeros((2, *own.shape[2:])) for name, own in bed.train.items()}

        def compared(own: Any) -> dict[str, Any]:
            found: Any = student.apply(own, images, train=False, **asked)
            return {name: pair(name, found, said) for name in maps}

        shapes = jax.eval_shape(compared, nn.meta.unbox(variables))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
        made = {name: maps[name].init(key, *own)["params"] for name, own in zeros.items()}
        return {**variables, "params": {"network": variables["params"], "maps": made}}

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        variables = {"params": params["network"], **state.model_state}
        found, changed = student.apply(
            variables, augment.to_float(batch["image"]), train=True,
            mutable=list(state.model_state), **asked,
        )  # fmt: skip
        own = of_teacher(config, bed.families, batch)
        pairs: dict[str, Any] = {name: pair(name, found, own) for name in methods}
        for name, module in maps.items():
            pairs[name] = module.apply({"params": params["maps"][name]}, *pairs[name])
        return Loss(jnp.mean(value(config, found, pairs, own, more)), model_state=changed)

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
