"""The bound optimiser with s clusters for each point: soft assignments and a Laplacian term.

With assignments z on the simplex, prototypes c and a symmetric affinity w, the energy is

  E(z, c) = Σ_p Σ_k z_pk |x_p - c_k|² + τ Σ_p Σ_k z_pk log z_pk + λ/2 Σ_p Σ_q w_pq (1 - z_p·z_q).

Where w is positive semidefinite the last term is concave in z, so its tangent bounds it from
above, and the bound splits into one problem for each point, whose solution on the whole simplex
is softmax((λ Σ_q w_pq z_q - |x_p - c|²) / τ). A million points with a thousand clusters cannot
store that. Here a point may have s clusters: the solution among all such assignments is the
softmax over the s largest arguments, so the energy still never increases; s = k is the dense
optimiser, s = 1 the hard one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.fewshot.clustering.assign import half_distances, points_of_block, total
from rml.fewshot.clustering.lloyd import Solution, means
from rml.ops.neighbors import NeighborGraph
from rml.ops.pairwise import fold_blocks


class Memberships(NamedTuple):
    """Sparse assignments: each point's clusters, largest membership first, summing to 1."""

    clusters: Int[Array, "n s"]
    values: Float[Array, "n s"]


def sparse_bound(
    x: Float[Array, "n d"],
    prototypes: Float[Array, "k d"],
    graph: NeighborGraph | None,
    *,
    laplacian_weight: float | Array,
    temperature: float | Array,
    support: int,
    assignment_updates: int,
    max_iterations: int,
    tolerance: float,
    block: int | None,
    spherical: bool = False,
    axis_name: Any = None,
) -> Solution:
    """Alternates assignment updates with prototype updates until the energy stands still.

    Args:
      x: The points.
      prototypes: The first prototypes.
      graph: Affinities w; none where λ is 0. Its indices are those of all points.
      laplacian_weight: λ.
      temperature: τ; with 0 and `support` 1 the assignments are hard.
      support: Clusters s of each point.
      assignment_updates: Updates of all assignments, each from those before, in an iteration.
      max_iterations: Iterations at most.
      tolerance: The iteration stops when the energy falls by at most this share of itself.
      block: Points handled at a time; intermediates hold k * block numbers, and of soft
        assignments support * block * d.
      spherical: Bring prototypes to unit length, as the points are.
      axis_name: Inside `jax.shard_map`, the mesh axes over which points and graph are sharded.

    Returns:
      The solution; its energies are those after the assignment updates of each iteration.
    """
    n, (k, d) = x.shape[0], prototypes.shape
    dtype = prototypes.dtype
    tau = jnp.asarray(temperature, dtype)
    block = points_of_block(block, k)
    size = min(block, n)

    def rows_of(values: Any, index: Array) -> Any:
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, index[0], size), values)

    def everyones(members: Memberships) -> Memberships:
        if axis_name is None:
            return members
        return jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, tiled=True), members)

    def varying(values: Any) -> Any:
        if axis_name is None:
            return values
        return jax.tree.map(lambda a: jax.lax.pcast(a, axis_name, to="varying"), values)

    def update(members: Memberships, prototypes: Array, weight: Array) -> Memberships:
        whole = everyones(members)

        def step(new: Memberships, points: Array, index: Array, _: Array) -> Memberships:
            scores = -2 * half_distances(points.astype(dtype), prototypes).T
            if graph is not None:
                near = rows_of(graph, index)
                pull = weight * near.weights[..., None] * whole.values[near.indices]
                row = jnp.arange(size)[:, None, None]
                scores = scores.at[row, whole.clusters[near.indices]].add(pull)
            top, clusters = jax.lax.top_k(scores, support)
            soft = jax.nn.softmax(top / jnp.where(tau > 0, tau, 1), axis=1)
            hard = jnp.zeros_like(top).at[:, 0].set(1)
            part = Memberships(clusters, jnp.where(tau > 0, soft, hard))
            return jax.tree.map(
                lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, index[0], 0), new, part
            )

        return fold_blocks(step, members, x, block=block)

    def measure(members: Memberships, prototypes: Array) -> tuple[Array, Array, Array, Array]:
        """The energy, the inertia and each cluster's weighted offset and number of points."""
        whole = everyones(members)

        def step(carry: tuple, points: Array, index: Array, new: Array) -> tuple:
            energy, inertia, offsets, counts = carry
            clusters, z = rows_of(members, index)
            points = points.astype(dtype)
            difference = points[:, None] - prototypes[clusters]
            far = jnp.sum(difference**2, axis=2)
            cost = jnp.sum(z * far + tau * jax.scipy.special.xlogy(z, z), axis=1)
            if graph is not None:
                near = rows_of(graph, index)
                theirs, values = whole.clusters[near.indices], whole.values[near.indices]
                same = clusters[:, None, :, None] == theirs[:, :, None, :]
                agree = jnp.sum(same * z[:, None, :, None] * values[:, :, None, :], axis=(2, 3))
                cost += laplacian_weight / 2 * jnp.sum(near.weights * (1 - agree), axis=1)
            z = jnp.where(new[:, None], z, 0)
            owner = clusters.reshape(-1)
            shares = (z[:, :, None] * difference).reshape(-1, d)
            return (
                energy + jnp.sum(jnp.where(new, cost, 0)),
                inertia + jnp.sum(jnp.where(new, far[:, 0], 0)),
                offsets + jax.ops.segment_sum(shares, owner, k),
                counts + jax.ops.segment_sum(z.reshape(-1), owner, k),
            )

        zero = jnp.zeros((), dtype)
        init = varying((zero, zero, jnp.zeros((k, d), dtype), jnp.zeros(k, dtype)))
        found = fold_blocks(step, init, x, block=block)
        return jax.tree.map(lambda a: total(a, axis_name), found)

    def unfinished(state: tuple) -> Array:
        iteration, *_, done = state
        return (iteration < max_iterations) & ~done

    def iterate(state: tuple) -> tuple:
        iteration, prototypes, members, energies, before, _ = state
        # Nobody has neighbours at first: all memberships are 0.
        members = jax.lax.fori_loop(
            0, assignment_updates, lambda _, z: update(z, prototypes, weight), members
        )
        energy, _, offsets, counts = measure(members, prototypes)
        done = before - energy <= tolerance * jnp.abs(energy)
        prototypes = means(offsets, counts, prototypes, spherical=spherical)
        return iteration + 1, prototypes, members, energies.at[iteration].set(energy), energy, done

    weight = jnp.asarray(laplacian_weight, dtype)
    nobody = varying(
        Memberships(jnp.zeros((n, support), jnp.int32), jnp.zeros((n, support), dtype))
    )
    energies = jnp.full(max_iterations, jnp.nan, dtype)
    infinite = jnp.asarray(jnp.inf, dtype)
    start = (jnp.asarray(0), prototypes, nobody, energies, infinite, jnp.asarray(False))
    iterations, prototypes, members, energies, *_ = jax.lax.while_loop(unfinished, iterate, start)
    inertia = measure(members, prototypes)[1]
    return Solution(members.clusters, members.values, prototypes, energies, iterations, inertia)
