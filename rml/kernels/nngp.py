"""The neural network Gaussian process: fixed kernels, the limit in which nothing is learned."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.kernels.gram_kernels import Blocks, Kernel, gram
from rml.kernels.layers import stack_layers
from rml.ops.precision import full_precision
from rml.ops.psd import cholesky, noisy_log_density, solve_lower
from rml.ops.shapes import check_between, check_shapes
from rml.ops.similarity import wide


class Prediction(NamedTuple):
    """Gaussian predictions of noise-free outputs.

    Attributes:
      mean: Mean of each output.
      variance: Variance that the outputs share.
    """

    mean: Float[Array, "t c"]
    variance: Float[Array, " t"]


def nngp_grams(g: Float[Array, "n n"], *, kernel: Kernel, depth: int) -> Float[Array, "depth n n"]:
    """Computes the prior's Gram matrices, G_l = K(G_{l-1}) for l = 1 to `depth`.

    Args:
      g: Gram matrix of the inputs.
      kernel: Kernel of every layer.
      depth: Number of hidden layers.

    Returns:
      One matrix a layer.

    Raises:
      ValueError: If the depth is below 0.

    Source: Yang et al., arXiv:2108.13097: the solution of the objective without data.
    """
    check_between(0, depth=depth)
    grams = []
    for _ in range(depth):
        g = gram(kernel, g)
        grams.append(g)
    return stack_layers(grams, g)


def log_marginal_likelihood(
    k: Float[Array, "n n"], y: Float[Array, "n c"], *, noise: float | Array
) -> Float[Array, ""]:
    """Computes log N(Y; 0, K + noise I), the columns of `y` independent, in nats.

    No jitter is added, also where K + noise I has no Cholesky factor: see `noisy_log_density`. A
    noise below the rounding of K, some 1e-7 of its largest entry times n in float32, is lost in it:
    the density of targets that such a noise did not draw is then that of the rounded matrix.

    Args:
      k: Kernel matrix of the outputs.
      y: Targets.
      noise: Variance.

    Raises:
      ValueError: If the targets do not fit the kernel matrix, or the noise is a number below 0.
    """
    check_shapes(kernel=(k, "p p"), y=(y, "p c"))
    check_between(0, noise=noise)
    return noisy_log_density(y, k, noise=noise)


def remaining(prior: Float[Array, " t"], x: Float[Array, "n t"]) -> Float[Array, " t"]:
    """Subtracts from prior variances what is known, Σ x²; rounding must not make them negative."""
    return jnp.maximum(prior - jnp.sum(x * x, axis=0), jnp.finfo(prior.dtype).eps * prior)


@full_precision
def gp_predict(k: Blocks, y: Float[Array, "n c"], *, noise: float | Array) -> Prediction:
    """Predicts by an exact Gaussian process; inducing points of `k` are the training points.

    Where K + noise I has no Cholesky factor, the noise is raised by the least jitter of `cholesky`.

    Args:
      k: Kernel matrix of the outputs in blocks.
      y: Targets of the training points.
      noise: Variance.

    Returns:
      Mean and variance of the function at the other points; add `noise` for targets.

    Raises:
      ValueError: If the targets do not fit the kernel matrix, or the noise is a number below 0.
    """
    check_shapes(kernel=(k.ii, "p p"), y=(y, "p c"))
    check_between(0, noise=noise)
    k = Blocks(*wide(*k))
    (y,) = wide(y)
    factor = cholesky(k.ii + noise * jnp.eye(k.ii.shape[0], dtype=k.ii.dtype)).factor
    x = solve_lower(factor, k.ti.T)
    return Prediction(x.T @ solve_lower(factor, y), remaining(k.t, x))


def gaussian_log_likelihood(
    prediction: Prediction, y: Float[Array, "t c"], *, noise: float | Array
) -> Float[Array, ""]:
    """Averages targets' log-density under a prediction, over points and outputs, in nats.

    Raises:
      ValueError: If the targets do not have the shape of the prediction's mean, or the noise is a
        number below 0.
    """
    check_shapes(mean=(prediction.mean, "t c"), y=(y, "t c"))
    check_between(0, noise=noise)
    variance = prediction.variance[:, None] + noise
    return -jnp.mean(jnp.log(2 * jnp.pi * variance) + (y - prediction.mean) ** 2 / variance) / 2
