"""Training: optimal Gram matrices, inducing points, sparse machines trained and scored."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from rml.kernels.deep_kernel_machine import forward, regression_objective
from rml.kernels.gram_kernels import Kernel
from rml.kernels.nngp import gaussian_log_likelihood
from rml.kernels.optimize import Fit, Minimum, checked, minimize
from rml.kernels.sparse import SparseMachine, elbo, init_sparse, propagate_sparse
from rml.ops.shapes import check_above_0, check_between, check_shapes
from rml.ops.similarity import alike
from rml.training import descend


class Scores(NamedTuple):
    """How well a machine predicts targets.

    Attributes:
      log_likelihood: Mean log-density of the targets, in nats.
      error: Root mean squared error.
      coverage: Share of the targets inside the central 95% interval.
    """

    log_likelihood: Float[Array, "..."]
    error: Float[Array, "..."]
    coverage: Float[Array, "..."]


def optimal_grams(
    g: Float[Array, "n n"],
    y: Float[Array, "n c"],
    *,
    kernel: Kernel,
    depth: int,
    width: float | int,
    noise: float,
    steps: int = 500,
    tolerance: float = 1e-9,
    memory: int = 10,
) -> tuple[Float[Array, "depth n n"], Fit]:
    """Maximises the full machine's objective over its Gram matrices by L-BFGS.

    It starts from the NNGP. A gradient takes some ten times n³ operations a layer, and L-BFGS holds
    2 `memory` arrays of the Gram matrices' size.

    Args:
      g: Gram matrix of the inputs.
      y: Targets; `g` and `y` are widened to one type, which is that of the search.
      kernel: Kernel of every layer.
      depth: Number of hidden layers.
      width: ν of every hidden layer; it divides the objective, so that its scale stays.
      noise: Variance of the targets.
      steps: Largest number of steps.
      tolerance: Largest absolute entry of the gradient of a fit that has converged.
      memory: Pairs of steps and differences of gradients that L-BFGS keeps.

    Returns:
      The Gram matrices of the hidden layers, and where the optimisation ended.

    Raises:
      UserError: If the objective is not finite where it starts or ends.
      ValueError: If the depth or the noise is below 0, or the width is not above 0.
    """
    _check_numbers(width, noise)
    check_between(0, depth=depth)
    g, y = alike(g, y)
    numbers = (jnp.asarray(one, g.dtype) for one in (width, noise, tolerance))
    start = jnp.zeros((depth, *g.shape), g.dtype)
    found, grams = _optimal_grams(start, g, y, *numbers, steps, kernel=kernel, memory=memory)
    return grams, checked(found, tolerance=tolerance)


def optimal_grams_of_starts(
    starts: Float[Array, "starts depth n n"],
    g: Float[Array, "n n"],
    y: Float[Array, "n c"],
    *,
    kernel: Kernel,
    width: float | int,
    noise: float,
    steps: int = 500,
    tolerance: float = 1e-9,
) -> tuple[Float[Array, "starts depth n n"], Minimum]:
    """Finds `optimal_grams` from several starts in one program, each as long as it needs.

    Args:
      starts: Free parameters of the Gram matrices, see `rml.kernels.layers`.
      g: Gram matrix of the inputs.
      y: Targets.
      kernel: Kernel of every layer.
      width: ν of every hidden layer; it divides the objective.
      noise: Variance of the targets.
      steps: Largest number of steps.
      tolerance: Largest absolute entry of the gradient of a fit that has converged.

    Returns:
      The Gram matrices that each start ends at, and where: finite or not, converged or not.

    Raises:
      ValueError: If the noise is below 0, or the width is not above 0.
    """
    _check_numbers(width, noise)
    starts, g, y = alike(starts, g, y)
    numbers = [jnp.asarray(one, g.dtype) for one in (width, noise, tolerance)]
    found, grams = _optima(starts, g, y, *numbers, steps, kernel=kernel)
    return grams, found


def _check_numbers(width: float | int, noise: float) -> None:
    check_above_0(width=width)
    check_between(0, noise=noise)


@partial(jax.jit, static_argnames="kernel")
def _optima(starts: Array, *args: Any, kernel: Kernel) -> tuple[Minimum, Array]:
    # Not vmap, under which all starts make as many steps as the slowest.
    return jax.lax.map(lambda start: _optimal_grams(start, *args, kernel=kernel), starts)


@partial(jax.jit, static_argnames=("kernel", "memory"))
def _optimal_grams(
    start: Array, g: Array, y: Array, width: Array, noise: Array, tolerance: Array, steps: Any, *,
    kernel: Kernel, memory: int = 10,
) -> tuple[Minimum, Array]:  # fmt: skip
    """One program a kernel and shape: data and numbers are arguments."""
    widths = jnp.full(len(start), width, g.dtype)

    def loss(raw: Array) -> Array:
        value = regression_objective(raw, g, y, kernel=kernel, widths=widths, noise=noise)
        return -value / width

    found = minimize(
        loss, start, steps=steps, tolerance=tolerance, optimizer=optax.lbfgs(memory_size=memory)
    )
    return found, forward(found.params, g, kernel=kernel).grams


def inducing_rows(
    labels: Int[np.ndarray, " n"], count: int, *, classes: int, seed: int
) -> Int[np.ndarray, " p"]:
    """Draws rows to be inducing points, as many of each class, in the order of the classes.

    Args:
      labels: Classes of all rows.
      count: Number of inducing points; where the classes do not divide it, the first have one more.
      classes: Number of classes.
      seed: Seed of the draw.

    Returns:
      The rows, fewer than `count` where a class has too few.

    Raises:
      ValueError: If the number of inducing points or of classes is not above 0.
    """
    check_above_0(count=count, classes=classes)
    rng, (share, rest) = np.random.default_rng(seed), divmod(count, classes)
    sizes = [share + (c < rest) for c in range(classes)]
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:size] for c, size in enumerate(sizes)]
    return np.concatenate(drawn)


def train_sparse(
    x: Float[Array, "n d"],
    y: Float[Array, "n c"],
    *,
    kernel: Kernel,
    inducing: int,
    depth: int,
    width: float | Array,
    steps: int,
    learning_rate: float | Array,
    learned: bool = True,
    normalization: str = "none",
    batch_size: int | None = None,
    total: int | Array | None = None,
    key: Any = None,
) -> SparseMachine:
    """Trains a sparse machine for regression from its prior, by Adam at a rate that falls to 0.

    `width` and `total` may be traced, so that one program serves all their values.

    Args:
      x: Inputs; the first of them are where the inducing inputs start.
      y: Targets.
      kernel: Kernel of every layer.
      inducing: Number of inducing points.
      depth: Number of hidden layers.
      width: ν of every hidden layer.
      steps: Number of steps.
      learning_rate: First learning rate of a cosine schedule.
      learned: Whether Gram matrices are trained; without, it is a sparse NNGP, where ν plays no
        part.
      normalization: Normalisation of each Gram matrix, see `propagate_sparse`.
      batch_size: Number of points that each step draws; None for all points at every step.
      total: Number of rows, from the first, that the machine is trained on; all by default. Only
        batches can leave rows out.
      key: Typed key of the batches.

    Returns:
      The trained machine.

    Raises:
      ValueError: If batches have no key, `total` is given without batches, there are fewer inputs
        than inducing points, a number is below 0, or one other than the depth and the width is 0.
    """
    check_between(1, len(x), inducing=inducing)
    check_above_0(steps=steps, batch_size=batch_size)
    check_between(0, width=width)
    if (batch_size is None) != (key is None) or (batch_size is None and total is not None):
        raise ValueError(
            f"batches need a key, and total needs batches, got batch_size {batch_size}, "
            f"total {total} and key {key}"
        )
    first = init_sparse(x[:inducing], depth=depth, outputs=y.shape[1], learned=learned)
    count = len(x) if total is None else total
    widths = jnp.full(depth, width, x.dtype)

    def loss(machine: SparseMachine, item: Any) -> Array:
        rows: Any = slice(None)
        if batch_size is not None:
            rows = jax.random.randint(item, (batch_size,), 0, count)
        return -elbo(
            machine, x[rows], y[rows], total=count, kernel=kernel, widths=widths,
            likelihood="gaussian", normalization=normalization,
        )  # fmt: skip

    items = jnp.arange(steps) if batch_size is None else jax.random.split(key, steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    return descend(loss, first, items, optimizer=optimizer).params


def train_splits(
    x: Float[Array, "splits n d"], y: Float[Array, "splits n c"], **options: Any
) -> SparseMachine:
    """Trains a sparse machine on each split of a table, all in one program.

    Args:
      x: Inputs of every split.
      y: Targets of every split.
      **options: Options of `train_sparse`.

    Returns:
      Machines whose arrays have an axis of splits before their own.
    """
    # Not vmap: batched LAPACK calls inside a scan can wait for each other forever on few cores.
    return jax.lax.map(lambda part: train_sparse(*part, **options), (x, y))


def regression_scores(
    machine: SparseMachine,
    x: Float[Array, "t d"],
    y: Float[Array, "t c"],
    *,
    kernel: Kernel,
    normalization: str = "none",
) -> Scores:
    """Scores a sparse machine's predictions of targets, its noise included.

    Args:
      machine: The trained machine.
      x: Inputs.
      y: Their targets.
      kernel: Kernel of every layer.
      normalization: Normalisation of each Gram matrix, see `propagate_sparse`.

    Returns:
      Log-likelihood, error and coverage.

    Raises:
      ValueError: If the targets do not have the shape of the predictions.
    """
    prediction = propagate_sparse(machine, x, kernel=kernel, normalization=normalization).prediction
    check_shapes(mean=(prediction.mean, "t c"), y=(y, "t c"))
    noise = jnp.exp(machine.log_noise)
    error = jnp.abs(y - prediction.mean)
    bound = 1.96 * jnp.sqrt(prediction.variance + noise)[:, None]
    return Scores(
        gaussian_log_likelihood(prediction, y, noise=noise),
        jnp.sqrt(jnp.mean(error**2)),
        jnp.mean(error <= bound),
    )
