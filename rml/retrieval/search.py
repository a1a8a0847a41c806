"""Exact maximum-inner-product search over the devices of a mesh."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from rml.ops.shapes import check_whole
from rml.ops.similarity import normalize
from rml.ops.topk import topk
from rml.training.mesh import BATCH_AXES, batch_sharding

Metric = Literal["dot", "cosine"]


@struct.dataclass
class Index:
    """A corpus laid out for search.

    Attributes:
      vectors: Its rows, of unit length for cosines, padded to a multiple of the devices.
      size: Rows of the corpus, without padding.
      metric: "dot" or "cosine".
      mesh: Mesh over whose batch axes the rows are split; None on one device.
    """

    vectors: Float[Array, "rows d"]
    size: int = struct.field(pytree_node=False)
    metric: Metric = struct.field(pytree_node=False)
    mesh: Mesh | None = struct.field(pytree_node=False)


def build_index(
    corpus: Float[Array, "n d"], *, metric: Metric = "dot", mesh: Mesh | None = None
) -> Index:
    """Lays a corpus out for many searches: normalised, padded and split once.

    Args:
      corpus: Vectors to search. For "dot" and on one device they are kept as they are, not copied.
      metric: "dot" for inner products, "cosine" for those of rows scaled to unit length.
      mesh: Mesh over whose batch axes the rows are split.

    Returns:
      The index.

    Raises:
      ValueError: If the corpus has no rows or the metric is unknown.
    """
    if corpus.ndim != 2 or corpus.shape[0] == 0:
        raise ValueError(
            f"corpus must have at least one row and two axes, got an array of shape {corpus.shape}"
        )
    if metric not in ("dot", "cosine"):
        raise ValueError(f"metric must be 'dot' or 'cosine', got {metric!r}")
    size = corpus.shape[0]
    vectors = normalize(corpus) if metric == "cosine" else jnp.asarray(corpus)
    if mesh is not None:
        padding = -size % _devices(mesh)
        if padding:
            vectors = jnp.pad(vectors, ((0, padding), (0, 0)))
        vectors = jax.device_put(vectors, batch_sharding(mesh))
    return Index(vectors, size, metric, mesh)


def search_index(
    queries: Float[Array, "m d"],
    index: Index,
    *,
    k: int,
    block: int | None = None,
    query_block: int = 256,
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """Finds the k rows of an index of highest inner products with each query, highest first.

    Each device searches its own rows in blocks; then the devices exchange their k best, so that
    every device holds m·k candidates of each other one, whatever the size of the corpus.

    Args:
      queries: Query vectors, the same on every device.
      index: What `build_index` returned.
      k: Rows found for each query.
      block: Rows handled at a time, all for a few queries; by default 512·k, between 8,192 and
        65,536: the more are sorted, the rarer it should be.
      query_block: Queries handled at a time. A device holds `block` rows and `block` times
        `query_block` scores, a few times over, beside its share of the corpus.

    Returns:
      Scores in float32, accumulated at full precision from float32 or bfloat16, and row numbers;
      among equal scores the lower row comes first. Values are not checked: a score that is NaN
      or -inf is never found, and a query with fewer than k other scores ends in score -inf and
      row -1.

    Raises:
      ValueError: If queries and rows differ in length, `k` is not between 1 and the rows of the
        corpus, a block is less than 1, or one of these is no whole number.
    """
    rows, width = index.size, index.vectors.shape[1]
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(
            f"queries and corpus must have the same number of features, got shapes "
            f"{queries.shape} and {(rows, width)}"
        )
    if not 1 <= k <= rows:
        raise ValueError(f"k must be between 1 and the {rows} rows of the corpus, got {k}")
    block = min(65536, max(8192, 512 * k)) if block is None else block
    blocks = {"block": block, "query_block": query_block}
    check_whole(k=k, **blocks)
    if index.metric == "cosine":
        queries = normalize(queries)
    if index.mesh is None:
        return topk(queries, index.vectors, k=k, metric="dot", **blocks)
    return _search_shards(queries, index, k=k, **blocks)


def search(
    queries: Float[Array, "m d"],
    corpus: Float[Array, "n d"],
    *,
    k: int,
    metric: Metric = "dot",
    block: int | None = None,
    query_block: int = 256,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """Searches, as `search_index`, a corpus that is searched once.

    Args:
      queries: Query vectors.
      corpus: Vectors to search.
      k: Rows found for each query.
      metric: "dot" for inner products, "cosine" for those of rows scaled to unit length.
      block: Rows handled at a time, by default chosen for k.
      query_block: Queries handled at a time.
      mesh: Mesh over whose batch axes the rows are split.

    Returns:
      Scores and row numbers, as `search_index`.

    Raises:
      ValueError: As `build_index` and `search_index`.
    """
    index = build_index(corpus, metric=metric, mesh=mesh)
    return search_index(queries, index, k=k, block=block, query_block=query_block)


def _devices(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@partial(jax.jit, static_argnames=("k", "block", "query_block"))
def _search_shards(
    queries: Array, index: Index, *, k: int, block: int, query_block: int
) -> tuple[Array, Array]:
    assert index.mesh is not None
    own = index.vectors.shape[0] // _devices(index.mesh)

    def of_device(queries: Array, vectors: Array) -> tuple[Array, Array]:
        first = jax.lax.axis_index(BATCH_AXES) * own
        scores, rows = topk(
            queries,
            vectors,
            k=min(k, own),
            metric="dot",
            block=block,
            query_block=query_block,
            count=index.size - first,
        )
        rows = jnp.where(rows < 0, -1, rows + first)
        # Gathered in the order of the rows: among equal scores the first is the lower row.
        scores, rows = jax.lax.all_gather((scores, rows), BATCH_AXES, axis=1, tiled=True)
        scores, place = jax.lax.top_k(scores, k)
        return scores, jnp.take_along_axis(rows, place, axis=1)

    whole = PartitionSpec()
    return jax.shard_map(
        of_device,
        mesh=index.mesh,
        in_specs=(whole, PartitionSpec(BATCH_AXES)),
        out_specs=whole,
        check_vma=False,  # equal on all devices after the exchange, which types cannot tell
    )(queries, index.vectors)
