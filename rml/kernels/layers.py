"""One layer of a deep kernel machine: a positive definite Gram matrix beside its kernel.

With L the Cholesky factor of the layer's kernel matrix K, the Gram matrix is G = L T Tᵀ Lᵀ for a
lower triangular T of positive diagonal. Any positive definite G has exactly one such T; T = I is
the prior's G = K; KL(N(0, G) || N(0, K)) depends on T alone. (The authors' code parametrises the
Cholesky factor of G itself; the optimum is the same, the conditioning is not.)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.kernels.gram_kernels import Blocks, Kernel, gram_blocks, normalize_blocks
from rml.ops.precision import full_precision
from rml.ops.psd import cholesky, solve_lower
from rml.ops.similarity import wide


class Layer(NamedTuple):
    """What a layer hands on.

    Attributes:
      gram: Its Gram matrix in blocks.
      kl: KL(N(0, G) || N(0, K)) of the inducing blocks, in nats.
      jitter: Added to the diagonal of K.
    """

    gram: Blocks
    kl: Float[Array, ""]
    jitter: Float[Array, ""]


def stack_layers(arrays: Sequence[Array], like: Array) -> Array:
    """Stacks arrays of the shape and type of `like`, one a layer, of which there may be none."""
    return jnp.stack(arrays) if arrays else jnp.zeros((0, *like.shape), like.dtype)


def triangle(raw: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Makes lower triangular T of positive diagonal from its strict part and log-diagonal."""
    (raw,) = wide(raw)
    return jnp.tril(raw, -1) + jnp.diag(jnp.exp(jnp.diagonal(raw)))


def exact_factor(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Computes the Cholesky factor of a matrix itself: no jitter, NaN where it has none."""
    return jax.lax.linalg.cholesky(*wide(a), symmetrize_input=True)


def free_parameters(t: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Inverts `triangle`."""
    return jnp.tril(t, -1) + jnp.diag(jnp.log(jnp.diagonal(t)))


def unit_kl(t: Float[Array, "n n"]) -> Float[Array, ""]:
    """Computes KL(N(0, T Tᵀ) || N(0, I)) in nats."""
    return (jnp.sum(t * t) - t.shape[0]) / 2 - jnp.sum(jnp.log(jnp.diagonal(t)))


def layer_kernel(
    log_scale: Float[Array, ""], g: Blocks, *, kernel: Kernel, normalization: str
) -> Blocks:
    """Computes a layer's kernel matrix in blocks, K(exp(scale) G) of the normalised G."""
    scale = jnp.exp(log_scale)
    g = Blocks(*(scale * block for block in normalize_blocks(g, how=normalization)))
    return gram_blocks(kernel, g)


@full_precision
def free_gram(
    g: Float[Array, "n n"], k: Float[Array, "n n"], *, jitter: float = 0.0
) -> Float[Array, "n n"]:
    """Finds the free parameters of Gram matrix `g` where the layer's kernel matrix is `k`.

    They are NaN where `g` has no Cholesky factor; `k` has the jitter that `propagate` adds to it.
    """
    factor = cholesky(k, jitter=jitter).factor
    return free_parameters(solve_lower(factor, exact_factor(g)))


@full_precision
def propagate(k: Blocks, raw: Any, *, jitter: float = 0.0) -> Layer:
    """Computes a layer's Gram matrix in blocks, other points given the inducing points.

    With X = L⁻¹ K_it: G_ii = L T Tᵀ Lᵀ, G_ti = Xᵀ T Tᵀ Lᵀ, G_t = diag(K_tt - Xᵀ X + Xᵀ T Tᵀ X).

    Args:
      k: Kernel matrix of the layer in blocks.
      raw: Free parameters [p, p] of T, or None for T = I, the prior.
      jitter: Share of the mean diagonal added to K_ii, see `cholesky`.

    Returns:
      The layer.

    Source: Yang et al., arXiv:2108.13097, the sparse machine; the conditional as in the authors'
      code for arXiv:2309.09814.
    """
    factor, added = cholesky(k.ii, jitter=jitter)
    if raw is None:
        ii = k.ii + added * jnp.eye(k.ii.shape[0], dtype=k.ii.dtype)
        return Layer(Blocks(ii, k.ti, k.t), jnp.zeros((), k.ii.dtype), added)
    t = triangle(raw)
    root = factor @ t
    x = solve_lower(factor, k.ti.T)
    xt = x.T @ t
    own = k.t - jnp.sum(x * x, axis=0) + jnp.sum(xt * xt, axis=1)
    return Layer(Blocks(root @ root.T, xt @ root.T, own), unit_kl(t), added)
