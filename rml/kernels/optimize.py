"""Minimisation that says whether it converged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rml.errors import UserError


class Fit(NamedTuple):
    """Where an optimisation ended.

    Attributes:
      params: Last parameters.
      value: Their objective, to be minimised.
      gradient_norm: Largest absolute entry of the gradient there.
      steps: Steps made.
      converged: Whether the gradient is below the tolerance.
    """

    params: Any
    value: float
    gradient_norm: float
    steps: int
    converged: bool


class Course(NamedTuple):
    """Where an optimisation is.

    Attributes:
      params: Parameters.
      state: The optimiser's state.
      step: Steps made.
      value: The objective, to be minimised.
      gradient: Its gradient.
    """

    params: Any
    state: Any
    step: Array
    value: Array
    gradient: Any


class Minimum(NamedTuple):
    """A `Fit` inside a program: arrays, converged or not, finite or not."""

    params: Any
    value: Array
    gradient: Array
    steps: Array


def minimize(
    loss: Callable[[Any], Array],
    params: Any,
    *,
    steps: int | Array,
    tolerance: float | Array,
    optimizer: optax.GradientTransformation | None = None,
) -> Minimum:
    """Minimises like `fit`, within a larger program; `checked` makes a `Fit` of what it returns."""
    chosen = optimizer or optax.lbfgs()

    def going(course: Course) -> Array:
        return (course.step < steps) & (_largest(course.gradient) > tolerance)

    end = jax.lax.while_loop(
        going, lambda course: advance(loss, course, chosen), begin(loss, params, chosen)
    )
    return Minimum(end.params, end.value, _largest(end.gradient), end.step)


def begin(
    loss: Callable[[Any], Array], params: Any, optimizer: optax.GradientTransformation
) -> Course:
    """Evaluates a loss where its minimisation starts."""
    # Some numbers of the state begin weakly typed, for which a step would be compiled once more.
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), optimizer.init(params))
    return Course(params, state, jnp.zeros((), jnp.int32), *jax.value_and_grad(loss)(params))


def advance(
    loss: Callable[[Any], Array], course: Course, optimizer: optax.GradientTransformation
) -> Course:
    """Makes one step: a program that wants to see the course of a long fit calls it itself.

    Args:
      loss: What is minimised.
      course: Where the minimisation is.
      optimizer: The one it began with.
    """
    params, state, step, value, grad = course
    updates, state = optax.with_extra_args_support(optimizer).update(
        grad, state, params, value=value, grad=grad, value_fn=loss
    )
    params = optax.apply_updates(params, updates)
    # A line search has evaluated where it ended.
    known = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
    found = jax.value_and_grad(loss)(params) if known[1] is None else known
    return Course(params, state, step + 1, *found)


def checked(found: Minimum, *, tolerance: float) -> Fit:
    """Makes a `Fit` of what a program found.

    Raises:
      UserError: If the loss is not finite where the fit starts or ends.
    """
    params, value, gradient, step = found
    if not (jnp.isfinite(value) and jnp.isfinite(gradient)):
        where = f"after {int(step)} steps" if step else "where the fit starts"
        raise UserError(
            f"the objective is {float(value)} and its largest gradient {float(gradient)} {where}: "
            "a matrix is not positive definite; require_kernels says which"
        )
    return Fit(params, float(value), float(gradient), int(step), bool(gradient <= tolerance))


def fit(
    loss: Callable[[Any], Array],
    params: Any,
    *,
    steps: int = 500,
    tolerance: float = 1e-6,
    optimizer: optax.GradientTransformation | None = None,
) -> Fit:
    """Minimises a smooth function of a pytree, by L-BFGS unless told otherwise.

    Each call compiles anew, with the data that `loss` holds as constants: a program that is to
    serve several data sets calls `minimize` itself.

    Args:
      loss: What to minimise, such as a negative objective.
      params: Where to start.
      steps: Largest number of steps.
      tolerance: Largest absolute entry of a gradient that counts as zero.
      optimizer: Any of Optax; `optax.lbfgs()` by default.

    Returns:
      Where it ended, converged or not.

    Raises:
      UserError: If the loss is not finite where the fit starts or ends, for example since a kernel
        matrix is singular.
    """
    options: Any = dict(steps=steps, tolerance=tolerance, optimizer=optimizer)
    found = jax.jit(lambda params: minimize(loss, params, **options))(params)
    return checked(found, tolerance=tolerance)


def _largest(tree: Any) -> Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]))
