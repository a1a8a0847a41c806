"""Sorting of vectors by the side of random hyperplanes on which they lie (sortLSH).

Vectors at a small angle share most sides. Buckets are visited in an order in which neighbours
differ in one side, so that vectors beside each other when sorted tend to have large products.

Source: sortLSH of HyperAttention (Han et al., 2023, arXiv:2310.05869) in the authors' code; that
neighbouring buckets differ in one side is its definition as we remember it. Angular hashing is
Charikar's (2002).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rml.ops import full_precision
from rml.ops.shapes import check_between, check_shapes

Order = Literal["gray", "authors"]


def hyperplanes(key: Key[Array, ""], planes: int, d: int) -> Float[Array, "planes d"]:
    """Draws normals of random hyperplanes through the origin, uniform in direction.

    Args:
      key: Random key.
      planes: Number of hyperplanes, at most 30: a bucket is an int32.
      d: Width of the vectors.

    Raises:
      ValueError: If the number is not between 1 and 30.
    """
    if not 1 <= planes <= 30:
        raise ValueError(f"planes={planes}, expected 1 to 30")
    return jax.random.normal(key, (planes, d))


@full_precision
def buckets(x: Float[Array, "*b n d"], planes: Float[Array, "p d"]) -> Int[Array, "*b n"]:
    """Finds every vector's bucket: bit i says whether it lies on the positive side of plane i.

    Raises:
      ValueError: Shapes do not fit, there is no vector or feature, or the number of planes is not
        between 1 and 30.
    """
    check_shapes(x=(x, "... n d"), planes=(planes, "p d"))
    check_between(1, 30, planes=len(planes))
    sides = x.astype(planes.dtype) @ planes.T > 0
    return jnp.sum(sides << jnp.arange(planes.shape[0]), axis=-1, dtype=jnp.int32)


def gray_rank(bucket: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """Finds the place of a bucket in the Gray code, in which neighbours differ in one bit."""
    for shift in (1, 2, 4, 8, 16):
        bucket = bucket ^ (bucket >> shift)
    return bucket


def sorted_order(
    x: Float[Array, "*b n d"],
    planes: Float[Array, "p d"],
    here: Bool[Array, "*#b n"] | None = None,
    *,
    order: Order = "gray",
) -> Int[Array, "*b n"]:
    """Finds the indices that sort vectors by their buckets; within a bucket the order stays.

    Args:
      x: Vectors.
      planes: Normals of the hyperplanes, of `hyperplanes`.
      here: Which vectors are there rather than padding; the others come last.
      order: "gray" visits the buckets in the order of the Gray code. "authors" is what the authors'
        code does: it sorts by the Gray code of the bucket's number, which is the inverse
        permutation; with 7 planes 31 of 127 neighbouring buckets then differ in more than one bit.
    """
    bucket = buckets(x, planes)
    rank = gray_rank(bucket) if order == "gray" else bucket ^ (bucket >> 1)
    if here is not None:
        rank = jnp.where(here, rank, jnp.iinfo(jnp.int32).max)
    return jnp.argsort(rank, axis=-1, stable=True)
