"""Deep Gaussian processes and Bayesian networks of finite width: posteriors, by sampling.

The paper (arXiv:2108.13097) extends its limit to neural networks in its appendices; its abstract
says that posteriors are not Gaussian there. By our reading a Gram matrix then no longer determines
its layer's posterior, so the objective's KL terms have no closed form and
`rml.kernels.deep_kernel_machine` has no analogue that is optimised over Gram matrices alone. Here
such networks are sampled only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.errors import UserError, install
from rml.kernels.gram_kernels import Kernel, gram
from rml.kernels.nngp import log_marginal_likelihood
from rml.ops.precision import full_precision
from rml.ops.psd import cholesky
from rml.ops.shapes import check_between

Activation = Callable[[Any], Any]


class Samples(NamedTuple):
    """Draws of the posterior.

    Attributes:
      grams: G_1 to G_L of each draw of each chain.
      units: F_L of each draw.
      acceptance: Mean acceptance rate of each chain.
      step_size: Step size of each chain, after adaptation.
    """

    grams: Float[Array, "chains draws depth n n"]
    units: Float[Array, "chains draws n width"]
    acceptance: Float[Array, " chains"]
    step_size: Float[Array, " chains"]


@full_precision
def dgp_units(
    features: tuple[Float[Array, "_ _"], ...],
    g: Float[Array, "n n"],
    *,
    kernel: Kernel,
    activation: Activation | None = None,
) -> tuple[Float[Array, "n _"], ...]:
    """Computes hidden units F_l = R_l E_l, R_1 a Cholesky factor of the inputs' kernel matrix.

    In a deep Gaussian process R_l is one of K(F_{l-1} F_{l-1}ᵀ / N_{l-1}). In a Bayesian network it
    is φ(F_{l-1}) / √N_{l-1}, and E_l holds the layer's weights.

    Args:
      features: E_l of each hidden layer, standard normal under the prior.
      g: Gram matrix of the inputs.
      kernel: K of every layer of a deep Gaussian process, of the first one of a network.
      activation: Nonlinearity φ of a Bayesian network; None makes it a deep Gaussian process.

    Returns:
      Units of each hidden layer, one row a point. Where a kernel matrix has no Cholesky factor,
      R_l is one of that matrix with the least jitter of `rml.ops.cholesky`.
    """
    root, units = cholesky(gram(kernel, g)).factor, []
    for e in features:
        f = root @ e
        units.append(f)
        if activation is None:
            root = cholesky(gram(kernel, f @ f.T / f.shape[1])).factor
        else:
            root = activation(f) / f.shape[1] ** 0.5
    return tuple(units)


@full_precision
def dgp_grams(
    features: tuple[Float[Array, "_ _"], ...],
    g: Float[Array, "n n"],
    *,
    kernel: Kernel,
    activation: Activation | None = None,
) -> Float[Array, "depth n n"]:
    """Computes Gram matrices G_l = F_l F_lᵀ / N_l of the units of `dgp_units`, see there."""
    units = dgp_units(features, g, kernel=kernel, activation=activation)
    return jnp.stack([f @ f.T / f.shape[1] for f in units])


@full_precision
def dgp_log_posterior(
    features: tuple[Float[Array, "_ _"], ...],
    g: Float[Array, "n n"],
    y: Float[Array, "n c"],
    *,
    kernel: Kernel,
    noise: float | Array,
    copies: int | Array,
    output_kernel: Kernel | None = None,
    activation: Activation | None = None,
) -> Float[Array, ""]:
    """Computes, up to a constant, whitened features' log-density given data seen `copies` times.

    In the limit that learns representations, the widths N ν_l and the number of outputs grow
    together, the outputs being copied N times: the likelihood is raised to the power N.

    Args:
      features: See `dgp_units`; N ν_l columns each.
      g: Gram matrix of the inputs.
      y: Targets.
      kernel: Kernel of the hidden layers.
      noise: Variance of the targets.
      copies: N.
      output_kernel: Kernel of a deep Gaussian process's outputs; the hidden layers' by default.
      activation: Nonlinearity of a Bayesian neural network, see `dgp_units`.

    Source: Yang et al., arXiv:2108.13097, the Bayesian representation learning limit.
    """
    last = dgp_units(features, g, kernel=kernel, activation=activation)[-1]
    prior = -sum(jnp.sum(e * e) for e in features) / 2
    if activation is None:
        k = gram(output_kernel or kernel, last @ last.T / last.shape[1])
    else:
        h = activation(last)
        k = h @ h.T / h.shape[1]
    likelihood = log_marginal_likelihood(k, y, noise=noise)
    return prior + copies * likelihood


def sample_grams(
    key: Any,
    g: Float[Array, "n n"],
    y: Float[Array, "n c"],
    *,
    kernel: Kernel,
    widths: tuple[int, ...],
    noise: float,
    copies: int,
    output_kernel: Kernel | None = None,
    activation: Activation | None = None,
    chains: int = 4,
    warmup: int = 300,
    draws: int = 300,
    leapfrogs: int = 10,
) -> Samples:
    """Samples the posterior over Gram matrices by Hamiltonian Monte Carlo (BlackJAX).

    Step size and diagonal mass are adapted in the warm-up, which is dropped.

    Args:
      key: Typed key.
      g: Gram matrix of the inputs.
      y: Targets.
      kernel: Kernel of the hidden layers.
      widths: ν of each hidden layer; layer l has copies · ν_l features.
      noise: Variance of the targets.
      copies: N.
      output_kernel: Kernel of a deep Gaussian process's outputs; the hidden layers' by default.
      activation: Nonlinearity of a Bayesian neural network, see `dgp_units`.
      chains: Independent chains, started at draws of the prior.
      warmup: Steps of adaptation.
      draws: Steps kept.
      leapfrogs: Leapfrog steps of one transition.

    Returns:
      Gram matrices and last units of all draws.

    Raises:
      UserError: If BlackJAX is not installed, there is no width, or one is not a positive number.
      ValueError: If the noise is below 0.
    """
    if min(widths, default=0) < 1 or copies < 1:
        raise UserError(
            f"widths, at least one, and copies must be positive, got {widths} and {copies}"
        )
    check_between(0, noise=noise)
    columns = tuple(copies * width for width in widths)
    return _sample(
        jax.random.split(key, chains), g, y, jnp.asarray(noise, g.dtype), copies, kernel=kernel,
        output_kernel=output_kernel, activation=activation, columns=columns, warmup=warmup,
        draws=draws, leapfrogs=leapfrogs,
    )  # fmt: skip


@partial(
    jax.jit,
    static_argnames=(
        "kernel",
        "output_kernel",
        "activation",
        "columns",
        "warmup",
        "draws",
        "leapfrogs",
    ),
)
@full_precision
def _sample(
    keys: Any, g: Array, y: Array, noise: Array, copies: Any, *, kernel: Kernel,
    output_kernel: Kernel | None, activation: Activation | None, columns: tuple[int, ...],
    warmup: int, draws: int, leapfrogs: int,
) -> Samples:  # fmt: skip
    """One program a kernel and shape: the data are arguments."""
    blackjax = _blackjax()

    def log_density(features: Any) -> Array:
        return dgp_log_posterior(
            features,
            g,
            y,
            kernel=kernel,
            noise=noise,
            copies=copies,
            output_kernel=output_kernel,
            activation=activation,
        )

    def chain(key: Any) -> tuple[Array, ...]:
        start, adapt, run = jax.random.split(key, 3)
        rows = (len(g),) * len(columns) if activation is None else (len(g), *columns[:-1])
        first = tuple(
            jax.random.normal(k, shape, g.dtype)
            for k, *shape in zip(jax.random.split(start, len(columns)), rows, columns, strict=True)
        )
        adaptation = blackjax.window_adaptation(
            blackjax.hmc, log_density, num_integration_steps=leapfrogs
        )
        (state, parameters), _ = adaptation.run(adapt, first, num_steps=warmup)
        step = blackjax.hmc(log_density, **parameters).step

        def advance(state: Any, key: Any) -> Any:
            state, info = step(key, state)
            units = dgp_units(state.position, g, kernel=kernel, activation=activation)
            grams = jnp.stack([f @ f.T / f.shape[1] for f in units])
            return state, (grams, units[-1], info.acceptance_rate)

        _, (grams, units, rates) = jax.lax.scan(advance, state, jax.random.split(run, draws))
        return grams, units, jnp.mean(rates), parameters["step_size"]

    return Samples(*jax.vmap(chain)(keys))


def _blackjax() -> Any:
    try:
        import blackjax
    except ImportError as error:
        raise UserError(
            f"sampling deep Gaussian processes needs BlackJAX: {install('sampling')}"
        ) from error
    return blackjax
