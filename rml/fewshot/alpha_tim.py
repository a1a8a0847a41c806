"""α-TIM: information maximisation with α-entropies, for queries of unknown class proportions."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar
from rml.fewshot.checks import one_hot, require_episode
from rml.fewshot.tim import descend
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0


def alpha_entropy(p: Float[Array, "*batch c"], *, alpha: Scalar) -> Float[Array, "*batch"]:
    """Computes the Tsallis entropy (1 - Σ p^α) / (α - 1); Shannon's, α = 1, is left out."""
    # At 0 the power of an α below 1 has an infinite slope.
    p = jnp.maximum(p, jnp.finfo(p.dtype).tiny)
    return (1 - jnp.sum(p**alpha, axis=-1)) / (alpha - 1)


@full_precision
def alpha_tim(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    alpha: Scalar = 2.0,
    temperature: Scalar = 15.0,
    cross_entropy_weight: Scalar = 1.0,
    marginal_weight: Scalar = 1.0,
    conditional_weight: Scalar = 1.0,
    learning_rate: Scalar = 1e-4,
    steps: int = 1000,
) -> Float[Array, "q c"]:
    """Moves prototypes as TIM does, with α-entropies of the queries' predictions.

    The larger α, the less the marginal entropy asks for balanced classes.

    Args:
      support: Support features; scaled to unit length here.
      support_labels: Their classes.
      query: Query features; scaled to unit length here.
      num_classes: Number of classes c.
      alpha: α of both entropies, above 0 and not 1. The public code takes 2 at 1 shot, 7 from 5
        shots on.
      temperature: Multiplies minus half the squared distances.
      cross_entropy_weight: Weight of the support's cross-entropy, which is Shannon's.
      marginal_weight: Weight of the α-entropy of the mean prediction, which is maximised.
      conditional_weight: Weight of the predictions' mean α-entropy.
      learning_rate: Learning rate of Adam.
      steps: Number of steps of Adam.

    Returns:
      Probabilities of the queries.

    Raises:
      ValueError: If the arrays are not an episode, `alpha` is 1, `alpha` or `temperature`
        is not above 0, or `learning_rate` or `steps` is below 0.

    Source: Veilleux et al., arXiv:2204.11181; defaults of its public code.
    """
    require_episode(support, support_labels, query, num_classes)
    check_above_0(alpha=alpha)
    if not isinstance(alpha, jax.core.Tracer) and float(alpha) == 1:
        raise ValueError("alpha must not be 1, got 1: that is rml.fewshot.tim.tim")
    labels = one_hot(support_labels, num_classes, support)

    def loss(support_logits: Array, query_logits: Array) -> Array:
        p = jax.nn.softmax(query_logits, axis=1)
        return (
            cross_entropy_weight * jnp.mean(optax.softmax_cross_entropy(support_logits, labels))
            - marginal_weight * alpha_entropy(jnp.mean(p, axis=0), alpha=alpha)
            + conditional_weight * jnp.mean(alpha_entropy(p, alpha=alpha))
        )

    return descend(
        loss, support, support_labels, query, num_classes=num_classes, temperature=temperature,
        learning_rate=learning_rate, steps=steps,
    )  # fmt: skip
