"""Fits of full deep kernel machines step by step, in two ways, and what they reach."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rml import kernels
from rml.kernels.layers import free_parameters, triangle
from rml.ops.psd import cholesky
from rml.training import Progress

RELATIVE, FACTORS = "relative", "factors"


class Course(NamedTuple):
    """A fit as it goes on.

    Attributes:
      gradients: Gradients taken until each step [s], the start's first.
      objective: Objective there, in nats a point [s].
      params: Last free parameters.
    """

    gradients: np.ndarray
    objective: np.ndarray
    params: Any


def fitted(config: Any, way: str, x: Any, y: Any, *, steps: int | None = None) -> Course:
    """Maximises the objective from the NNGP, step by step."""
    model, g = config.model, kernels.input_gram(x)
    kernel = kernels.build(model.kernel)
    if way == RELATIVE:
        start = jnp.zeros((model.depth, *g.shape), g.dtype)
    else:
        grams = kernels.nngp_grams(g, kernel=kernel, depth=model.depth)
        start = jnp.stack([free_parameters(cholesky(own).factor) for own in grams])
    given = (g, y, float(model.width), float(model.noise))
    options: Any = dict(way=way, kernel=kernel, memory=config.train.memory)
    course = _begin(start, *given, **options)
    values, gradients = [float(course.value)], [1]
    steps = config.train.steps if steps is None else steps
    progress = Progress(unit="step")
    progress.start(0, steps)
    for step in range(1, 1 + steps):
        course = _advance(course, *given, **options)
        taken = int(optax.tree.get(course.state, "num_linesearch_steps"))
        gradients.append(gradients[-1] + taken)
        values.append(float(course.value))
        progress.show({"objective": -values[-1] * model.width / len(x)})
        progress.advance(step)
    progress.stop()
    objective = -np.asarray(values, np.float64) * model.width / len(x)
    return Course(np.asarray(gradients), objective, course.params)


def needed(course: Course, goal: float) -> int:
    """Gradients until an objective is reached; all that were taken where it never is."""
    reached = np.flatnonzero(course.objective >= goal)
    return int(course.gradients[reached[0] if len(reached) else -1])


def tested(config: Any, raw: Any, x: Any, y: Any, test: Any) -> float:
    """Mean log-density of test targets by a machine, or by the NNGP where `raw` is not given."""
    model = config.model
    raw = jnp.zeros((model.depth, len(x), len(x)), x.dtype) if raw is None else raw
    return float(_tested(
        raw, x, y, *test, float(model.noise), kernel=kernels.build(model.kernel)
    ))  # fmt: skip


@partial(jax.jit, static_argnames="kernel")
def _tested(raw: Any, x: Any, y: Any, others: Any, targets: Any, noise: Any, *, kernel: Any) -> Any:
    prediction = kernels.predict(raw, x, y, others, kernel=kernel, noise=noise)
    return kernels.gaussian_log_likelihood(prediction, targets, noise=noise)


@partial(jax.jit, static_argnames=("way", "kernel", "memory"))
def _begin(
    start: Any, g: Any, y: Any, width: Any, noise: Any, *, way: str, kernel: Any, memory: int
) -> Any:
    loss = _loss(g, y, width, noise, way=way, kernel=kernel)
    return kernels.begin(loss, start, optax.lbfgs(memory_size=memory))


@partial(jax.jit, static_argnames=("way", "kernel", "memory"), donate_argnums=0)
def _advance(
    course: Any, g: Any, y: Any, width: Any, noise: Any, *, way: str, kernel: Any, memory: int
) -> Any:
    loss = _loss(g, y, width, noise, way=way, kernel=kernel)
    return kernels.advance(loss, course, optax.lbfgs(memory_size=memory))


def _loss(g: Any, y: Any, width: Any, noise: Any, *, way: str, kernel: Any) -> Callable[[Any], Any]:
    """The negative objective over ν."""

    def loss(raw: Any) -> Any:
        options: Any = dict(kernel=kernel, widths=jnp.full(len(raw), width), noise=noise)
        if way == RELATIVE:
            return -kernels.regression_objective(raw, g, y, **options) / width
        t = jax.vmap(triangle)(raw)
        return -kernels.objective(t @ t.swapaxes(1, 2), g, y, **options) / width

    return loss
