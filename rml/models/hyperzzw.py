"""HyperZ·Z·W: a kernel W, multiplied by hidden activations Z, acts on hidden activations.

Zhang, HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction,
arXiv:2401.17948. The equations are those of the public code (lalalune/Terminator at 98873b5).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models.depthwise import depthwise_conv2d


def hyperzzw_global(
    x: Float[Array, "b ... c"], kernel: Float[Array, "..."], z: Float[Array, "..."]
) -> Float[Array, "b ... c"]:
    """Computes the global operator: a kernel over all places, made of `x`, acts on `z`.

    Images: out[h, v] = Σ_w x[h, w] K[h, w] z[w, v] in each channel, the matrix product of two
    planes. The paper speaks of a convolution; the public code multiplies planes, at h·w·w
    multiplications a channel. It needs square images, and rows of `z` meet columns of `x`.

    Sequences, for which a product of planes has no meaning (ours; the public code has none):
    out[t] = Σ_s x[s] K[s] z[t - s + ⌊(T-1)/2⌋], where z is 0 outside: a convolution whose kernel
    has its origin in the middle, as its coordinates have. It is computed by FFT, in
    O(T log T).

    Args:
      x: Images [b, h, h, c] or sequences [b, t, c].
      kernel: Kernel over all places, without the axis of the batch.
      z: What is acted on, as `x`.

    Returns:
      As `x`.

    Raises:
      ValueError: Shapes disagree, or images are not square.
    """
    _check(x, kernel, z)
    weights = x * kernel
    if x.ndim == 3:
        return _convolve(weights, z)
    if x.shape[1] != x.shape[2]:
        raise ValueError(f"x has shape {x.shape}, expected as many rows as columns")
    return jnp.einsum("bhwc,bwvc->bhvc", weights, z)


def hyperzzw_local(
    x: Float[Array, "b ... c"], kernel: Float[Array, "..."]
) -> Float[Array, "b ... c"]:
    """Computes the local operator: each channel is cross-correlated with its own small kernel.

    Args:
      x: Images [b, h, w, c] or sequences [b, t, c].
      kernel: Kernels [k, k, c] or [k, c] of an odd size k, the same for all; or one for each input,
        [b, k, k, c] or [b, k, c].

    Returns:
      As `x`, with zeros beyond the edges.

    Raises:
      ValueError: Shapes disagree, or k is even.
    """
    own = kernel.ndim == x.ndim
    fits = (own and kernel.shape[0] == x.shape[0]) or kernel.ndim == x.ndim - 1
    sizes = set(kernel.shape[own:-1])
    if not fits or kernel.shape[-1] != x.shape[-1] or len(sizes) != 1:
        raise ValueError(f"kernel {kernel.shape} does not fit x {x.shape}: expected [k, k, c]")
    if min(sizes) % 2 == 0:
        raise ValueError(f"kernel has size {min(sizes)}, expected an odd one")
    if own:
        return jax.vmap(lambda one, k: hyperzzw_local(one[None], k)[0])(x, kernel)
    if x.ndim == 3:
        return depthwise_conv2d(x[:, :, None], kernel[:, None, None])[:, :, 0]
    return depthwise_conv2d(x, kernel[:, :, None])


def hyperzzw_gate(
    x: Float[Array, "b ... c"], kernel: Float[Array, "..."]
) -> Float[Array, "b ... c"]:
    """Computes the elementwise operator x ⊙ K ⊙ x, the logits of a gate.

    Args:
      x: Activations.
      kernel: Kernel over all places, without the axis of the batch.

    Returns:
      As `x`.

    Raises:
      ValueError: Shapes disagree.
    """
    _check(x, kernel, x)
    return x * kernel * x


def _check(x: Array, kernel: Array, z: Array) -> None:
    if kernel.shape != x.shape[1:] or z.shape != x.shape:
        raise ValueError(
            f"kernel {kernel.shape} and z {z.shape} do not fit x {x.shape}: expected "
            f"{x.shape[1:]} and {x.shape}"
        )


def _convolve(weights: Array, z: Array) -> Array:
    """A linear convolution along the second axis, cut to the places that the middle is over."""
    count = z.shape[1]
    wide = jnp.promote_types(z.dtype, jnp.float32)
    spectra = (jnp.fft.rfft(one.astype(wide), 2 * count, axis=1) for one in (weights, z))
    first, second = spectra
    full = jnp.fft.irfft(first * second, 2 * count, axis=1)
    middle = (count - 1) // 2
    return full[:, middle : middle + count].astype(z.dtype)
