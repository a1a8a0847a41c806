"""Bilevel look-ahead: what an inner training step owes to outer parameters.

Outer parameters ω shape the loss by which inner parameters θ are trained: the weights of examples,
masks, the part of a teacher. They are judged by another loss, such as one on validation data, after
one step that is taken for this purpose alone, θ' = θ - η ∇_θ inner(θ, ω).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rml.errors import unknown

ORDERS = ("exact", "first")


class Lookahead(NamedTuple):
    """What one step ahead was found.

    Attributes:
      value: The outer loss after the step.
      gradient: Its gradient: by the outer parameters, or by the weights of examples.
      inner: The inner parameters after the step; a caller who trains otherwise drops them.
    """

    value: Float[Array, ""]
    gradient: PyTree
    inner: PyTree


def lookahead_gradient(
    inner_loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    outer_loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    inner: PyTree,
    outer: PyTree,
    *,
    learning_rate: float | Float[Array, ""],
    order: str = "exact",
) -> Lookahead:
    """Computes the gradient by ω of the outer loss after one step of the inner parameters.

    With θ' = θ - η ∇_θ inner(θ, ω) and v = ∇_θ' outer(θ', ω) it is
    ∂_ω outer(θ', ω) - η ∂_ω ⟨∇_θ inner(θ, ω), v⟩. No matrix of second derivatives is formed. The
    first order leaves the second part out: the gradient is 0 then where ω acts through the training
    alone. Only reverse mode is used, since a `custom_vjp`, such as that of `rml.models.Conv`, has
    no other.

    Args:
      inner_loss: `inner_loss(θ, ω)`, by which θ is trained.
      outer_loss: `outer_loss(θ', ω)`, by which ω is judged.
      inner: Inner parameters θ.
      outer: Outer parameters ω.
      learning_rate: Length η of the step.
      order: "exact", or "first" for the gradient with θ' held fixed.

    Returns:
      The outer loss, its gradient by ω, and θ'.

    Raises:
      ValueError: If `order` is unknown.

    Source: Franceschi et al., Bilevel Programming for Hyperparameter Optimization and
    Meta-Learning, arXiv:1806.04910; Liu et al., DARTS, arXiv:1806.09055, eq. 7, whose finite
    difference the derivative here replaces.
    """
    if order not in ORDERS:
        raise unknown("order of a look-ahead", order, ORDERS)
    ahead = descend(inner, jax.grad(inner_loss)(inner, outer), learning_rate)
    value, (along, direct) = jax.value_and_grad(outer_loss, (0, 1))(ahead, outer)
    if order == "first":
        return Lookahead(value, direct, ahead)

    def slope(outer: PyTree) -> Array:
        products = jax.tree.map(jnp.vdot, jax.grad(inner_loss)(inner, outer), along)
        return sum(jax.tree.leaves(products), start=jnp.zeros(()))

    return Lookahead(value, descend(direct, jax.grad(slope)(outer), learning_rate), ahead)


def lookahead_weights(
    losses: Callable[[PyTree], Float[Array, "b ..."]],
    outer_loss: Callable[[PyTree], Float[Array, ""]],
    inner: PyTree,
    weights: Float[Array, "b ..."],
    *,
    learning_rate: float | Float[Array, ""],
) -> Lookahead:
    """Computes the gradient of the outer loss by the weights of the examples' losses.

    θ' = θ - (η/b) Σ_im w_im ∇_θ ℓ_im(θ), of b examples with a loss in each of some parts. The
    gradient by w_im is -(η/b) ⟨∇_θ ℓ_im(θ), ∇_θ' outer(θ')⟩: a weight rises where its loss and the
    outer one fall together. The gradient of the inner loss is linear in the weights, and all inner
    products are its transpose, so that no example's gradient is formed. It is `lookahead_gradient`
    of weights; where weights come of a function of ω, the chain rule gives the gradient by ω.

        ratio, back = jax.vjp(ratio_of, omega)  # [b]
        found = lookahead_weights(losses, outer, theta, ratio, learning_rate=0.1)
        (gradient,) = back(found.gradient)

    Args:
      losses: `losses(θ)`, a value of each example and part.
      outer_loss: `outer_loss(θ')`, by which the weights are judged.
      inner: Inner parameters θ.
      weights: Weights w of the losses. No gradient flows through them.
      learning_rate: Length η of the step.

    Returns:
      The outer loss, its gradient by the weights, and θ'.

    Raises:
      ValueError: If the losses have another shape than the weights.

    Source: Ren et al., Learning to Reweight Examples for Robust Deep Learning, arXiv:1803.09050,
    eq. 12, for weights of any value and several losses an example.
    """
    weights = jax.lax.stop_gradient(weights)
    values, back = jax.vjp(losses, inner)
    if values.shape != weights.shape:
        raise ValueError(
            f"losses have shape {values.shape}, expected that of the weights, {weights.shape}"
        )
    size = max(weights.shape[0], 1)
    shares = (weights / size).astype(values.dtype)
    gradient, transpose = jax.vjp(lambda shares: back(shares)[0], shares)
    ahead = descend(inner, gradient, learning_rate)
    value, along = jax.value_and_grad(outer_loss)(ahead)
    (products,) = transpose(along)
    return Lookahead(value, -learning_rate / size * products, ahead)


def descend(
    parameters: PyTree, gradient: PyTree, learning_rate: float | Float[Array, ""]
) -> PyTree:
    """Takes one step of gradient descent; leaves keep their types."""
    return jax.tree.map(
        lambda x, g: x - jnp.asarray(learning_rate, g.dtype) * g, parameters, gradient
    )
