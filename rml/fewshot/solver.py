"""The optimiser of regularised clustering: assignments and prototypes in turn.

With assignments Z, prototypes M, affinities w, an entropy barrier T and support rows held at their
labels,

    E(Z, M) = Σ_p z_p · a_p(M) + T Σ_p z_p · log z_p - (λ / 2) Σ_pq w_pq z_p · z_q,

where a_pk is |x_p - m_k|² (K-means), 1 - cos(x_p, m_k) (spherical K-means), or minus the Gaussian
kernel exp(-|x_p - m_k|² / 2σ²) (K-modes). `rml.fewshot.bound` says why E falls.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.errors import unknown
from rml.fewshot.bound import Scalar, assign, bound_updates, energy, step_size
from rml.fewshot.gram import Distance, gaussian, inner_products
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_between, check_indices, check_shapes
from rml.ops.similarity import normalize, wide

Prototype = Literal["mean", "mode"]


class Solution(NamedTuple):
    """Where the optimiser stopped.

    Attributes:
      assignments: Z, rows on the simplex.
      prototypes: M; unit vectors for the cosine.
      energies: E after the first assignment and after every later round of prototypes and
        assignments; the last one repeated once the criterion is met.
      iterations: Rounds used.
    """

    assignments: Float[Array, "n c"]
    prototypes: Float[Array, "c d"]
    energies: Float[Array, " r"]
    iterations: Int[Array, ""]


@full_precision
def solve(
    x: Float[Array, "n d"],
    prototypes: Float[Array, "c d"],
    *,
    support_labels: Int[Array, " s"] | None = None,
    affinity: Float[Array, "n n"] | None = None,
    laplacian_weight: Scalar = 0.0,
    temperature: Scalar = 0.1,
    prototype: Prototype = "mean",
    distance: Distance = "squared_euclidean",
    bandwidth: Scalar | None = None,
    hard: bool = False,
    damped: bool = True,
    steps: int = 20,
    inner_steps: int = 20,
    tolerance: float = 1e-5,
    inner_tolerance: float = 1e-4,
) -> Solution:
    """Minimises the regularised clustering energy by block-coordinate bound optimisation.

    In turn: all assignments, by independent closed-form updates until they stay; then all
    prototypes; until the energy stays. Prototypes are kept as combinations of the rows, so that
    after one Gram matrix a round does not depend on d. A cluster left without weight keeps its
    prototype.

    Args:
      x: Points, the support first.
      prototypes: Where the prototypes start.
      support_labels: Clusters of the first s points, which are held there.
      affinity: W, symmetric for E to fall; column p says by whom p is pulled.
      laplacian_weight: λ.
      temperature: T.
      prototype: "mean", or "mode" for K-modes.
      distance: "squared_euclidean" or "cosine".
      bandwidth: σ of the K-modes kernel, there required.
      hard: Assign every point to one cluster, the limit T = 0; E falls if W has no negative
        eigenvalue.
      damped: Shorten steps where E might rise otherwise, see `rml.fewshot.bound`; the papers'
        code does not.
      steps: The most rounds.
      inner_steps: The most assignment updates in a round.
      tolerance: Stop when a round changes E by less, relatively; hard assignments stop when none
        changes.
      inner_tolerance: Assignments stay when none changes by more.

    Returns:
      Assignments, prototypes, energies and rounds used.

    Raises:
      UserError: If `prototype` or `distance` is unknown.
      ValueError: If shapes do not fit, there are more clusters than points, K-modes lacks its
        bandwidth, `bandwidth` is not above 0, `temperature` is not above 0 and assignments are not
        hard, `laplacian_weight` of a given `affinity`, `steps` or `inner_steps` is below 0, or,
        outside `jit`, a label of the support is no cluster.

    Source: Ziko et al., arXiv:2106.09516, with the Laplacian K-modes model of arXiv:1810.13044,
      eq. 1, whose modes are moved by mean-shift steps, each of which lowers E.
    """
    if prototype not in ("mean", "mode"):
        raise unknown("prototype", prototype, ("mean", "mode"))
    if distance not in ("squared_euclidean", "cosine"):
        raise unknown("distance", distance, ("squared_euclidean", "cosine"))
    if prototype == "mode" and bandwidth is None:
        raise ValueError("bandwidth must be given for prototype='mode', got None")
    check_shapes(x=(x, "n d"), prototypes=(prototypes, "c d"), affinity=(affinity, "n n"))
    x, prototypes = wide(x, prototypes)
    n, c = x.shape[0], prototypes.shape[0]
    if c > n:
        raise ValueError(f"{c} clusters need at least as many points, got {n}")
    if support_labels is not None:
        check_indices("support_labels", support_labels, c)
    cosine = distance == "cosine"
    # Distances do not depend on the origin; angles do.
    origin = jnp.zeros_like(x[0]) if cosine else jnp.mean(x, axis=0)
    rows = jnp.concatenate([x, prototypes]) - origin
    rows = normalize(rows) if cosine else rows
    end = solve_gram(
        inner_products(rows, rows),
        jnp.eye(n + c, dtype=x.dtype)[n:],
        points=n,
        support_labels=support_labels,
        affinity=affinity,
        laplacian_weight=laplacian_weight,
        temperature=temperature,
        prototype=prototype,
        cosine=cosine,
        bandwidth=bandwidth,
        hard=hard,
        damped=damped,
        steps=steps,
        inner_steps=inner_steps,
        tolerance=tolerance,
        inner_tolerance=inner_tolerance,
    )
    found = end.mix @ rows + origin
    found = normalize(found) if cosine else found
    return Solution(end.assignments.T, found, end.energies, end.iterations)


class Mixtures(NamedTuple):
    """A solution in which prototypes are combinations of rows: clusters by points, and rounds."""

    assignments: Float[Array, "c n"]
    mix: Float[Array, "c r"]
    energies: Float[Array, " e"]
    iterations: Int[Array, ""]


def solve_gram(
    products: Float[Array, "r r"],
    mix: Float[Array, "c r"],
    *,
    points: int,
    support_labels: Int[Array, " s"] | None,
    affinity: Float[Array, "n n"] | None = None,
    laplacian_weight: Scalar = 0.0,
    temperature: Scalar = 0.1,
    prototype: Prototype = "mean",
    cosine: bool = False,
    bandwidth: Scalar | None = None,
    hard: bool = False,
    damped: bool = True,
    steps: int = 20,
    inner_steps: int = 20,
    tolerance: float = 1e-5,
    inner_tolerance: float = 1e-4,
) -> Mixtures:
    """Solves as `solve` does, from inner products of rows; the first `points` are clustered.

    The prototypes start as the combinations `mix`; with `cosine` rows have unit length.
    """
    if prototype not in ("mean", "mode"):
        raise unknown("prototype", prototype, ("mean", "mode"))
    check_above_0(bandwidth=bandwidth)
    check_between(0, steps=steps, inner_steps=inner_steps)
    c, rest = mix.shape[0], mix.shape[1] - points
    kind, squares = products.dtype, jnp.diagonal(products)[:points]
    width = 1.0 if bandwidth is None else bandwidth

    def distances(mix: Array) -> Array:
        cross = mix @ products
        lengths = jnp.sum(mix * cross, axis=1, keepdims=True)
        if cosine:
            return 2 - 2 * cross[:, :points] * jax.lax.rsqrt(jnp.maximum(lengths, 1e-24))
        return jnp.maximum(squares - 2 * cross[:, :points] + lengths, 0)

    def unary(d2: Array) -> Array:
        if prototype == "mode":
            return -gaussian(d2, width)
        return d2 / 2 if cosine else d2

    fixed, held = jnp.zeros(points, bool), jnp.zeros((c, points), kind)
    if support_labels is not None:
        s = support_labels.shape[0]
        fixed = fixed.at[:s].set(True)
        held = held.at[:, :s].set(jax.nn.one_hot(support_labels, c, dtype=kind, axis=0))
    weights: dict[str, Any] = dict(laplacian_weight=laplacian_weight, temperature=temperature)
    step = jnp.ones((), kind)
    if affinity is not None and damped and not hard:
        step = step_size(affinity, **weights)

    def settle(z: Array, cost: Array) -> tuple[Array, Array]:
        """Assignments that lower E for these prototypes as far as it goes, and E."""
        if affinity is None:
            z = jnp.where(fixed, held, assign(-cost, temperature, hard=hard))
        else:
            z, _ = bound_updates(
                z, cost, affinity, **weights, fixed=fixed, step=step, hard=hard,
                steps=inner_steps, tolerance=inner_tolerance,
            )  # fmt: skip
        return z, energy(z, cost, affinity, **weights, hard=hard)

    def round_(state: tuple[Mixtures, Array, Array]) -> tuple[Mixtures, Array, Array]:
        (z, mix, energies, count), d2, _ = state
        weight = z * gaussian(d2, width) if prototype == "mode" else z
        total = jnp.sum(weight, axis=1, keepdims=True)
        moved = jnp.pad(weight / jnp.where(total > 0, total, 1), ((0, 0), (0, rest)))
        mix = jnp.where(total > 0, moved, mix)
        d2 = distances(mix)
        new, value = settle(z, unary(d2))
        if hard:
            done = jnp.all(new == z)
        else:
            done = jnp.abs(value - energies[-1]) <= tolerance * jnp.abs(value)
        energies = jnp.where(jnp.arange(steps + 1) > count, value, energies)
        return Mixtures(new, mix, energies, count + 1), d2, done

    d2 = distances(mix)
    z = jnp.where(fixed, held, assign(-unary(d2), temperature, hard=hard))
    z, value = settle(z, unary(d2))
    first = Mixtures(z, mix, jnp.full(steps + 1, value), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(
        lambda state: ~state[2] & (state[0].iterations < steps),
        round_,
        (first, d2, jnp.zeros((), bool)),
    )[0]
