"""Transport between the units of two models: costs, plans, and maps of width made of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rml.errors import UserError, unknown
from rml.models import WidthMap
from rml.ops import cosine_similarity, euclidean
from rml.ops.shapes import check_between, check_shapes
from rml.ops.transport import import_sinkhorn
from rml.ops.trees import check_leaf

METRICS = ("euclidean", "cosine")
SCALES = ("max", "mean", "median", "log1p", "none")
SOLVERS = ("sinkhorn", "exact")
RESIDUALS = (
    "mean", "residual", "branch", "identity", "weighted_scalar", "weighted_matrix",
)  # fmt: skip
LEAST = 1e-12
"""Least divisor, of a cost or a mean activation."""


def ground_cost(
    x0: Float[Array, "n0 s"],
    x1: Float[Array, "n1 s"],
    *,
    metric: str = "euclidean",
    scale: str = "max",
) -> Float[Array, "n0 n1"]:
    """Computes what it costs to move each unit of one model onto each unit of another.

    Args:
      x0: Coordinates of the units of model 0.
      x1: Coordinates of the units of model 1.
      metric: "euclidean", a distance that is not squared, or "cosine", one minus the cosine.
      scale: What costs are divided by: their "max", "mean", "median", or "none"; "log1p" takes
        log(1 + cost) instead.

    Returns:
      Costs of at least 0.

    Raises:
      UserError: A name is unknown.

    Source: Imfeld et al., arXiv:2310.05719; the scales are those of the public code.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if metric == "euclidean":
        cost = euclidean(x0, x1)
    else:
        cost = jnp.maximum(1 - cosine_similarity(x0, x1), 0)  # a cosine is rounded to above 1
    if scale == "none":
        return cost
    if scale == "log1p":
        return jnp.log1p(cost)
    sizes: dict[str, Callable[[Array], Array]] = {
        "max": jnp.max, "mean": jnp.mean, "median": jnp.median
    }  # fmt: skip
    return cost / jnp.maximum(sizes[scale](cost), LEAST)


def transport_map(
    cost: Float[Array, "n0 n1"], *, solver: str = "sinkhorn", reg: ArrayLike = 0.08
) -> Float[Array, "n0 n1"]:
    """Computes n0 times the plan of least cost that gives every unit the same mass.

    min_P Σ_ij P_ij C_ij - reg H(P), with rows of P summing to 1/n0 and columns to 1/n1. Without the
    entropy H, and with n0 = n1, n0 P is a permutation. Sinkhorn ends after 2,000 iterations whether
    it has converged or not: `marginal_error` tells how far sums of a map are from what they should
    be, which grows as `reg` falls. The public code can also take Sinkhorn where the width changes
    alone; here one solver is for all layers.

    Args:
      cost: Costs of units of model 0 and of model 1.
      solver: "sinkhorn", soft; or "exact", which assigns copies of units where n0 and n1 differ:
        each side is repeated up to their least common multiple. It takes cubic time.
      reg: Weight of the entropy above 0, for "sinkhorn"; 0.08 (activations) and 0.06 (weights) in
        the public code.

    Returns:
      The map; rows sum to 1, columns to n0 / n1.

    Raises:
      UserError: The solver is unknown, `reg` is not above 0, costs are not finite, or ott-jax is
        missing. Values of traced arrays are not looked at.

    Source: Singh and Jaggi, arXiv:1910.05653; Imfeld et al., arXiv:2310.05719.
    """
    check_leaf("cost", cost)
    if solver == "exact":
        return _exact(cost)
    if solver != "sinkhorn":
        raise unknown("solver", solver, SOLVERS)
    if not isinstance(reg, jax.core.Tracer) and not np.all(np.asarray(reg) > 0):
        raise UserError(f"reg is {reg}, expected a weight of the entropy above 0")
    geometry, problem, sinkhorn = import_sinkhorn("solver 'sinkhorn', unlike 'exact',")
    made = geometry(cost_matrix=cost, epsilon=jnp.asarray(reg, cost.dtype))
    solved = sinkhorn(max_iterations=2000, threshold=1e-5)(problem(made))
    return jnp.asarray(cost.shape[0] * solved.matrix)


def marginal_error(transport: Float[Array, "*l n0 n1"]) -> Float[Array, "*l"]:
    """Computes how far sums of a map are from a transport's: 0 where Sinkhorn has converged.

    Args:
      transport: Maps as `transport_map` returns them.

    Returns:
      The largest share by which a row's sum differs from 1, or a column's from n0 / n1.
    """
    n0, n1 = transport.shape[-2:]
    rows, columns = jnp.sum(transport, axis=-1), jnp.sum(transport, axis=-2) * (n1 / n0)
    return jnp.max(jnp.abs(jnp.concatenate([rows, columns], axis=-1) - 1), axis=-1)


def residual_map(
    shortcut: Float[Array, "n0 n1"],
    branch: Float[Array, "n0 n1"],
    *,
    policy: str | float | Array = "mean",
    weights: tuple[Float[Array, " n1"], Float[Array, " n1"]] | None = None,
) -> Float[Array, "n0 n1"]:
    """Computes the map of a residual sum from those of its two parts.

    Args:
      shortcut: T_r, the map of what passes by a branch.
      branch: T_b, the map of what the branch adds.
      policy: "mean", (T_r + T_b) / 2; "residual", T_r; "branch", T_b; "identity"; "weighted_scalar"
        and "weighted_matrix", T_r w + T_b (1 - w), with w the share of the shortcut in the size of
        both parts, of all units together or of each unit of model 1; or w itself, a number or one
        for each unit.
      weights: Mean absolute activations of model 1 in the shortcut and in the branch, for the
        weighted policies. The public code reads activations that were standardised, by which the
        weights are near one half; here they are raw.

    Returns:
      The map of the sum.

    Raises:
      UserError: The policy is unknown, lacks its weights, or is "identity" where widths differ.
      ValueError: The maps are of other widths, or the share is a number outside of [0, 1].

    Source: Imfeld et al., arXiv:2310.05719; `resid_policy` of the public code, which calls
      "residual" only_resid and "branch" no_resid.
    """
    check_shapes(shortcut=(shortcut, "n0 n1"), branch=(branch, "n0 n1"))
    check_between(0, 1, policy=policy)
    if not isinstance(policy, str):
        return shortcut * policy + branch * (1 - policy)
    if policy not in RESIDUALS:
        raise unknown("policy", policy, RESIDUALS)
    if policy == "identity":
        if branch.shape[0] != branch.shape[1]:
            raise UserError(f"policy is 'identity' for maps {branch.shape}, expected equal widths")
        return jnp.eye(len(branch), dtype=branch.dtype)
    share = shortcut_share(policy, weights)
    return shortcut * share + branch * (1 - share)


def shortcut_share(policy: str, weights: tuple[Array, Array] | None = None) -> Array:
    """Computes the share w of the shortcut in `residual_map` under a policy but "identity".

    Args:
      policy: The policy.
      weights: Mean absolute activations in the shortcut and in the branch, units last.

    Returns:
      A number, or a share for each unit.

    Raises:
      UserError: The policy has no share, or lacks its weights.
    """
    fixed = {"mean": 0.5, "residual": 1.0, "branch": 0.0}
    if policy in fixed:
        return jnp.asarray(fixed[policy])
    if policy not in ("weighted_scalar", "weighted_matrix"):
        raise unknown("policy", policy, (*fixed, "weighted_scalar", "weighted_matrix"))
    if weights is None:
        raise UserError(f"policy is {policy!r} and weights are not given, expected those of both")
    first, second = weights
    if policy == "weighted_scalar":
        first, second = (jnp.mean(own, axis=-1, keepdims=True) for own in weights)
    return first / jnp.maximum(first + second, LEAST)


def width_map(transport: Float[Array, "*l n0 n1"]) -> WidthMap:
    """Makes of a transport what reads and what writes: rows sum to 1, or columns.

    A row-stochastic A lets AᵀK give the same output for a constant input; a column-stochastic B
    makes every unit of KB a mean of units. With n0 = n1 and rows that sum to 1 both are the
    transport. The public code takes the transport for both, whose columns sum to n0 / n1 where
    widths differ: outputs are then too large by this factor. Rows have other sums where a residual
    sum has shares by unit; what reads is divided by them here, not there. This split is ours.

    Args:
      transport: Maps of one space, or of each layer.

    Returns:
      Maps as `rml.models.map_width` takes them.
    """
    rows, columns = (jnp.sum(transport, axis=axis, keepdims=True) for axis in (-1, -2))
    return WidthMap(transport / jnp.maximum(rows, LEAST), transport / jnp.maximum(columns, LEAST))


def over_heads(
    costs: dict[str, Float[Array, "n0 n1"]], heads: tuple[int, int], *, solver: str, reg: ArrayLike
) -> dict[str, Float[Array, "n0 n1"]]:
    """Transports whole heads onto whole heads, and within each pair units onto units.

    Heads of two models are compared by what it costs to move their units, summed over all costs;
    the transport between heads is exact. Every head of model 1 so gets units of few heads of model
    0, and those of its queries, keys and values come from the same ones. This is ours: the paper
    lets units change heads.

    Args:
      costs: Costs of units side by side, such as those of queries, keys and values.
      heads: Number of heads of both models.
      solver: How units are transported within two heads.
      reg: Weight of the entropy there.

    Returns:
      A map for each cost.
    """
    h0, h1 = heads
    solve = jax.vmap(jax.vmap(lambda cost: transport_map(cost, solver=solver, reg=reg)))
    pairs = {
        name: cost.reshape(h0, cost.shape[0] // h0, h1, cost.shape[1] // h1).swapaxes(1, 2)
        for name, cost in costs.items()
    }
    within = {name: solve(cost) for name, cost in pairs.items()}
    moved = sum(jnp.mean(jnp.sum(within[name] * pairs[name], axis=-1), axis=-1) for name in costs)
    across = transport_map(jnp.asarray(moved), solver="exact")
    return {
        name: (across[:, :, None, None] * own).swapaxes(1, 2).reshape(costs[name].shape)
        for name, own in within.items()
    }


def _exact(cost: Float[Array, "n0 n1"]) -> Float[Array, "n0 n1"]:
    n0, n1 = cost.shape
    n = int(np.lcm(n0, n1))
    # The assignment would never end on NaN, which traced costs may hold.
    finite = jax.lax.stop_gradient(jnp.nan_to_num(cost))
    rows, columns = optax.assignment.hungarian_algorithm(
        jnp.repeat(jnp.repeat(finite, n // n0, axis=0), n // n1, axis=1)
    )
    plan = jnp.zeros((n0, n1), cost.dtype)
    return plan.at[rows // (n // n0), columns // (n // n1)].add(n0 / n)
