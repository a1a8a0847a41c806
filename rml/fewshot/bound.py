"""The inner loop of Laplacian-regularised assignment: independent softmax updates of all points.

The assignments Z, rows on the simplex, minimise the concave-convex energy

    E(Z) = Σ_p z_p · a_p + T Σ_p z_p · log z_p - (λ / 2) Σ_pq w_pq z_p · z_q

of unary costs a, affinities w and entropy barrier T. On the corners of the simplex the last term
is, up to a constant, the Laplacian term (λ / 4) Σ_pq w_pq |z_p - z_q|². Replacing it by its
tangent at the present Z, b_p = Σ_q w_pq z_q, leaves one problem a point, solved by

    z_p = softmax((-a_p + λ b_p) / T).

Where W is positive semi-definite the last term is concave, the tangent bounds it, and E falls: the
papers' theorem. Kernel matrices meet this, a kNN graph (zero diagonal) does not. For a symmetric W
with lowest eigenvalue μ < 0, a step of length η towards the softmax, D away, lowers E by at least
η |D|² (T + λ μ η / 2), because the barrier is strongly convex (Pinsker's inequality): a step
η ≤ 2 T / (λ |μ|) suffices, and has the same fixed points. That is ours; with Gershgorin's bound
for μ it costs nothing, and it is 1, the papers' update, unless T is small against λ times degrees.

Arrays are clusters by points, which a CPU sums over faster than points by clusters. The published
updates carry λ b_p where their energy has -λ Σ w z_p · z_q, whose gradient is twice that: what they
descend is E as written here.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rml.ops.shapes import check_above_0, check_between

Scalar = float | Float[Array, ""]


def in_type(dtype: DTypeLike, *numbers: Scalar) -> tuple[Scalar, ...]:
    """Brings arrays to the type of a loop, which they must not widen; Python's floats have none."""
    return tuple(jnp.asarray(n, dtype) if hasattr(n, "dtype") else n for n in numbers)


def assign(
    logits: Float[Array, "c n"], temperature: Scalar, *, hard: bool = False
) -> Float[Array, "c n"]:
    """Assigns every point in closed form: by a softmax, or its limit at temperature zero."""
    if hard:
        return jax.nn.one_hot(
            jnp.argmax(logits, axis=0), logits.shape[0], dtype=logits.dtype, axis=0
        )
    return tempered_softmax(logits, temperature, axis=0)


def tempered_softmax(
    logits: Float[Array, "*shape"], temperature: Scalar, *, axis: int
) -> Float[Array, "*shape"]:
    """Computes softmax(logits / temperature), also for logits so large that rounding passes 1.

    A compiler may divide with more digits where the largest is subtracted than where it is found:
    of logits of 1e10 the exponential of the difference is then infinite.

    Raises:
      ValueError: If the temperature is not above 0.
    """
    check_above_0(temperature=temperature)
    (temperature,) = in_type(logits.dtype, temperature)
    below = logits - jax.lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True))
    weights = jnp.exp(jnp.where(below > 0, 0, below) / temperature)
    return weights / jnp.sum(weights, axis=axis, keepdims=True)


def energy(
    assignments: Float[Array, "c n"],
    unary: Float[Array, "c n"],
    affinity: Float[Array, "n n"] | None,
    *,
    laplacian_weight: Scalar,
    temperature: Scalar,
    hard: bool = False,
) -> Float[Array, ""]:
    """Computes the energy E of the module's docstring; `hard` leaves the barrier out.

    Args:
      assignments: Z.
      unary: Costs a.
      affinity: W, or None where there is no graph.
      laplacian_weight: λ.
      temperature: T.
      hard: Assignments are to one cluster each.

    Returns:
      The energy.
    """
    total = unary
    if not hard:
        # 0 log 0 is 0.
        total = total + temperature * jnp.log(jnp.maximum(assignments, 1e-30))
    if affinity is not None:
        total = total - laplacian_weight / 2 * (assignments @ affinity)
    return jnp.sum(assignments * total)


def step_size(
    affinity: Float[Array, "n n"], *, laplacian_weight: Scalar, temperature: Scalar
) -> Float[Array, ""]:
    """Finds the longest step, at most 1, at which any symmetric graph's energy provably falls."""
    diagonal = jnp.diagonal(affinity)
    lowest = jnp.min(diagonal + jnp.abs(diagonal) - jnp.sum(jnp.abs(affinity), axis=0))
    reach = jnp.maximum(-lowest * laplacian_weight, 1e-30)
    return jnp.minimum(1.0, 2 * temperature / reach).astype(affinity.dtype)


def bound_updates(
    assignments: Float[Array, "c n"],
    unary: Float[Array, "c n"],
    affinity: Float[Array, "n n"],
    *,
    laplacian_weight: Scalar,
    temperature: Scalar = 1.0,
    fixed: Bool[Array, " n"] | None = None,
    step: Scalar = 1.0,
    hard: bool = False,
    steps: int = 20,
    tolerance: float = 1e-4,
) -> tuple[Float[Array, "c n"], Int[Array, ""]]:
    """Updates all assignments at once, again and again, until they stay.

    Args:
      assignments: Where to start, columns on the simplex.
      unary: Cost of each point in each cluster.
      affinity: W; column p says by whom p is pulled.
      laplacian_weight: λ.
      temperature: T, of the entropy barrier.
      fixed: Points whose assignments stay, such as the support.
      step: η, from `step_size`; 1 is the papers' update.
      hard: The limit at temperature zero.
      steps: The most updates.
      tolerance: Stop when no assignment changes by more.

    Returns:
      The assignments, and the number of updates.

    Raises:
      ValueError: If `temperature` is not above 0 and assignments are not hard, or
        `laplacian_weight` or `steps` is below 0.
    """
    check_between(0, laplacian_weight=laplacian_weight, steps=steps)
    laplacian_weight, temperature, step = in_type(
        assignments.dtype, laplacian_weight, temperature, step
    )

    def unsettled(state: tuple[Array, Array, Array]) -> Array:
        _, change, count = state
        return (change > tolerance) & (count < steps)

    def update(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        z, _, count = state
        target = assign(laplacian_weight * (z @ affinity) - unary, temperature, hard=hard)
        if fixed is not None:
            target = jnp.where(fixed, z, target)
        new = z + step * (target - z)
        return new, jnp.max(jnp.abs(new - z)), count + 1

    start = assignments, jnp.full((), jnp.inf, assignments.dtype), jnp.zeros((), jnp.int32)
    assignments, _, count = jax.lax.while_loop(unsettled, update, start)
    return assignments, count
