"""PT-MAP: power transform, then class centres and a balanced transport plan in turn."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar, in_type
from rml.fewshot.checks import require_episode
from rml.fewshot.gram import class_mix, distances_to_mixtures, inner_products
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_between
from rml.ops.similarity import normalize, wide
from rml.ops.transport import import_sinkhorn


def power_transform(x: Float[Array, "n d"], *, power: float | None = 0.5) -> Float[Array, "n d"]:
    """Raises features, negative ones at zero, to `power` unless None; scales to unit length.

    Raises:
      ValueError: If `power` is not above 0.
    """
    check_above_0(power=power)
    (x,) = wide(x)
    if power is not None:
        x = (jax.nn.relu(x) + 1e-6) ** power
    return normalize(x)


@full_precision
def pt_map(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    power: float | None = 0.5,
    regularization: Scalar = 10.0,
    rate: Scalar = 0.2,
    steps: int = 20,
    sinkhorn_steps: int = 200,
    threshold: float = 1e-3,
) -> Float[Array, "q c"]:
    """Transports queries to class centres, equally many to each, and moves the centres.

    Args:
      support: Support features, not negative where `power` is given.
      support_labels: Their classes.
      query: Query features.
      num_classes: Number of classes c.
      power: β of the power transform; None for features of any sign.
      regularization: λ, the inverse of the plan's entropic regularisation.
      rate: α, share of the way to the new centres that is gone in a step.
      steps: Number of steps, of plan and centres in turn.
      sinkhorn_steps: The most iterations for one plan.
      threshold: Error of the plan's marginals at which to stop.

    Returns:
      The queries' rows of the last plan, summing to 1. Classes have equally many as far as
      `sinkhorn_steps` iterations come: the larger λ, the more it takes.

    Raises:
      ValueError: If the arrays are not an episode, `power` or `regularization` is not above 0,
        `rate` is not between 0 and 1, `steps` is below 0, or `sinkhorn_steps` is below 1.
      UserError: If ott-jax is not installed.

    Source: Hu et al., arXiv:2006.03806; defaults and order of the transforms as in its public
      code, which centres support and queries each by their own mean. There is no derivative: the
      implicit one of a balanced plan needs a singular system, which ott-jax's solver refuses.
    """
    require_episode(support, support_labels, query, num_classes)
    check_above_0(regularization=regularization)
    check_between(0, 1, rate=rate)
    check_between(0, steps=steps)
    check_between(1, sinkhorn_steps=sinkhorn_steps)
    geometry, problem, sinkhorn = import_sinkhorn("pt_map")
    support, query = (power_transform(x, power=power) for x in (support, query))
    support, query = (normalize(x - jnp.mean(x, axis=0)) for x in (support, query))
    rows, s = jnp.concatenate([support, query]), support.shape[0]
    regularization, rate = in_type(rows.dtype, regularization, rate)
    products = inner_products(rows, rows)
    means = class_mix(support_labels, num_classes=num_classes, rows=rows.shape[0])
    labels = jax.nn.one_hot(support_labels, num_classes, dtype=rows.dtype, axis=0)
    # Each row and column of costs begins at 0, which no plan sees: exponentials without logarithms
    # then hold a large λ too. The last plan's potentials are near: centres move little in a step.
    solver = sinkhorn(
        lse_mode=False, max_iterations=sinkhorn_steps, threshold=threshold, inner_iterations=1
    )

    def plan(mix: Array, potentials: Array) -> tuple[Array, Array]:
        """From centres, given as combinations of the rows, to the queries; columns sum to 1."""
        cost = distances_to_mixtures(products, mix)[:, s:]
        cost -= jnp.min(cost, axis=0)
        lowest = jnp.min(cost, axis=1)
        points = geometry(cost_matrix=cost - lowest[:, None], epsilon=1 / regularization)
        start = regularization * (potentials - lowest)
        start -= (jnp.max(start) + jnp.min(start)) / 2  # what no plan sees either
        found = solver(problem(points), init=(jnp.exp(start), jnp.ones_like(cost[0])))
        shares = found.matrix / jnp.sum(found.matrix, axis=0)
        return shares, jnp.log(found.scalings[0]) / regularization + lowest

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        mix, potentials = state
        found, potentials = plan(mix, potentials)
        mask = jnp.concatenate([labels, found], axis=1)
        mix += rate * (mask / jnp.sum(mask, axis=1, keepdims=True) - mix)
        return mix, potentials

    first = means.astype(rows.dtype), jnp.zeros(num_classes, rows.dtype)
    return plan(*jax.lax.fori_loop(0, steps, step, first))[0].T
