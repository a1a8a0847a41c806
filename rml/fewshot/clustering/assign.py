"""Nearest prototypes of all points and the sums over each cluster, in one pass over blocks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rml.ops.pairwise import dot_product, fold_blocks
from rml.training.mesh import BATCH_AXES


class Assigned(NamedTuple):
    """Points assigned to their nearest prototypes.

    Attributes:
      labels: The nearest prototype of each point, the lower index among equally near ones.
      distances: Squared Euclidean distances to them, measured by differences.
      offsets: Sum over the points of each cluster of their difference from the prototype.
      counts: Number of points of each cluster.
    """

    labels: Int[Array, " n"]
    distances: Float[Array, " n"]
    offsets: Float[Array, "k d"]
    counts: Float[Array, " k"]


def points_of_block(block: int | None, prototypes: int) -> int:
    """Returns the caller's points of a block, or as many as keep a tile of distances in cache.

    Larger tiles fill an accelerator, smaller ones stay in the second level of a CPU.
    """
    if block is not None:
        return block
    tile = 2**15 if jax.default_backend() == "cpu" else 2**24
    return min(16384, max(256, tile // prototypes))


def half_distances(
    points: Float[Array, "b d"], prototypes: Float[Array, "k d"]
) -> Float[Array, "k b"]:
    """Computes half the squared Euclidean distances, less a constant a point; points are columns.

    A column for a point rather than a row lets a reduction over the prototypes run along the
    vector lanes of a CPU.
    """
    # Distances do not depend on the origin; a far origin would cost digits.
    origin = jnp.mean(prototypes, axis=0)
    moved = prototypes - origin
    half = jnp.sum(moved * moved, axis=1)[:, None] / 2
    # Behind a barrier a product is one value, whoever reads it: it can be compared for equality.
    return half - jax.lax.optimization_barrier(dot_product(moved, points - origin))


def nearest(
    points: Float[Array, "b d"], prototypes: Float[Array, "k d"]
) -> tuple[Int[Array, " b"], Float[Array, "b d"]]:
    """Finds each point's nearest prototype, the lower among equals, and the difference from it."""
    scores = half_distances(points, prototypes)
    # Two minima are several times faster on a CPU than one argmin.
    index = jnp.arange(scores.shape[0], dtype=jnp.int32)[:, None]
    ties = jnp.where(scores == jnp.min(scores, axis=0), index, scores.shape[0])
    labels = jnp.min(ties, axis=0)
    return labels, points - prototypes[labels]


def assign(
    x: Float[Array, "n d"],
    prototypes: Float[Array, "k d"],
    *,
    block: int | None = None,
    axis_name: Any = None,
) -> Assigned:
    """Assigns all points to their nearest prototypes and sums up each cluster in the same pass.

    Args:
      x: The points.
      prototypes: The prototypes.
      block: Points handled at a time; intermediates hold k * block numbers. Automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axes over which the points are sharded; the
        offsets and counts are then those of all shards.

    Returns:
      Labels, distances, offsets and counts.
    """
    n, (k, d) = x.shape[0], prototypes.shape
    dtype = prototypes.dtype

    def step(
        carry: Assigned, points: Array, index: Int[Array, " b"], new: Bool[Array, " b"]
    ) -> Assigned:
        points = points.astype(dtype)
        labels, difference = nearest(points, prototypes)
        # A product with ones is faster on a CPU than a sum over the features.
        distances = dot_product(difference**2, jnp.ones((1, d), dtype))[:, 0]
        owner = jnp.where(new, labels, k)  # a point seen before is dropped
        return Assigned(
            jax.lax.dynamic_update_slice_in_dim(carry.labels, labels, index[0], 0),
            jax.lax.dynamic_update_slice_in_dim(carry.distances, distances, index[0], 0),
            carry.offsets + jax.ops.segment_sum(difference, owner, k),
            carry.counts + jax.ops.segment_sum(jnp.ones_like(distances), owner, k),
        )

    init = Assigned(
        jnp.zeros(n, jnp.int32), jnp.zeros(n, dtype), jnp.zeros((k, d), dtype), jnp.zeros(k, dtype)
    )
    if axis_name is not None:  # what a device finds in its shard is its own until it is summed
        init = jax.tree.map(lambda a: jax.lax.pcast(a, axis_name, to="varying"), init)
    found = fold_blocks(step, init, x, block=points_of_block(block, k))
    return found._replace(
        offsets=total(found.offsets, axis_name), counts=total(found.counts, axis_name)
    )


def total(values: Array, axis_name: Any) -> Array:
    """Sums over the shards, or returns the values themselves where nothing is sharded."""
    return values if axis_name is None else jax.lax.psum(values, axis_name)


ROWS: Any = PartitionSpec(BATCH_AXES)
WHOLE: Any = PartitionSpec()


def over_rows(function: Callable, mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable:
    """Maps a function over each device's own points under a mesh; returns it without one."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
