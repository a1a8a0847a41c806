"""K-means on small batches."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from rml.errors import UserError
from rml.evaluation.checks import require_finite
from rml.fewshot.clustering.assign import ROWS, WHOLE, assign, over_rows, total
from rml.fewshot.clustering.cluster import Clustering
from rml.fewshot.clustering.lloyd import Solution
from rml.training.mesh import BATCH_AXES, batch_sharding, check_divisible
from rml.training.processes import local_copy


def mini_batch(
    x: Float[Array, "n d"],
    prototypes: Float[Array, "k d"],
    *,
    key: Key[Array, ""],
    iterations: int = 100,
    batch_size: int = 4096,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> Clustering:
    """Moves prototypes to the running mean of the batch points that were nearest to them.

    A step of rate 1/v for each point of a batch in turn, v the points that the prototype has had,
    is the mean of all these points; it is computed for a batch at once.

    Args:
      x: The points.
      prototypes: The first prototypes, from `kmeans_parallel` for example.
      key: Key of the batches, drawn with replacement.
      iterations: Batches.
      batch_size: Points of a batch, of all devices together.
      block: Points handled at a time, automatic by default.
      mesh: Mesh over whose batch axes the points are sharded; each device draws its share of a
        batch from its own points, and the prototypes are reduced.

    Returns:
      The clustering of all points by the last prototypes. The energies are estimates, n times the
      mean squared distance in a batch, and may rise.

    Raises:
      UserError: If a value is not finite, an option is less than 1, or the mesh does not divide
        points or batches.

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
    if mesh is not None:
        drawn = jax.ShapeDtypeStruct((batch_size,), x.dtype)
        rows = batch_sharding(mesh)
        check_divisible({"x": x, "batch": drawn}, {"x": rows, "batch": rows})
        x = jax.device_put(x, rows)
    found = _run(x, prototypes, key, mesh=mesh, **options)
    return local_copy(Clustering.of(found))


@partial(jax.jit, static_argnames=("iterations", "batch_size", "block", "mesh"))
def _run(
    x: Array,
    prototypes: Array,
    key: Array,
    *,
    iterations: int,
    batch_size: int,
    block: int | None,
    mesh: Mesh | None,
) -> Solution:
    n = x.shape[0]
    axes = None if mesh is None else BATCH_AXES

    def run(x: Array, prototypes: Array, keys: Array) -> Solution:
        if axes is not None:  # each device has draws of its own
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, jax.lax.axis_index(axes))
        shards = n // x.shape[0]

        def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            prototypes, had = carry
            batch = x[jax.random.randint(key, (batch_size // shards,), 0, x.shape[0])]
            found = assign(batch, prototypes, block=block, axis_name=axes)
            had += found.counts
            prototypes += found.offsets / jnp.maximum(had, 1)[:, None]
            return (prototypes, had), n / batch_size * total(jnp.sum(found.distances), axes)

        init = prototypes, jnp.zeros(prototypes.shape[0], prototypes.dtype)
        (prototypes, _), energies = jax.lax.scan(step, init, keys)
        last = assign(x, prototypes, block=block, axis_name=axes)
        ones = jnp.ones_like(last.distances)[:, None]
        inertia = total(jnp.sum(last.distances), axes)
        used = jnp.asarray(iterations)
        return Solution(last.labels[:, None], ones, prototypes, energies, used, inertia)

    specs = Solution(ROWS, ROWS, WHOLE, WHOLE, WHOLE, WHOLE)
    prototypes = prototypes.astype(jnp.promote_types(x.dtype, jnp.float32))
    keys = jax.random.split(key, iterations)
    return over_rows(run, mesh, (ROWS, WHOLE, WHOLE), specs)(x, prototypes, keys)
