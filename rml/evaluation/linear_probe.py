"""Linear probe: how well a linear classifier reads the classes from frozen features."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key

from rml.evaluation.accuracy import accuracy
from rml.evaluation.checks import require_finite, require_labels, require_same_width
from rml.evaluation.devices import WHOLE, in_parts, on_each, on_this
from rml.evaluation.logistic_regression import LogisticRegression, fit_logistic_regression
from rml.ops.pairwise import dot_product
from rml.ops.similarity import unit_scale


class LinearProbe(NamedTuple):
    """A linear probe and how it was found.

    Attributes:
      accuracy: Share of test rows classified right.
      l2: The penalty chosen.
      weights: Coefficients for features as they were given: logits are `features @ weights + bias`.
      bias: Intercepts.
      held_out_accuracy: Accuracy on the held-out training rows, per penalty in the order given.
      gradient_norm: Largest absolute entry of the gradient at the final fit.
      iterations: L-BFGS steps of the final fit.
      converged: Whether every fit reached the tolerance.
    """

    accuracy: Float[Array, ""]
    l2: float
    weights: Float[Array, "d c"]
    bias: Float[Array, " c"]
    held_out_accuracy: Float[Array, " grid"]
    gradient_norm: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def linear_probe(
    train_features: Float[Array, "n d"],
    train_labels: Int[Array, " n"],
    test_features: Float[Array, "m d"],
    test_labels: Int[Array, " m"],
    *,
    num_classes: int,
    key: Key[Array, ""],
    l2_grid: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    held_out: float = 0.2,
    max_iterations: int = 500,
    tolerance: float = 1e-5,
    mesh: Mesh | None = None,
) -> LinearProbe:
    """Fits logistic regression on standardised features, its penalty chosen on held-out rows.

    Every class gives the share `held_out` of its training rows to choose the penalty with; among
    equal accuracies the strongest penalty is taken, and the model is fitted again to all training
    rows. Features are standardised by the training rows; a constant feature has no influence, and
    if all are constant the commonest class is predicted. Each fit starts from the one before, the
    strongest penalty first. This runs on the host: it compiles one fit and calls it.

    Args:
      train_features: Features to fit.
      train_labels: Their classes.
      test_features: Features to score.
      test_labels: Their classes.
      num_classes: Number of classes.
      key: Draws the held-out rows.
      l2_grid: Penalties, see `fit_logistic_regression`.
      held_out: Share of the training rows held out to choose the penalty.
      max_iterations: L-BFGS steps at most, per fit.
      tolerance: Gradient norm at which a fit has converged.
      mesh: Devices, of any number of processes, among which training rows are shared out.

    Returns:
      The probe.

    Raises:
      ValueError: If the shapes disagree, a feature is not finite, a label is out of range, the grid
        is empty or not positive, or `held_out` leaves no rows on one side.
    """
    n = train_features.shape[0]
    require_same_width("train_features", train_features, "test_features", test_features)
    require_labels("train_labels", train_labels, rows=n, num_classes=num_classes)
    require_labels("test_labels", test_labels, rows=test_features.shape[0], num_classes=num_classes)
    require_finite("train_features", train_features)
    require_finite("test_features", test_features)
    if not l2_grid or min(l2_grid) <= 0:
        raise ValueError(f"l2_grid must hold positive penalties, got {tuple(l2_grid)}")
    if not 0 < held_out < 1 or not 1 <= int(n * held_out) < n:
        raise ValueError(
            f"held_out must leave rows on both sides of the split, got {held_out} of {n} rows"
        )

    mean, scale, x = _standardised(train_features)
    held = _held_out(train_labels, key, held_out)
    solve, place = _solver(num_classes, None if mesh is None or mesh.size == 1 else mesh)
    placed = place(x), place(train_labels)

    def fit(l2: float, rows: Array, start: tuple[Array, Array]) -> tuple:
        model = solve(
            *placed,
            l2=l2,
            sample_weight=place(rows),
            weights=start[0],
            bias=start[1],
            max_iterations=max_iterations,
            tolerance=tolerance,
        )
        return model, (model.weights, model.bias)

    kept = (~held).astype(x.dtype)
    start = jnp.zeros((x.shape[1], num_classes), x.dtype), jnp.zeros(num_classes, x.dtype)
    fits = {}
    for l2 in sorted(l2_grid, reverse=True):
        model, start = fit(l2, kept, start)
        fits[l2] = model, _score(x, train_labels, held, model)
    best = max(fits, key=lambda l2: (float(fits[l2][1]), l2))
    final, _ = fit(best, jnp.ones_like(kept), (fits[best][0].weights, fits[best][0].bias))

    logits, weights, bias = _applied(test_features, mean, scale, final)
    return LinearProbe(
        accuracy=accuracy(logits, test_labels),
        l2=best,
        weights=weights,
        bias=bias,
        held_out_accuracy=jnp.stack([fits[l2][1] for l2 in l2_grid]),
        gradient_norm=final.gradient_norm,
        iterations=final.iterations,
        converged=final.converged & jnp.all(jnp.stack([m.converged for m, _ in fits.values()])),
    )


def _solver(num_classes: int, mesh: Mesh | None) -> tuple[Callable[..., Any], Callable]:
    """The fit, on one device or with rows shared out, and what brings rows to it."""
    if mesh is None:
        return partial(fit_logistic_regression, num_classes=num_classes), lambda rows: rows
    spread = _spread_fit(num_classes, mesh)

    def solve(*rows: Array, sample_weight: Array, **others: Any) -> LogisticRegression:
        return on_this(spread(*rows, sample_weight=sample_weight, **on_each(others, mesh)))

    return solve, partial(in_parts, mesh=mesh)  # rows that fill up weigh nothing


@lru_cache(maxsize=8)
def _spread_fit(num_classes: int, mesh: Mesh) -> Callable[..., Any]:
    fit = partial(fit_logistic_regression, num_classes=num_classes)
    return jax.jit(fit, out_shardings=NamedSharding(mesh, WHOLE))


def _logits(features: Array, model: LogisticRegression) -> Array:
    return dot_product(features, model.weights.T) + model.bias


@jax.jit  # one program instead of one an operation
def _score(x: Array, labels: Array, counted: Array, model: LogisticRegression) -> Array:
    """Accuracy on the rows that count."""
    right = jnp.argmax(_logits(x, model), axis=1) == labels
    return jnp.mean(right, where=counted, dtype=jnp.float32)


@jax.jit
def _applied(
    features: Array, mean: Array, scale: Array, model: LogisticRegression
) -> tuple[Array, Array, Array]:
    """Logits of raw features, and the weights and bias that give them."""
    weights = model.weights / scale[:, None]
    return _logits((features - mean) / scale, model), weights, model.bias - mean @ weights


@jax.jit
def _standardised(features: Array) -> tuple[Array, Array, Array]:
    """Mean, standard deviation, 1 where only rounding makes a feature vary, and what they leave."""
    x = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    (unit,) = unit_scale(x, axis=0)  # whose squares stay in range
    x = x * unit
    mean, scale = jnp.mean(x, axis=0) / unit, jnp.std(x, axis=0)
    rounding = 10 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=0)
    scale = jnp.where(scale > rounding, scale / unit, 1)
    return mean, scale, (features - mean) / scale


@partial(jax.jit, static_argnames="share")
def _held_out(labels: Array, key: Array, share: float) -> Array:
    """Marks the given share of rows, drawn at random and spread evenly over the classes."""
    n = labels.shape[0]
    order = jnp.lexsort((jax.random.uniform(key, (n,)), labels))
    # Along rows sorted by class, mark each at which the running share passes an integer.
    passed = np.floor(np.arange(n + 1) * share)
    return jnp.zeros(n, bool).at[order].set(passed[1:] > passed[:-1])
