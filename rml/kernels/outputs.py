"""The outputs of a machine whose likelihood is not Gaussian, or whose data come in batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.errors import UserError
from rml.kernels.gram_kernels import Blocks
from rml.kernels.layers import triangle, unit_kl
from rml.kernels.nngp import Prediction, remaining
from rml.ops.pairwise import safe_sqrt
from rml.ops.precision import full_precision
from rml.ops.psd import cholesky, solve_lower
from rml.ops.shapes import check_above_0, check_indices, check_shapes
from rml.ops.similarity import wide


class Outputs(NamedTuple):
    """The approximate posterior of the outputs, q(F) = Π_c N(L m_c, L S Sᵀ Lᵀ) with K = L Lᵀ.

    Attributes:
      mean: m, one column an output.
      raw: Free parameters of S, shared by the outputs.
    """

    mean: Float[Array, "n c"]
    raw: Float[Array, "n n"]


def output_kl(outputs: Outputs) -> Float[Array, ""]:
    """Computes Σ_c KL(q(f_c) || N(0, K)) in nats."""
    (mean,) = wide(outputs.mean)
    return mean.shape[1] * unit_kl(triangle(outputs.raw)) + jnp.sum(mean**2) / 2


@full_precision
def output_marginals(k: Blocks, outputs: Outputs, *, jitter: float = 0.0) -> Prediction:
    """Computes mean and variance of outputs at `k`'s other points, given q at its inducing ones."""
    x = solve_lower(cholesky(k.ii, jitter=jitter).factor, k.ti.T)
    xs = x.T @ triangle(outputs.raw)
    variance = remaining(k.t, x) + jnp.sum(xs * xs, axis=1)
    return Prediction(x.T @ wide(outputs.mean)[0], variance)


def expected_log_softmax(
    key: Any,
    mean: Float[Array, "n c"],
    variance: Float[Array, " n"],
    labels: Int[Array, " n"],
    *,
    samples: int,
) -> Float[Array, " n"]:
    """Averages log softmax(f)[label] over antithetic draws of f ~ N(mean, variance I).

    Raises:
      UserError: If the number of samples, half of them mirrored, is not even and at least 2.
      ValueError: If shapes do not fit or, outside `jit`, a label is out of range.
    """
    check_shapes(mean=(mean, "n c"), variance=(variance, "n"), labels=(labels, "n"))
    check_indices("labels", labels, mean.shape[1])
    if samples < 2 or samples % 2:
        raise UserError(f"samples is {samples}, expected an even number of at least 2")
    half = jax.random.normal(key, (samples // 2, *mean.shape), mean.dtype)
    noise = jnp.concatenate([half, -half]) * safe_sqrt(variance)[:, None]
    logits = mean + noise
    own = jnp.take_along_axis(mean, labels[:, None], axis=1)[:, 0]
    return own - jnp.mean(jax.nn.logsumexp(logits, axis=-1), axis=0)


def log_predictive(
    key: Any, mean: Float[Array, "n c"], variance: Float[Array, " n"], *, samples: int
) -> Float[Array, "n c"]:
    """Computes the log of the Monte Carlo mean of softmax(f) over f ~ N(mean, variance I).

    Raises:
      ValueError: If there is not one variance a point, or the number of samples is not above 0.
    """
    check_shapes(mean=(mean, "t c"), variance=(variance, "t"))
    check_above_0(samples=samples)
    noise = jax.random.normal(key, (samples, *mean.shape), mean.dtype)
    logits = mean + noise * safe_sqrt(variance)[:, None]
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(samples)
