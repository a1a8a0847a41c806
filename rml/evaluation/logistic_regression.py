"""Multinomial logistic regression by L-BFGS."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.tree_utils as otu
from jaxtyping import Array, Bool, Float, Int

from rml.evaluation.checks import require_labels, require_matrix
from rml.ops.precision import full_precision

# Steps without a lower value or a smaller gradient after which rounding is all that is left.
_PATIENCE = 20


class LogisticRegression(NamedTuple):
    """A fitted model; logits are `features @ weights + bias`.

    Attributes:
      weights: Coefficients.
      bias: Intercepts, whose sum stays what it is at the start, zero by default.
      gradient_norm: Largest absolute entry of the gradient of the objective where it stopped.
      iterations: L-BFGS steps taken.
      converged: Whether the gradient norm reached the tolerance.
    """

    weights: Float[Array, "d c"]
    bias: Float[Array, " c"]
    gradient_norm: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def fit_logistic_regression(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    num_classes: int,
    l2: float | Float[Array, ""],
    sample_weight: Float[Array, " n"] | None = None,
    weights: Float[Array, "d c"] | None = None,
    bias: Float[Array, " c"] | None = None,
    max_iterations: int | Int[Array, ""] = 500,
    tolerance: float | Float[Array, ""] = 1e-5,
) -> LogisticRegression:
    """Minimises the weighted mean cross-entropy plus l2 / 2 · |weights|²; the bias is free.

    This is scikit-learn's objective with C = 1 / (l2 · total sample weight), for three classes or
    more (for two classes scikit-learn penalises half as much: C = 2 / (l2 · total)).

    Args:
      features: Rows; at about unit scale the steps are fewest.
      labels: Classes.
      num_classes: Number of classes c.
      l2: Penalty.
      sample_weight: Weight of each row, not all zero; equal if absent.
      weights: Coefficients to start from; zero if absent.
      bias: Intercepts to start from; zero if absent.
      max_iterations: L-BFGS steps at most.
      tolerance: Stops when no entry of the gradient is larger. In float32 about 1e-6 is reachable;
        it also stops where rounding allows no further progress.

    Returns:
      The model and how it converged.

    Raises:
      ValueError: If shapes do not fit or, outside `jit`, a feature is not finite, a label is out of
        range, or the penalty is below 0.
    """
    require_matrix("features", features)
    rows = features.shape[0]
    require_labels("labels", labels, rows=rows, num_classes=num_classes)
    if sample_weight is not None and sample_weight.shape != (rows,):
        raise ValueError(
            f"sample_weight must hold one weight for each of {rows} rows, got shape "
            f"{sample_weight.shape}"
        )
    d, c = features.shape[1], num_classes
    for name, start, shape in (("weights", weights, (d, c)), ("bias", bias, (c,))):
        if start is not None and start.shape != shape:
            raise ValueError(f"{name} to start from must have shape {shape}, got {start.shape}")
    if not isinstance(l2, jax.core.Tracer) and not np.asarray(l2) >= 0:
        raise ValueError(f"l2 must be at least 0, got {l2}")
    return _fit(
        features, labels, num_classes=num_classes, l2=l2, sample_weight=sample_weight,
        weights=weights, bias=bias, max_iterations=max_iterations, tolerance=tolerance,
    )  # fmt: skip


@partial(jax.jit, static_argnames="num_classes")  # shapes and values are checked before
@full_precision
def _fit(
    features: Array, labels: Array, *, num_classes: int, l2: float | Array,
    sample_weight: Array | None, weights: Array | None, bias: Array | None,
    max_iterations: int | Array, tolerance: float | Array,
) -> LogisticRegression:  # fmt: skip
    x = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    n, d = x.shape
    rows = jnp.ones(n, x.dtype) if sample_weight is None else sample_weight.astype(x.dtype)
    rows /= jnp.sum(rows)
    targets = jax.nn.one_hot(labels, num_classes, dtype=x.dtype)
    weights = jnp.zeros((d, num_classes), x.dtype) if weights is None else weights.astype(x.dtype)
    bias = jnp.zeros(num_classes, x.dtype) if bias is None else bias.astype(x.dtype)

    # Around their mean the weights and the bias hardly interact, so the problem is better posed.
    mean = rows @ x
    # One array of parameters, the bias its last row, compiles faster than two.
    x = jnp.concatenate([x - mean, jnp.ones((n, 1), x.dtype)], axis=1)

    def objective(params: Array) -> Array:
        loss = jnp.vdot(rows, optax.softmax_cross_entropy(x @ params, targets))
        return loss + 0.5 * l2 * jnp.sum(params[:-1] ** 2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def proceed(carry: tuple) -> Array:
        _, state, norm, _, idle = carry
        searching = (otu.tree_get(state, "count") < max_iterations) & (idle < _PATIENCE)
        return searching & (norm > tolerance)

    def step(carry: tuple) -> tuple:
        params, state, _, best, idle = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        norm = jnp.max(jnp.abs(otu.tree_get(state, "grad")))
        reached = jnp.stack([otu.tree_get(state, "value"), norm])
        idle = jnp.where(jnp.any(reached < best), 0, idle + 1)
        params = optax.apply_updates(params, updates)
        return params, state, norm, jnp.minimum(best, reached), idle

    start = jnp.concatenate([weights, (bias + mean @ weights)[None]])
    unknown = jnp.full(2, jnp.inf, x.dtype)
    params, state, norm, _, _ = jax.lax.while_loop(
        proceed, step, (start, solver.init(start), unknown[0], unknown, jnp.asarray(0))
    )
    weights = params[:-1]
    return LogisticRegression(
        weights=weights,
        bias=params[-1] - mean @ weights,
        gradient_norm=norm,
        iterations=otu.tree_get(state, "count"),
        converged=norm <= tolerance,
    )
