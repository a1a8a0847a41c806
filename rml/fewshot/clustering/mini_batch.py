"""K-means on small batches."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rml.errors import UserError
from rml.evaluation.checks import require_finite
from rml.fewshot.clustering.assign import assign
from rml.fewshot.clustering.cluster import Clustering


def mini_batch(
    x: Float[Array, "n d"],
    prototypes: Float[Array, "k d"],
    *,
    key: Key[Array, ""],
    iterations: int = 100,
    batch_size: int = 4096,
    block: int | None = None,
) -> Clustering:
    """Moves prototypes to the running mean of the batch points that were nearest to them.

    A step of rate 1/v for each point of a batch in turn, v the points that the prototype has had,
    is the mean of all these points; it is computed for a batch at once.

    Args:
      x: The points.
      prototypes: The first prototypes, from `kmeans_parallel` for example.
      key: Key of the batches, drawn with replacement.
      iterations: Batches.
      batch_size: Points of a batch.
      block: Points handled at a time, automatic by default.

    Returns:
      The clustering of all points by the last prototypes. The energies are estimates, n times the
      mean squared distance in a batch, and may rise.

    Raises:
      UserError: If a value is not finite, or an option is less than 1.

    Source: Sculley 2010, Web-scale k-means clustering.
    """
    options = {"iterations": iterations, "batch_size": batch_size, "block": block}
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if x.shape[1] != prototypes.shape[1]:
        raise UserError(
            f"x and prototypes must have the same number of features, got shapes {x.shape} and "
            f"{prototypes.shape}"
        )
    require_finite("x", x)
    require_finite("prototypes", prototypes)
    return _run(x, prototypes, key, **options)


@partial(jax.jit, static_argnames=("iterations", "batch_size", "block"))
def _run(
    x: Array, prototypes: Array, key: Array, *, iterations: int, batch_size: int, block: int | None
) -> Clustering:
    n = x.shape[0]
    prototypes = prototypes.astype(jnp.promote_types(x.dtype, jnp.float32))

    def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
        prototypes, had = carry
        batch = x[jax.random.randint(key, (batch_size,), 0, n)]
        found = assign(batch, prototypes, block=block)
        had += found.counts
        prototypes += found.offsets / jnp.maximum(had, 1)[:, None]
        return (prototypes, had), n * jnp.mean(found.distances)

    init = prototypes, jnp.zeros(prototypes.shape[0], prototypes.dtype)
    keys = jax.random.split(key, iterations)
    (prototypes, _), energies = jax.lax.scan(step, init, keys)
    last = assign(x, prototypes, block=block)
    ones = jnp.ones_like(last.distances)[:, None]
    inertia = jnp.sum(last.distances)
    return Clustering(
        last.labels,
        prototypes,
        energies,
        jnp.asarray(iterations),
        inertia,
        last.labels[:, None],
        ones,
    )
