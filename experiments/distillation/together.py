"""Students that learn from the same batches, trained as one program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.comparison import for_each
from experiments.common.many import Stacked, TaskOf, many, on_one_device
from experiments.common.pretraining import train
from experiments.common.timing import least_seconds
from rml.data import augment
from rml.training import RunDirectory, Task, TrainState

Judge = Callable[[TrainState], np.ndarray]
"""The accuracy of each student on validation images, [students]."""


def train_together(
    config: Any,
    run: RunDirectory,
    name: str,
    task_of: TaskOf,
    configs: Sequence[Any],
    *,
    batches: Callable[[], grain.IterDataset],
    judge: Judge,
) -> tuple[TrainState, np.ndarray]:
    """Trains a student for each config, all on the same batches, as one program.

    Args:
      config: The run's config.
      run: Its directory; the program is `methods/<name>`.
      name: Name of the program.
      task_of: Makes the problem of one student of its config.
      configs: One config a student; they differ in floats and seeds.
      batches: Makes the batches that each of them sees.
      judge: What is measured on validation images at the end.

    Returns:
      The state with a leading axis of students, and what `judge` says of each.
    """
    together = many(task_of, configs)

    def spread(parts: Sequence[Any]) -> Any:
        return jax.tree.map(lambda x: np.repeat(x[None], len(configs), axis=0), parts[0])

    together = replace(
        together,
        batches=lambda part=0, parts=1: Stacked([batches()], spread),
        evaluate=lambda state: {"accuracy": float(judge(on_one_device(state)).mean())},
    )

    def measure(
        name: str, inner: RunDirectory
    ) -> tuple[Mapping[str, float], tuple[TrainState, np.ndarray]]:
        state = on_one_device(train(config, inner, together, "eval/accuracy"))
        own = judge(state)
        return {"accuracy": float(own.mean())}, (state, own)

    return for_each(run, [name], measure)[name][1]


def named_rightly(model: Any, variables: Any, part: Mapping[str, np.ndarray]) -> np.ndarray:
    """For each student and image whether the class is found, float [students, n].

    Args:
      model: A module that gives logits, or what has such, of float images.
      variables: Its variables with a leading axis of students.
      part: "image" and "label" of images.
    """
    return np.asarray(_each(model, _class)(variables, part["image"]) == part["label"], np.float32)


def seconds(problem: Task, *, repeats: int) -> float:
    """The least seconds of a step of one student, which is compiled but not trained."""
    state = problem.init(jax.random.key(0))
    batch = next(iter(problem.batches()))
    step = jax.jit(problem.step)
    return least_seconds(lambda: step(nn.meta.unbox(state), batch), repeats=repeats)


def each_logits(model: Any, variables: Any, images: Any) -> Array:
    """The logits of images of each student, [students, n, k].

    Args:
      model: A module that gives logits, or what has such, of float images.
      variables: Its variables with a leading axis of students.
      images: Images.
    """
    return _each(model, jnp.asarray)(variables, images)


def _class(logits: Array) -> Array:
    return jnp.argmax(logits, axis=-1)


@cache
def _each(model: Any, read: Callable[[Array], Array]) -> Callable[[Any, Any], Array]:
    """What is read of students' logits; one function for each model, so that it compiles once."""

    @jax.jit
    def of_all(variables: Any, images: Any) -> Array:
        def of_one(own: Any) -> Array:
            found = model.apply(own, augment.to_float(images), train=False)
            return read(getattr(found, "logits", found))

        return jax.lax.map(of_one, variables)

    return of_all
