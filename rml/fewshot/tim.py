"""TIM: transductive information maximisation, by gradient and in closed form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar, in_type
from rml.fewshot.checks import one_hot, require_episode
from rml.fewshot.gram import class_mix, inner_products
from rml.ops.class_means import class_means
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_between
from rml.ops.similarity import normalize


def logits(
    x: Float[Array, "n d"], prototypes: Float[Array, "c d"], temperature: Scalar
) -> Float[Array, "n c"]:
    """Computes minus half the squared distances times `temperature`, up to a constant a row."""
    return temperature * (inner_products(x, prototypes) - jnp.sum(prototypes**2, axis=1) / 2)


def descend(
    loss: Callable[[Array, Array], Array],
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    temperature: Scalar,
    learning_rate: Scalar,
    steps: int,
) -> Float[Array, "q c"]:
    """Moves prototypes by Adam to minimise a loss of the support's and the queries' logits.

    Args:
      loss: Function of both logits.
      support: Support features; scaled to unit length here.
      support_labels: Their classes.
      query: Query features; scaled to unit length here.
      num_classes: Number of classes c.
      temperature: Multiplies minus half the squared distances.
      learning_rate: Learning rate of Adam.
      steps: Number of steps of Adam.

    Returns:
      The queries' probabilities after the last step.

    Raises:
      ValueError: If `temperature` is not above 0, or `learning_rate` or `steps` is below 0.
    """
    check_above_0(temperature=temperature)
    check_between(0, learning_rate=learning_rate, steps=steps)
    support, query = normalize(support), normalize(query)
    rows, s = jnp.concatenate([support, query]), support.shape[0]

    def objective(prototypes: Array) -> Array:
        scores = logits(rows, prototypes, temperature)
        return loss(scores[:s], scores[s:])

    # Without it the derivative of Adam's root is infinite where a gradient is zero.
    optimizer = optax.adam(learning_rate, eps_root=1e-30)
    prototypes = class_means(support, support_labels, num_classes=num_classes)

    def step(_: Array, state: tuple) -> tuple:
        prototypes, moments = state
        updates, moments = optimizer.update(jax.grad(objective)(prototypes), moments)
        return optax.apply_updates(prototypes, updates), moments

    start = prototypes, optimizer.init(prototypes)
    prototypes, _ = jax.lax.fori_loop(0, steps, step, start)
    return jax.nn.softmax(logits(query, prototypes, temperature), axis=1)


@full_precision
def tim(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    temperature: Scalar = 15.0,
    cross_entropy_weight: Scalar = 0.1,
    marginal_weight: Scalar = 1.0,
    conditional_weight: Scalar = 0.1,
    learning_rate: Scalar = 1e-4,
    steps: int = 1000,
) -> Float[Array, "q c"]:
    """Moves prototypes to maximise the information between queries and their predicted classes.

    The loss is the support's cross-entropy, less the entropy of the mean prediction, plus the mean
    entropy of the predictions, each weighted.

    Args:
      support: Support features; scaled to unit length here.
      support_labels: Their classes.
      query: Query features; scaled to unit length here.
      num_classes: Number of classes c.
      temperature: Multiplies minus half the squared distances.
      cross_entropy_weight: Weight of the support's cross-entropy.
      marginal_weight: Weight of the entropy of the mean prediction, which is maximised: classes
        are taken to be balanced.
      conditional_weight: Weight of the predictions' mean entropy.
      learning_rate: Learning rate of Adam.
      steps: Number of steps of Adam.

    Returns:
      Probabilities of the queries.

    Raises:
      ValueError: If the arrays are not an episode, `temperature` is not above 0, or
        `learning_rate` or `steps` is below 0.

    Source: Boudiaf et al., arXiv:2008.11297 (TIM-GD). Weights, temperature and learning rate are
      the defaults of its public code, steps those of the public code of α-TIM.
    """
    require_episode(support, support_labels, query, num_classes)
    labels = one_hot(support_labels, num_classes, support)

    def loss(support_logits: Array, query_logits: Array) -> Array:
        cross_entropy = jnp.mean(optax.softmax_cross_entropy(support_logits, labels))
        log_p = jax.nn.log_softmax(query_logits, axis=1)
        conditional = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=1))
        # By its logarithm: the chance of a class without a query may be 0, where -p log p is steep.
        log_mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(log_p.shape[0])
        marginal = -jnp.sum(jnp.exp(log_mean) * log_mean)
        return (
            cross_entropy_weight * cross_entropy
            - marginal_weight * marginal
            + conditional_weight * conditional
        )

    return descend(
        loss, support, support_labels, query, num_classes=num_classes, temperature=temperature,
        learning_rate=learning_rate, steps=steps,
    )  # fmt: skip


@full_precision
def tim_adm(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    temperature: Scalar = 15.0,
    cross_entropy_weight: Scalar = 0.1,
    marginal_weight: Scalar = 1.0,
    conditional_weight: Scalar = 0.1,
    rate: Scalar = 1.0,
    steps: int = 150,
) -> Float[Array, "q c"]:
    """Maximises TIM's objective by alternating closed-form steps.

    Auxiliary assignments q sharpen the predictions p and even out the classes; prototypes then
    move to the stationary point of a bound. Prototypes are kept as combinations of the rows, so
    that after one Gram matrix a step does not depend on d.

    Args:
      support: Support features; scaled to unit length here.
      support_labels: Their classes.
      query: Query features; scaled to unit length here.
      num_classes: Number of classes c.
      temperature: Multiplies minus half the squared distances.
      cross_entropy_weight: Weight of the support's cross-entropy.
      marginal_weight: Weight of the entropy of the mean prediction.
      conditional_weight: Weight of the predictions' mean entropy.
      rate: Share of the way to the new prototypes that is gone.
      steps: Alternations.

    Returns:
      Probabilities of the queries.

    Raises:
      ValueError: If the arrays are not an episode, `temperature` is not above 0, a weight or
        `steps` is below 0, or `rate` is not between 0 and 1.

    Source: Boudiaf et al., arXiv:2008.11297 (TIM-ADM); steps and defaults as in its public code.
    """
    require_episode(support, support_labels, query, num_classes)
    check_above_0(temperature=temperature)
    check_between(0, 1, rate=rate)
    check_between(
        0, cross_entropy_weight=cross_entropy_weight, marginal_weight=marginal_weight,
        conditional_weight=conditional_weight, steps=steps,
    )  # fmt: skip
    s, n_q = support.shape[0], query.shape[0]
    rows = normalize(jnp.concatenate([support, query]))
    temperature, cross_entropy_weight, marginal_weight, conditional_weight, rate = in_type(
        rows.dtype, temperature, cross_entropy_weight, marginal_weight, conditional_weight, rate
    )
    products = inner_products(rows, rows)
    means = class_mix(support_labels, num_classes=num_classes, rows=s + n_q).astype(rows.dtype)
    labels = jax.nn.one_hot(support_labels, num_classes, dtype=rows.dtype, axis=0)
    power = 1 + conditional_weight
    evenness = marginal_weight / (1 + marginal_weight)
    # Of each row in the prototypes' update.
    weight = jnp.concatenate(
        [jnp.full(s, cross_entropy_weight / power), jnp.full(n_q, s / n_q)]
    ).astype(rows.dtype)

    def predict(mix: Array) -> Array:
        cross = mix @ products
        lengths = jnp.sum(mix * cross, axis=1, keepdims=True)
        return jax.nn.log_softmax(temperature * (cross - lengths / 2), axis=0)

    def step(_: Array, mix: Array) -> Array:
        log_p = predict(mix)
        sharp = power * log_p[:, s:]
        even = evenness * jax.nn.logsumexp(sharp, axis=1, keepdims=True)
        target = jnp.concatenate([labels, jax.nn.softmax(sharp - even, axis=0)], axis=1)
        p = jnp.exp(log_p)
        moved = weight * (target - p) + mix * (p @ weight)[:, None]
        return mix + rate * (moved / (target @ weight)[:, None] - mix)

    return jnp.exp(predict(jax.lax.fori_loop(0, steps, step, means))[:, s:]).T
