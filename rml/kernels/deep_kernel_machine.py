"""The full deep kernel machine: Gram matrices of all layers, optimised beside their kernels."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.kernels.gram_kernels import Blocks, Kernel, gram, gram_blocks, input_blocks
from rml.kernels.layers import exact_factor, propagate, stack_layers, triangle, unit_kl
from rml.kernels.nngp import Prediction, gp_predict, log_marginal_likelihood
from rml.kernels.outputs import Outputs, expected_log_softmax, output_kl, output_marginals
from rml.ops.precision import full_precision
from rml.ops.psd import cholesky, gaussian_kl, require_finite, require_positive_definite
from rml.ops.shapes import check_shapes


def objective(
    grams: Float[Array, "depth n n"],
    g: Float[Array, "n n"],
    y: Float[Array, "n c"],
    *,
    kernel: Kernel,
    widths: Float[Array, " depth"],
    noise: float | Array,
    output_kernel: Kernel | None = None,
) -> Float[Array, ""]:
    """Computes the objective of a deep kernel machine for regression, to be maximised, in nats.

    log N(Y; 0, K(G_L) + noise I) - Σ_l ν_l KL(N(0, G_l) || N(0, K(G_{l-1}))).

    Args:
      grams: G_1 to G_L, positive definite; without any it is the Gaussian process of K(G_0).
      g: G_0, of the inputs.
      y: Targets.
      kernel: K of the hidden layers.
      widths: ν of each hidden layer, the strength of the prior.
      noise: Variance of the targets.
      output_kernel: K of the outputs; the hidden layers' by default.

    Returns:
      The objective; NaN where a Gram matrix or the kernel matrix of the layer below it has no
      Cholesky factor, as no jitter is added to any.

    Raises:
      ValueError: If shapes do not fit, or there is not one width a layer.

    Source: Yang et al., arXiv:2108.13097, the deep kernel machine objective.
    """
    _check_fit(g, y, widths, grams=grams)
    last = [g, *grams][-1]
    total = log_marginal_likelihood(gram(output_kernel or kernel, last), y, noise=noise)
    before = g
    for layer in range(grams.shape[0]):
        q, p = (exact_factor(a) for a in (grams[layer], gram(kernel, before)))
        total -= widths[layer] * gaussian_kl(q, p)
        before = grams[layer]
    return total


def _check_fit(g: Array, y: Array, widths: Array, **layers: Array) -> None:
    ((name, matrices),) = layers.items()
    check_shapes(**{
        name: (matrices, "depth n n"), "g": (g, "n n"), "y": (y, "n c"), "widths": (widths, "depth")
    })  # fmt: skip


class Forward(NamedTuple):
    """Gram matrices and terms of a machine in its own parameters.

    Attributes:
      grams: G_1 to G_L.
      kernel: K(G_L) of the outputs.
      kls: KL of each layer, in nats.
      jitters: Added to the diagonal of each layer's kernel matrix.
    """

    grams: Float[Array, "depth n n"]
    kernel: Float[Array, "n n"]
    kls: Float[Array, " depth"]
    jitters: Float[Array, " depth"]


@full_precision
def forward(
    raw: Float[Array, "depth n n"],
    g: Float[Array, "n n"],
    *,
    kernel: Kernel,
    output_kernel: Kernel | None = None,
) -> Forward:
    """Computes Gram matrices from free parameters, see `rml.kernels.layers`; zeros are the NNGP."""
    grams, kls, jitters = [], [], []
    for layer in raw:
        factor, added = cholesky(gram(kernel, g))
        t = triangle(layer)
        root = factor @ t
        g = root @ root.T
        grams.append(g)
        kls.append(unit_kl(t))
        jitters.append(added)
    k = gram(output_kernel or kernel, g)
    none = jnp.zeros((), k.dtype)
    return Forward(stack_layers(grams, k), k, stack_layers(kls, none), stack_layers(jitters, none))


def regression_objective(
    raw: Float[Array, "depth n n"],
    g: Float[Array, "n n"],
    y: Float[Array, "n c"],
    *,
    kernel: Kernel,
    widths: Float[Array, " depth"],
    noise: float | Array,
    output_kernel: Kernel | None = None,
) -> Float[Array, ""]:
    """Computes `objective` in free parameters.

    It is that of kernel matrices with `Forward.jitters` on their diagonals: without, where these
    are 0.

    Raises:
      ValueError: If shapes do not fit, or there is not one width a layer.
    """
    _check_fit(g, y, widths, raw=raw)
    state = forward(raw, g, kernel=kernel, output_kernel=output_kernel)
    return log_marginal_likelihood(state.kernel, y, noise=noise) - jnp.sum(widths * state.kls)


@full_precision
def classification_objective(
    raw: Float[Array, "depth n n"],
    outputs: Outputs,
    g: Float[Array, "n n"],
    labels: Int[Array, " n"],
    key: Any,
    *,
    kernel: Kernel,
    widths: Float[Array, " depth"],
    output_kernel: Kernel | None = None,
    samples: int = 32,
) -> Float[Array, ""]:
    """Computes the objective for classification: a variational bound replaces the log-likelihood.

    Args:
      raw: Free parameters of the Gram matrices.
      outputs: Approximate posterior of one output a class.
      g: Gram matrix of the inputs.
      labels: Classes.
      key: Key of log softmax's Monte Carlo mean; one for all steps makes the objective smooth.
      kernel: Kernel of the hidden layers.
      widths: ν of each hidden layer.
      output_kernel: Kernel of the outputs; the hidden layers' by default.
      samples: Monte Carlo draws.

    Returns:
      The objective, to be maximised, in nats. It is that of kernel matrices with the least jitter
      with which they have Cholesky factors: `Forward.jitters` in hidden layers.

    Raises:
      ValueError: If there is not one width a layer, labels do not fit or, outside `jit`, one is out
        of range.
    """
    check_shapes(raw=(raw, "depth n n"), widths=(widths, "depth"))
    state = forward(raw, g, kernel=kernel, output_kernel=output_kernel)
    factor = cholesky(state.kernel).factor
    root = factor @ triangle(outputs.raw)
    likelihood = expected_log_softmax(
        key, factor @ outputs.mean, jnp.sum(root**2, axis=1), labels, samples=samples
    )
    return jnp.sum(likelihood) - output_kl(outputs) - jnp.sum(widths * state.kls)


def require_kernels(
    raw: Float[Array, "depth n n"],
    g: Float[Array, "n n"],
    *,
    kernel: Kernel,
    output_kernel: Kernel | None = None,
) -> None:
    """Raises an error that names the layer whose kernel matrix has no Cholesky factor.

    Call it on the NNGP (`raw` of zeros) before a fit and on the result after it.

    Raises:
      UserError: Which matrix, its size and its condition.
    """
    require_finite("the Gram matrix of the inputs", g)
    before = jnp.concatenate([g[None], forward(raw, g, kernel=kernel).grams])
    for layer, matrix in enumerate(before, 1):
        last = layer == len(before)
        of = output_kernel if last and output_kernel else kernel
        name = "the outputs" if last else f"layer {layer}"
        require_positive_definite(f"the kernel matrix of {name}", gram(of, matrix))


def output_blocks(
    raw: Float[Array, "depth n n"],
    train: Float[Array, "n d"],
    x: Float[Array, "t d"],
    *,
    kernel: Kernel,
    output_kernel: Kernel | None = None,
) -> Blocks:
    """Computes K(G_L) of training points, as inducing points, and of propagated new points."""
    g = input_blocks(train, x)
    for layer in raw:
        g = propagate(gram_blocks(kernel, g), layer).gram
    return gram_blocks(output_kernel or kernel, g)


def predict(
    raw: Float[Array, "depth n n"],
    train: Float[Array, "n d"],
    y: Float[Array, "n c"],
    x: Float[Array, "t d"],
    *,
    kernel: Kernel,
    noise: float | Array,
    output_kernel: Kernel | None = None,
) -> Prediction:
    """Predicts outputs at new inputs.

    Args:
      raw: Free parameters of the fitted Gram matrices.
      train: Training inputs.
      y: Their targets.
      x: New inputs.
      kernel: Kernel of the hidden layers.
      noise: Variance of the targets.
      output_kernel: Kernel of the outputs; the hidden layers' by default.

    Returns:
      Mean and variance of the function; add `noise` for targets.

    Source: Yang et al., arXiv:2108.13097: new points follow the training points as the sparse
      machine's points follow its inducing points.
    """
    blocks = output_blocks(raw, train, x, kernel=kernel, output_kernel=output_kernel)
    return gp_predict(blocks, y, noise=noise)


def predict_outputs(
    raw: Float[Array, "depth n n"],
    outputs: Outputs,
    train: Float[Array, "n d"],
    x: Float[Array, "t d"],
    *,
    kernel: Kernel,
    output_kernel: Kernel | None = None,
) -> Prediction:
    """Predicts outputs at new inputs after a fit of `classification_objective`.

    Args:
      raw: Free parameters of the fitted Gram matrices.
      outputs: Fitted approximate posterior of the outputs.
      train: Training inputs.
      x: New inputs.
      kernel: Kernel of the hidden layers.
      output_kernel: Kernel of the outputs; the hidden layers' by default.

    Returns:
      Mean and variance of one output a class; `rml.kernels.outputs.log_predictive` makes
      log-probabilities of them.

    Source: as `predict`, the last layer conditioned on q(F) as in Hensman et al. 2013,
      arXiv:1309.6835.
    """
    blocks = output_blocks(raw, train, x, kernel=kernel, output_kernel=output_kernel)
    return output_marginals(blocks, outputs)
