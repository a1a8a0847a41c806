"""Episodes as Gram matrices.

Distances within an episode, and to any prototype that is a combination of its rows, follow from
the inner products of its rows. After this one product of matrices no method here touches the
features again: an iteration costs n² c, not n d c.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.errors import unknown
from rml.ops.graph import nearest, symmetrize
from rml.ops.pairwise import dot_product
from rml.ops.similarity import unit_scale, wide

Distance = Literal["squared_euclidean", "cosine"]
Graph = Literal["symmetric", "directed"]

NEIGHBORS = 3
"""Edges of a point by default, where there are as many others."""


@jax.custom_batching.custom_vmap
def _product(x: Array, y: Array) -> Array:
    return dot_product(x, y)


@_product.def_vmap
def _product_of_batch(size: int, batched: list, x: Array, y: Array) -> tuple[Array, bool]:
    x, y = (
        a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
        for a, is_batched in zip((x, y), batched, strict=True)
    )

    # XLA's batched product of small matrices runs at a fifth of the speed of single ones on CPU.
    def one_by_one(x: Array, y: Array) -> Array:
        return jax.lax.map(lambda pair: _product(*pair), (x, y))

    def together(x: Array, y: Array) -> Array:
        return jax.vmap(dot_product)(x, y)

    return jax.lax.platform_dependent(x, y, cpu=one_by_one, default=together), True


@jax.custom_jvp
def inner_products(x: Float[Array, "m d"], y: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Computes `rml.ops.pairwise.dot_product`, fast under `vmap` on CPU too."""
    return _product(x, y)


@inner_products.defjvp
def _tangent(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    return inner_products(x, y), dot_product(dx, y) + dot_product(x, dy)


def gram(x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Computes inner products of rows after moving their mean to 0, which keeps distances."""
    (x,) = wide(x)
    x = x - jnp.mean(x, axis=0)
    return inner_products(x, x)


def _row_scale(products: Float[Array, "n n"]) -> Float[Array, "1"]:
    """The power of two by which the longest row has about length 1.

    Cosines do not see it, but floors of squared lengths do, and products of those may overflow.
    """
    return unit_scale(jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0)))


def unit_gram(products: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Computes the inner products of rows scaled to unit length, a zero row staying zero."""
    common = _row_scale(products)
    squares = jnp.diagonal(products) * common * common
    scale = common * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
    return scale[:, None] * products * scale


def squared_distances(products: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Computes squared Euclidean distances between all rows."""
    squares = jnp.diagonal(products)
    return jnp.maximum(squares[:, None] + squares - 2 * products, 0)


def distances_to_mixtures(
    products: Float[Array, "n n"], mix: Float[Array, "c n"]
) -> Float[Array, "c n"]:
    """Computes squared Euclidean distances of rows from combinations of rows, given as weights."""
    cross = mix @ products
    lengths = jnp.sum(mix * cross, axis=1, keepdims=True)
    return jnp.maximum(jnp.diagonal(products) - 2 * cross + lengths, 0)


def cosines_to_mixtures(
    products: Float[Array, "n n"], mix: Float[Array, "c n"]
) -> Float[Array, "c n"]:
    """Computes cosines of all rows and combinations of the rows; 0 for a zero vector."""
    common = _row_scale(products)
    cross = (mix @ products) * common * common
    lengths = jnp.sum(mix * cross, axis=1, keepdims=True)
    squares = jnp.diagonal(products) * common * common
    return cross * jax.lax.rsqrt(jnp.maximum(lengths * squares, 1e-24))


def _move(n: int, support: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Which rows are queries, and the support's mean less theirs as a combination of rows."""
    is_query = (jnp.arange(n) >= support).astype(dtype)
    return is_query, (1 - is_query) / support - is_query / (n - support)


def shift_queries(products: Float[Array, "n n"], support: int) -> Float[Array, "n n"]:
    """Moves the queries within inner products so that their mean is that of the support.

    Args:
      products: Inner products of the support's rows, which come first, and the queries'.
      support: Number of support rows.

    Returns:
      The inner products after the move.
    """
    is_query, move = _move(products.shape[0], support, products.dtype)
    along = products @ move
    moved = products + is_query[:, None] * along + along[:, None] * is_query
    return moved + is_query[:, None] * is_query * (move @ along)


def before_shift(mix: Float[Array, "c n"], support: int) -> Float[Array, "c n"]:
    """Turns combinations of rows with moved queries into those of unmoved rows, the same points."""
    is_query, move = _move(mix.shape[1], support, mix.dtype)
    return mix + (mix @ is_query)[:, None] * move


def mean_square_length(
    edges: Float[Array, "n n"], distances: Float[Array, "n n"]
) -> Float[Array, ""]:
    """Averages the squared distances along edges; 1 where all of them are zero."""
    mean = jnp.sum(edges * distances) / jnp.sum(edges)
    return jnp.where(mean > 0, mean, 1)


def gaussian(distances: Float[Array, "*shape"], width: Array | float) -> Float[Array, "*shape"]:
    """Computes exp(-d / 2σ²); σ divides squared distances d twice: σ⁴ in a slope may vanish."""
    width = jnp.maximum(jnp.asarray(width, distances.dtype), 1e-15)
    return jnp.exp(-(distances / width) / (2 * width))


def neighbor_count(neighbors: int | None, points: int, *, default: int) -> int:
    """Returns the neighbours of a point that are asked for, or else the default of those it has."""
    return min(default, points - 1) if neighbors is None else neighbors


def neighbour_graph(
    products: Float[Array, "n n"], *, neighbors: int | None, graph: Graph, default: int = NEIGHBORS
) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Computes the kNN affinities of rows, and the root mean square length of their edges.

    Args:
      products: Inner products of the rows.
      neighbors: Edges of a row; by default `default`, or as many as there are other rows.
      graph: "symmetric" or "directed"; in the latter row p's neighbours are marked in column p.
      default: Edges of a row where `neighbors` is not given.

    Returns:
      Affinities, and the length; 1 where all edges have length zero, so that it can divide.

    Raises:
      UserError: If `graph` is unknown.
      ValueError: If there are no `neighbors` others.
    """
    if graph not in ("symmetric", "directed"):
        raise unknown("graph", graph, ("symmetric", "directed"))
    d2 = squared_distances(products)
    count = neighbor_count(neighbors, len(d2), default=default)
    if neighbors is None and not count:
        return jnp.zeros_like(d2), jnp.ones((), d2.dtype)
    # Found along columns, as they are marked: a CPU transposes slowly.
    edges = nearest(d2, k=count, axis=0)
    length = jnp.sqrt(mean_square_length(edges, d2))
    return (symmetrize(edges) if graph == "symmetric" else edges), length


def episode_gram(
    support: Float[Array, "s d"], query: Float[Array, "q d"], *, shift: bool, distance: Distance
) -> Float[Array, "n n"]:
    """Computes inner products of support and queries, moved and of unit length as asked for.

    Raises:
      UserError: If `distance` is unknown.
    """
    if distance not in ("squared_euclidean", "cosine"):
        raise unknown("distance", distance, ("squared_euclidean", "cosine"))
    rows = jnp.concatenate([support, query])
    products = inner_products(rows, rows) if distance == "cosine" else gram(rows)
    if shift:
        products = shift_queries(products, support.shape[0])
    return unit_gram(products) if distance == "cosine" else products


def class_mix(labels: Int[Array, " s"], *, num_classes: int, rows: int) -> Float[Array, "c n"]:
    """Computes the class means of the support as combinations of an episode's rows."""
    members = jax.nn.one_hot(labels, num_classes, axis=0)
    members = members / jnp.maximum(jnp.sum(members, axis=1, keepdims=True), 1)
    return jnp.pad(members, ((0, 0), (0, rows - labels.shape[0])))
