"""K-means by Lloyd's iteration: hard assignments, no Laplacian term."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.fewshot.clustering.assign import Assigned, assign, total


class Solution(NamedTuple):
    """What an optimiser returns; `Clustering` says what the fields hold."""

    clusters: Int[Array, "n s"]
    memberships: Float[Array, "n s"]
    prototypes: Float[Array, "k d"]
    energies: Float[Array, " t"]
    iterations: Int[Array, ""]
    inertia: Float[Array, ""]


def lloyd(
    x: Float[Array, "n d"],
    prototypes: Float[Array, "k d"],
    *,
    max_iterations: int,
    tolerance: float,
    reseed: bool,
    block: int | None,
    spherical: bool = False,
    axis_name: Any = None,
) -> Solution:
    """Runs Lloyd's iteration until no label changes or the prototypes stand still.

    Args:
      x: The points.
      prototypes: The first prototypes.
      max_iterations: Iterations at most.
      tolerance: The iteration stops when the squared movement of all prototypes together is at
        most this times the mean variance of a feature.
      reseed: Give an empty cluster the farthest point; otherwise its prototype stays.
      block: Points handled at a time.
      spherical: Bring prototypes to unit length, as the points are.
      axis_name: Inside `jax.shard_map`, the mesh axes over which the points are sharded.

    Returns:
      The solution, its labels the nearest of the returned prototypes.
    """
    limit = tolerance * _mean_variance(x, axis_name) if tolerance else 0.0

    def unfinished(state: tuple) -> Array:
        iteration, *_, done = state
        return (iteration < max_iterations) & ~done

    def step(state: tuple) -> tuple:
        iteration, old, labels, energies, _ = state
        found = assign(x, old, block=block, axis_name=axis_name)
        energy = total(jnp.sum(found.distances), axis_name)
        same = total(jnp.sum(found.labels != labels), axis_name) == 0
        if reseed:
            found = jax.lax.cond(
                jnp.any(found.counts == 0),
                lambda found: _reseed(x, old, found, axis_name),
                lambda found: found,
                found,
            )
        new = means(found.offsets, found.counts, old, spherical=spherical)
        done = same | (jnp.sum((new - old) ** 2) <= limit)
        return iteration + 1, new, found.labels, energies.at[iteration].set(energy), done

    none = jnp.full(x.shape[0], -1, jnp.int32)
    if axis_name is not None:
        none = jax.lax.pcast(none, axis_name, to="varying")
    energies = jnp.full(max_iterations, jnp.nan, prototypes.dtype)
    start = (jnp.asarray(0), prototypes, none, energies, jnp.asarray(False))
    iterations, prototypes, _, energies, _ = jax.lax.while_loop(unfinished, step, start)
    last = assign(x, prototypes, block=block, axis_name=axis_name)
    inertia = total(jnp.sum(last.distances), axis_name)
    ones = jnp.ones_like(last.distances)[:, None]
    return Solution(last.labels[:, None], ones, prototypes, energies, iterations, inertia)


def means(offsets: Array, counts: Array, old: Array, *, spherical: bool = False) -> Array:
    """Averages each cluster, to unit length if `spherical`; an empty one keeps its prototype.

    It is a step from the old prototype: one that stands on equal points stays there exactly.
    """
    new = old + offsets / jnp.where(counts > 0, counts, 1)[:, None]
    if not spherical:
        return new
    # Points that cancel out leave no direction: any does as well, the old one included.
    length = jnp.linalg.norm(new, axis=1, keepdims=True)
    clear = (counts[:, None] > 0) & (length > jnp.finfo(new.dtype).eps)
    return jnp.where(clear, new / jnp.where(clear, length, 1), old)


def _mean_variance(x: Array, axis_name: Any) -> Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    number = total(jnp.asarray(x.shape[0], x.dtype), axis_name)
    mean = total(jnp.sum(x, axis=0), axis_name) / number
    return jnp.mean(total(jnp.sum((x - mean) ** 2, axis=0), axis_name) / number)


def _reseed(x: Array, prototypes: Array, found: Assigned, axis_name: Any) -> Assigned:
    """Moves the farthest points, one each, from their clusters to the empty ones.

    Both in order, the lower row first among equally far ones. A point on its prototype stays, so
    with fewer distinct points than clusters some remain empty. The energy cannot rise: a moved
    point costs nothing, and every prototype becomes the mean of its points.
    """
    k = found.counts.shape[0]
    far, row = jax.lax.top_k(found.distances, min(k, x.shape[0]))
    moved = far, x[row].astype(prototypes.dtype), found.labels[row]
    if axis_name is not None:
        moved = jax.tree.map(lambda a: _gather(a, axis_name), moved)
        far, place = jax.lax.top_k(moved[0], min(k, moved[0].shape[0]))
        moved = jax.tree.map(lambda a: a[place], moved)
    far, points, source = moved
    target = jnp.nonzero(found.counts == 0, size=far.shape[0], fill_value=k)[0]
    target = jnp.where(far > 0, target, k)
    source = jnp.where(target < k, source, k)  # k is no cluster: dropped

    def shifted(values: Array, arriving: Array, leaving: Array) -> Array:
        arriving = jax.ops.segment_sum(arriving, target, k)
        return values + arriving - jax.ops.segment_sum(leaving, source, k)

    ones = jnp.ones_like(far)
    to, of = (points - prototypes[jnp.minimum(i, k - 1)] for i in (target, source))
    counts = shifted(found.counts, ones, ones)
    offsets = shifted(found.offsets, to, of)
    # What rounding leaves of a cluster without points would move its prototype.
    offsets = jnp.where(counts[:, None] > 0, offsets, 0)
    return found._replace(offsets=offsets, counts=counts)


def _gather(values: Array, axis_name: Any) -> Array:
    """All shards' rows; by a sum, so that they are known to be the same on every device."""
    size, here = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    whole = jnp.zeros((size, *values.shape), values.dtype).at[here].set(values)
    return jax.lax.psum(whole, axis_name).reshape(-1, *values.shape[1:])
