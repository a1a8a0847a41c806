"""Deep Gaussian processes of finite width: their posterior over Gram matrices, by sampling.

Here this repository stops. The paper (arXiv:2108.13097) extends its limit to neural networks in its
appendices; its abstract says that posteriors are not Gaussian there. By our reading a Gram matrix
then no longer determines its layer's posterior, so the objective's KL terms have no closed form and
`rml.kernels.deep_kernel_machine` has no analogue that is optimised over Gram matrices alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.errors import UserError
from rml.kernels.gram_kernels import Kernel, gram
from rml.kernels.nngp import log_marginal_likelihood
from rml.ops.psd import cholesky


class Samples(NamedTuple):
    """Draws of the posterior.

    Attributes:
      grams: G_1 to G_L of each draw of each chain.
      acceptance: Mean acceptance rate of each chain.
      step_size: Of each chain, after adaptation.
    """

    grams: Float[Array, "chains draws depth n n"]
    acceptance: Float[Array, " chains"]
    step_size: Float[Array, " chains"]


def dgp_grams(
    features: tuple[Float[Array, "n width"], ...], g: Float[Array, "n n"], *, kernel: Kernel
) -> Float[Array, "depth n n"]:
    """Gram matrices G_l = F_l F_lᵀ / N_l of features F_l = chol(K(G_{l-1})) E_l.

    Args:
      features: E_l of each hidden layer, standard normal under the prior.
      g: Gram matrix of the inputs.
      kernel: Of every layer.
    """
    grams = []
    for e in features:
        f = cholesky(gram(kernel, g)).factor @ e
        g = f @ f.T / e.shape[1]
        grams.append(g)
    return jnp.stack(grams)


def dgp_log_posterior(
    features: tuple[Float[Array, "n width"], ...],
    g: Float[Array, "n n"],
    y: Float[Array, "n c"],
    *,
    kernel: Kernel,
    noise: float | Array,
    copies: int,
    output_kernel: Kernel | None = None,
) -> Float[Array, ""]:
    """Log-density, up to a constant, of the whitened features given data seen `copies` times.

    In the limit that learns representations, the widths N ν_l and the number of outputs grow
    together, the outputs being copied N times: the likelihood is raised to the power N.

    Args:
      features: See `dgp_grams`; N ν_l columns each.
      g: Gram matrix of the inputs.
      y: Targets.
      kernel: Of the hidden layers.
      noise: Variance of the targets.
      copies: N.
      output_kernel: Of the outputs; the hidden layers' by default.

    Source: Yang et al., arXiv:2108.13097, the Bayesian representation learning limit.
    """
    last = dgp_grams(features, g, kernel=kernel)[-1]
    prior = -sum(jnp.sum(e * e) for e in features) / 2
    likelihood = log_marginal_likelihood(gram(output_kernel or kernel, last), y, noise=noise)
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
      kernel: Of the hidden layers.
      widths: ν of each hidden layer; layer l has copies · ν_l features.
      noise: Variance of the targets.
      copies: N.
      output_kernel: Of the outputs; the hidden layers' by default.
      chains: Independent chains, started at draws of the prior.
      warmup: Steps of adaptation.
      draws: Steps kept.
      leapfrogs: Leapfrog steps of one transition.

    Returns:
      Gram matrices of all draws.

    Raises:
      UserError: If BlackJAX is not installed or a width is not a positive number.
    """
    try:
        import blackjax
    except ImportError as error:
        raise UserError(
            "sampling deep Gaussian processes needs BlackJAX: pip install 'rml[sampling]'"
        ) from error
    if min(widths, default=1) < 1 or copies < 1:
        raise UserError(f"widths and copies must be positive, got {widths} and {copies}")
    n = g.shape[0]

    def log_density(features: Any) -> Array:
        return dgp_log_posterior(
            features,
            g,
            y,
            kernel=kernel,
            noise=noise,
            copies=copies,
            output_kernel=output_kernel,
        )

    def chain(key: Any) -> tuple[Array, Array, Array]:
        start, adapt, run = jax.random.split(key, 3)
        keys = jax.random.split(start, len(widths))
        first = tuple(
            jax.random.normal(k, (n, copies * width), g.dtype)
            for k, width in zip(keys, widths, strict=True)
        )
        adaptation = blackjax.window_adaptation(
            blackjax.hmc, log_density, num_integration_steps=leapfrogs
        )
        (state, parameters), _ = adaptation.run(adapt, first, num_steps=warmup)
        step = blackjax.hmc(log_density, **parameters).step

        def advance(state: Any, key: Any) -> Any:
            state, info = step(key, state)
            return state, (dgp_grams(state.position, g, kernel=kernel), info.acceptance_rate)

        _, (grams, rates) = jax.lax.scan(advance, state, jax.random.split(run, draws))
        return grams, jnp.mean(rates), parameters["step_size"]

    return Samples(*jax.jit(jax.vmap(chain))(jax.random.split(key, chains)))
