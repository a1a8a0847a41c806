"""The sparse deep kernel machine: inducing points in every layer, minibatches of data."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.errors import UserError, unknown
from rml.kernels.gram_kernels import (
    Blocks,
    Kernel,
    input_blocks,
    input_gram,
)
from rml.kernels.layers import Layer, layer_kernel, propagate, stack_layers
from rml.kernels.nngp import Prediction
from rml.kernels.outputs import Outputs, expected_log_softmax, output_kl, output_marginals
from rml.ops.psd import require_finite, require_positive_definite
from rml.ops.shapes import check_above_0, check_between, check_shapes

LIKELIHOODS = ("gaussian", "categorical")


class SparseMachine(NamedTuple):
    """Trained numbers of a sparse machine, a pytree.

    Attributes:
      inducing: Inducing inputs; they are global, every layer has a Gram matrix of the same p.
      raw: Free parameters of each layer's inducing Gram matrix, or None for a sparse Gaussian
        process with the NNGP kernel of the same depth.
      outputs: Approximate posterior of the outputs at the inducing points.
      log_input_scales: Inputs are multiplied by exp(log_input_scales), one a feature.
      log_scales: Each kernel reads exp(log_scale) G: twice the negative log length-scale. One a
        hidden layer and one for the outputs.
      log_amplitude: Logarithm of what multiplies the outputs' kernel.
      log_noise: Logarithm of the Gaussian likelihood's variance.
    """

    inducing: Float[Array, "p d"]
    raw: Any
    outputs: Outputs
    log_input_scales: Float[Array, " d"]
    log_scales: Float[Array, " layers"]
    log_amplitude: Float[Array, ""]
    log_noise: Float[Array, ""]


class Terms(NamedTuple):
    """What the bound is made of.

    Attributes:
      prediction: Marginals of the outputs at the batch.
      kls: KL of each hidden layer, in nats.
      jitter: Largest that a hidden layer's kernel matrix needed.
    """

    prediction: Prediction
    kls: Float[Array, " depth"]
    jitter: Float[Array, ""]


def init_sparse(
    inducing: Float[Array, "p d"],
    *,
    depth: int,
    outputs: int,
    learned: bool = True,
    noise: float = 0.1,
) -> SparseMachine:
    """Makes the machine at its prior: G = K in every layer, q the prior of the outputs.

    Args:
      inducing: Inducing inputs, such as a subset of the data.
      depth: Number of hidden layers.
      outputs: Number of outputs, or of classes.
      learned: Whether Gram matrices are parameters; False is a sparse Gaussian process.
      noise: First variance of a Gaussian likelihood.

    Raises:
      ValueError: If there is no inducing input, the depth is below 0, or the number of outputs or
        the noise is not above 0.
    """
    check_shapes(inducing=(inducing, "n d"))
    check_between(0, depth=depth)
    check_above_0(outputs=outputs, noise=noise)
    p, dtype = inducing.shape[0], inducing.dtype
    return SparseMachine(
        inducing=inducing,
        raw=jnp.zeros((depth, p, p), dtype) if learned else None,
        outputs=Outputs(jnp.zeros((p, outputs), dtype), jnp.zeros((p, p), dtype)),
        log_input_scales=jnp.zeros(inducing.shape[1], dtype),
        log_scales=jnp.zeros(depth + 1, dtype),
        log_amplitude=jnp.zeros((), dtype),
        log_noise=jnp.log(jnp.asarray(noise, dtype)),
    )


def hidden_layers(
    machine: SparseMachine,
    x: Float[Array, "t d"],
    *,
    kernel: Kernel,
    normalization: str,
    jitter: float,
) -> Iterator[tuple[Blocks, Layer | None]]:
    """Yields each layer's kernel matrix, and what it hands on; the last, the outputs', nothing."""
    scales = jnp.exp(machine.log_input_scales)
    g = input_blocks(machine.inducing * scales, x * scales)
    for index in range(machine.log_scales.shape[0] - 1):
        k = layer_kernel(machine.log_scales[index], g, kernel=kernel, normalization=normalization)
        raw = None if machine.raw is None else machine.raw[index]
        layer = propagate(k, raw, jitter=jitter)
        yield k, layer
        g = layer.gram
    k = layer_kernel(machine.log_scales[-1], g, kernel=kernel, normalization=normalization)
    yield k, None


def inducing_grams(
    machine: SparseMachine, *, kernel: Kernel, normalization: str = "none", jitter: float = 1e-5
) -> Float[Array, "depth p p"]:
    """Computes Gram matrices of the inducing points in the hidden layers."""
    *hidden, (k, _) = hidden_layers(
        machine, machine.inducing[:1], kernel=kernel, normalization=normalization, jitter=jitter
    )
    return stack_layers([layer.gram.ii for _, layer in hidden if layer is not None], k.ii)


def require_inducing(
    machine: SparseMachine, *, kernel: Kernel, normalization: str = "none", jitter: float = 1e-5
) -> None:
    """Raises an error that names the layer whose inducing kernel matrix has no Cholesky factor.

    Call it before training and where a bound is not finite; inside `jit` it is silent.

    Raises:
      UserError: Which matrix, its size and its condition.
    """
    inputs = machine.inducing * jnp.exp(machine.log_input_scales)
    require_finite("the Gram matrix of the inducing inputs", input_gram(inputs))
    layers = hidden_layers(
        machine, machine.inducing[:1], kernel=kernel, normalization=normalization, jitter=jitter
    )
    for number, (k, layer) in enumerate(layers, 1):
        name = "the outputs" if layer is None else f"layer {number}"
        require_positive_definite(f"the inducing kernel matrix of {name}", k.ii)


def propagate_sparse(
    machine: SparseMachine,
    x: Float[Array, "t d"],
    *,
    kernel: Kernel,
    normalization: str = "none",
    jitter: float = 1e-5,
) -> Terms:
    """Propagates points through all layers, conditionally on the inducing points.

    Args:
      machine: The parameters.
      x: Inputs.
      kernel: Kernel of every layer.
      normalization: Normalisation of each Gram matrix before its kernel, see `normalize_blocks`.
      jitter: Share of the mean diagonal added to inducing kernel matrices.

    Returns:
      Marginals of the outputs and the hidden layers' terms.

    Source: Yang et al., arXiv:2108.13097, the sparse machine; propagation of blocks as in the
      authors' code for arXiv:2309.09814.
    """
    *passed, (k, _) = hidden_layers(
        machine, x, kernel=kernel, normalization=normalization, jitter=jitter
    )
    kls = [layer.kl for _, layer in passed if layer is not None]
    jitters = [layer.jitter for _, layer in passed if layer is not None]
    k = Blocks(*(jnp.exp(machine.log_amplitude) * block for block in k))
    zero = jnp.zeros((), x.dtype)
    return Terms(
        output_marginals(k, machine.outputs, jitter=jitter),
        stack_layers(kls, zero),
        jnp.max(jnp.stack(jitters)) if jitters else zero,
    )


def elbo(
    machine: SparseMachine,
    x: Float[Array, "t d"],
    y: Any,
    *,
    total: int | Array,
    kernel: Kernel,
    widths: Float[Array, " depth"],
    likelihood: str,
    key: Any = None,
    samples: int = 16,
    normalization: str = "none",
    jitter: float = 1e-5,
) -> Float[Array, ""]:
    """Estimates from one batch, unbiased, the sparse machine's objective a data point.

    Σ_t E_q log p(y_t | f_t) - Σ_c KL(q(u_c) || N(0, K)) - Σ_l ν_l KL(N(0, G_l) || N(0, K_l)), over
    inducing points in both KLs, divided by the number of data points.

    Args:
      machine: The parameters.
      x: Inputs of the batch.
      y: Targets [t, c] of a Gaussian likelihood, or classes [t] of a categorical one.
      total: Number of data points that the batch stands for.
      kernel: Kernel of every layer.
      widths: ν of each hidden layer.
      likelihood: "gaussian" or "categorical".
      key: Key of the Monte Carlo mean of a categorical likelihood.
      samples: Draws of that mean.
      normalization: See `propagate_sparse`.
      jitter: See `propagate_sparse`.

    Returns:
      The objective, to be maximised, in nats a data point.

    Raises:
      UserError: If the likelihood or normalisation is unknown, or a categorical likelihood has no
        key.
      ValueError: If targets or widths do not fit the machine's outputs and layers or, outside
        `jit`, a class is out of range.

    Source: Yang et al., arXiv:2108.13097, the objective of the sparse machine, with an explicit
      q(u) in the last layer as in Hensman et al. 2013, arXiv:1309.6835.
    """
    if likelihood not in LIKELIHOODS:
        raise unknown("likelihood", likelihood, LIKELIHOODS)
    if likelihood == "categorical" and key is None:
        raise UserError("a categorical likelihood needs a key, of its Monte Carlo mean, got None")
    terms = propagate_sparse(machine, x, kernel=kernel, normalization=normalization, jitter=jitter)
    mean, variance = terms.prediction
    check_shapes(mean=(mean, "t c"), y=(y, "t c" if likelihood == "gaussian" else "t"))
    check_shapes(widths=(widths, "depth"), kls=(terms.kls, "depth"))
    if likelihood == "gaussian":
        noise = jnp.exp(machine.log_noise)
        errors = jnp.mean(jnp.sum((y - mean) ** 2, axis=1) + mean.shape[1] * variance) / noise
        fitted = -(errors + mean.shape[1] * jnp.log(2 * jnp.pi * noise)) / 2
    else:
        fitted = jnp.mean(expected_log_softmax(key, mean, variance, y, samples=samples))
    return fitted - (jnp.sum(widths * terms.kls) + output_kl(machine.outputs)) / total
