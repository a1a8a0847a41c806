"""First prototypes for K-means: random points, k-means++ and k-means||."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, Key

from rml.fewshot.clustering.assign import ROWS, WHOLE, assign, over_rows
from rml.ops.shapes import check_above_0, check_between
from rml.training.mesh import BATCH_AXES


def random_rows(
    x: Float[Array, "n d"], *, num_clusters: int, key: Key[Array, ""]
) -> Float[Array, "k d"]:
    """Draws distinct rows uniformly.

    Args:
      x: The points.
      num_clusters: Number of rows k, at most n.
      key: Key of the draw.

    Returns:
      The rows; two are equal only where the points are.
    """
    return x[jax.random.choice(key, x.shape[0], (num_clusters,), replace=False)]


def _draw(key: Array, mass: Array, number: int) -> Int[Array, " m"]:
    """Rows drawn with probability proportional to their mass, which are not all zero.

    First a block of rows, then a row in it: no sum over so many rows that float32 loses them, and
    no random number for each of them.
    """
    width = min(1024, mass.shape[0])
    blocks = jnp.pad(mass, (0, -mass.shape[0] % width)).reshape(-1, width)
    first, second = jax.random.split(key)
    block = jax.random.categorical(first, jnp.log(jnp.sum(blocks, axis=1)), shape=(number,))
    return block * width + jax.random.categorical(second, jnp.log(blocks[block]), axis=-1)


@partial(jax.jit, static_argnames=("num_clusters", "trials"))
def kmeans_plus_plus(
    x: Float[Array, "n d"],
    *,
    num_clusters: int,
    key: Key[Array, ""],
    weights: Float[Array, " n"] | None = None,
    trials: int = 1,
) -> Float[Array, "k d"]:
    """Draws rows one after another, each with probability proportional to its squared distance.

    The distance is that to the nearest row drawn before. Where all of them are zero (fewer
    distinct points than prototypes) a row is drawn as the first one is, and repeats another.

    Args:
      x: The points.
      num_clusters: Number of rows k.
      key: Key of the draws.
      weights: Weight of each point, which multiplies its probability; equal by default.
      trials: Candidates drawn for each prototype, of which that stays which leaves the least
        weighted sum of squared distances (greedy k-means++).

    Returns:
      The rows.

    Raises:
      ValueError: If `num_clusters` or `trials` is below 1.

    Source: Arthur and Vassilvitskii 2007, k-means++; the greedy form is that of
      `sklearn.cluster.kmeans_plusplus`, whose number of trials is 2 + log k.
    """
    check_between(1, num_clusters=num_clusters, trials=trials)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    mass = jnp.ones(x.shape[0], dtype) if weights is None else weights.astype(dtype)

    def distances(row: Array) -> Array:
        return jnp.sum((x.astype(dtype) - x[row].astype(dtype)) ** 2, axis=1)

    def step(least: Array, key: Array) -> tuple[Array, Array]:
        probability = mass * least
        rows = _draw(key, jnp.where(jnp.any(probability > 0), probability, mass), trials)
        if trials == 1:
            return jnp.minimum(least, distances(rows[0])), rows[0]
        after = jnp.minimum(least, jax.vmap(distances)(rows))
        best = jnp.argmin(after @ mass)
        return after[best], rows[best]

    keys = jax.random.split(key, num_clusters)
    first = _draw(keys[0], mass, 1)
    rows = jax.lax.scan(step, distances(first[0]), keys[1:])[1]
    return x[jnp.concatenate([first, rows])]


@partial(jax.jit, static_argnames=("num_clusters", "rounds", "oversampling", "block", "mesh"))
def kmeans_parallel(
    x: Float[Array, "n d"],
    *,
    num_clusters: int,
    key: Key[Array, ""],
    rounds: int = 5,
    oversampling: float = 2.0,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "k d"]:
    """Draws many rows in a few rounds and reduces them to k by weighted k-means++.

    In each round every point is drawn independently with probability min(1, l d² / φ), where d
    is its distance to the nearest row drawn before, φ the sum of d² and l = `oversampling` * k.
    Each drawn row weighs as many points as are nearest to it.

    The shape is fixed: a round holds l + 6 √l rows, six standard deviations more than are drawn
    on average at most, and the rows beyond are left out.

    Args:
      x: The points.
      num_clusters: Number of prototypes k.
      key: Key of the draws.
      rounds: Rounds.
      oversampling: Expected rows of a round, in multiples of k.
      block: Points handled at a time, automatic by default.
      mesh: Mesh over whose batch axes the points are sharded.

    Returns:
      The prototypes, which are rows.

    Raises:
      ValueError: If `num_clusters` or `rounds` is below 1, or `oversampling` is not above 0.

    Source: Bahmani et al. 2012, Scalable k-means++, algorithm 2; five rounds and l = 2k are our
      defaults.
    """
    check_between(1, num_clusters=num_clusters, rounds=rounds)
    check_above_0(oversampling=oversampling)
    n = x.shape[0]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    expected = oversampling * num_clusters
    size = min(n, math.ceil(expected + 6 * math.sqrt(expected)))

    def everywhere(values: Array) -> Array:
        if mesh is None:
            return values
        return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, WHOLE))

    def measure(x: Array, rows: Array) -> tuple[Array, Array]:
        axes = None if mesh is None else BATCH_AXES
        found = assign(x, rows, block=block, axis_name=axes)
        return found.labels, found.distances

    nearest = over_rows(measure, mesh, (ROWS, WHOLE), (ROWS, ROWS))

    def round_(carry: tuple, key: Array) -> tuple[tuple, Array]:
        least, owner, first = carry
        chance = expected * least / jnp.maximum(jnp.sum(least), jnp.finfo(dtype).tiny)
        drawn = jax.random.uniform(key, (n,), dtype) < chance
        # A running count over a sharded axis would cost the square of its length.
        row = jnp.nonzero(everywhere(drawn), size=size, fill_value=n)[0]
        # A place without a row repeats the first row of all and owns no point: to those of the
        # first row it is nearer by rounding alone.
        index, distance = nearest(x, x[jnp.where(row < n, row, start[0])].astype(dtype))
        closer = (distance < least) & (row[index] < n)
        carry = (
            jnp.where(closer, distance, least),
            jnp.where(closer, first + index, owner),
            first + size,
        )
        return carry, row

    keys = jax.random.split(key, rounds + 2)
    start = jax.random.randint(keys[0], (1,), 0, n)
    least = jnp.sum((x.astype(dtype) - x[start].astype(dtype)) ** 2, axis=1)
    init = least, jnp.zeros(n, jnp.int32), jnp.asarray(1, jnp.int32)
    (_, owner, _), rows = jax.lax.scan(round_, init, keys[1:-1])
    rows = jnp.concatenate([start, rows.reshape(-1)])
    weights = jax.ops.segment_sum(jnp.ones(n, dtype), owner, rows.shape[0])
    candidates = x[jnp.minimum(rows, n - 1)]
    candidates, weights = everywhere(candidates), everywhere(weights)  # few
    return kmeans_plus_plus(candidates, num_clusters=num_clusters, key=keys[-1], weights=weights)
