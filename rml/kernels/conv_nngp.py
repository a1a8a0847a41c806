"""The Gaussian process of a wide convolutional network: covariances of all pairs of locations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.kernels.gram_kernels import Kernel
from rml.ops.precision import full_precision
from rml.ops.similarity import wide

COVARIANCES = 1 << 20
"""Covariances of locations that exist at a time: those of one row and some columns."""


def window_mean(c: Array, *, size: int) -> Array:
    """Averages covariances along both points' windows: a convolution with zero padding.

    Args:
      c: Covariances [h, w] of a location with itself, or [h, w, h, w] of pairs of locations.
      size: Width of the square window, odd; sums are divided by its area also at the border.

    Returns:
      Covariances of the same shape.
    """
    padded = jnp.pad(c, size // 2)
    shifts = [(a, b) * (c.ndim // 2) for a in range(size) for b in range(size)]
    parts = [
        padded[tuple(slice(s, s + n) for s, n in zip(shift, c.shape, strict=True))]
        for shift in shifts
    ]
    return sum(parts[1:], parts[0]) / size**2


@full_precision
def conv_nngp(
    x: Float[Array, "n h w c"],
    other: Float[Array, "m h w c"],
    *,
    kernel: Kernel,
    depth: int | tuple[int, ...],
    size: int = 3,
    pool: bool = True,
) -> Float[Array, "*depths n m"]:
    """Computes the kernel of a convolutional network of infinitely many channels.

    It has `depth` convolutions, each followed by its activation, and a linear output of their mean
    over locations, or of all locations. With covariances c of the activations at locations r of
    one image and s of the other, a layer is

        c'(r, s) = K(mean over window offsets d of c(r + d, s + d)).

    Args:
      x: Images of the rows.
      other: Images of the columns, of the same size.
      kernel: Second moment of the activation's features, such as `rml.kernels.relu`.
      depth: Number of convolutions. Several, as the layers of one network, take no longer than the
        largest; the kernels have a leading axis then.
      size: Width of their square windows, odd; images are padded with zeros.
      pool: Whether the output reads the mean over locations. It needs covariances of all pairs of
        locations, (h w)² for each pair of images; without, h w are enough. At most
        `COVARIANCES` of them exist at a time, or those of one pair of images.

    Returns:
      The kernel of each pair of images.

    Raises:
      ValueError: If the images differ in size, the window is even, or a depth is below 0.

    Source: Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
      Processes, arXiv:1810.05148; Garriga-Alonso et al., arXiv:1808.05587.
    """
    if x.shape[1:] != other.shape[1:] or size % 2 == 0:
        raise ValueError(
            f"images must have one size and windows an odd width, got {x.shape}, {other.shape} "
            f"and width {size}"
        )
    depths = (depth,) if isinstance(depth, int) else tuple(depth)
    if not depths or min(depths) < 0:
        raise ValueError(f"depth is {depth}, expected a number of convolutions, or several")
    x, other = wide(x, other)

    def norms(image: Array) -> list[Array]:
        found, v = [], jnp.mean(image**2, axis=-1)
        for _ in range(max(depths)):
            v = window_mean(v, size=size)
            found.append(v)
            v = kernel(v, v, v)
        return found

    def pair(a: Array, a_norms: list[Array], b: Array, b_norms: list[Array]) -> Array:
        c = jnp.einsum("hwc,ijc->hwij" if pool else "hwc,hwc->hw", a, b) / a.shape[-1]
        means = [jnp.mean(c)]
        for v, w in zip(a_norms, b_norms, strict=True):
            c = kernel(window_mean(c, size=size), v[:, :, None, None] if pool else v, w)
            means.append(jnp.mean(c))
        return jnp.stack([means[own] for own in depths])

    columns = other, jax.vmap(norms)(other)
    locations = x.shape[1] * x.shape[2]
    batch = max(1, COVARIANCES // (locations**2 if pool else locations))

    def row(image: Array) -> Array:
        own = norms(image)
        return jax.lax.map(lambda one: pair(image, own, *one), columns, batch_size=batch)

    found = jnp.moveaxis(jax.lax.map(row, x), -1, 0)
    return found[0] if isinstance(depth, int) else found
