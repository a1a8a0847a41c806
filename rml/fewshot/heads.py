"""Baseline and Baseline++: a head fine-tuned on the support, the features frozen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar, in_type, tempered_softmax
from rml.fewshot.checks import one_hot, require_episode
from rml.ops.class_means import class_means
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_between
from rml.ops.similarity import normalize, wide


def fine_tune(
    logits: Callable[[Any], Array],
    head: Any,
    labels: Float[Array, "s c"],
    *,
    learning_rate: Scalar,
    weight_decay: Scalar,
    steps: int,
) -> Any:
    """Minimises the cross-entropy of a head's logits by gradient descent with momentum 0.9.

    All examples are in every step, so that their order does not matter.

    Args:
      logits: Function of the head to the support's logits.
      head: Where to start.
      labels: One-hot labels of the support.
      learning_rate: Learning rate, of gradients averaged as the momentum does.
      weight_decay: Weight of half the squared weights.
      steps: Number of steps.

    Returns:
      The head.

    Raises:
      ValueError: If `learning_rate`, `weight_decay` or `steps` is below 0.
    """
    check_between(0, learning_rate=learning_rate, weight_decay=weight_decay, steps=steps)
    learning_rate, weight_decay = in_type(labels.dtype, learning_rate, weight_decay)

    def loss(head: Any) -> Array:
        fitted = jnp.mean(optax.softmax_cross_entropy(logits(head), labels))
        return fitted + weight_decay / 2 * optax.tree.norm(head, squared=True)

    def step(_: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        head, mean = state
        gradient = jax.grad(loss)(head)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        return jax.tree.map(lambda h, m: h - learning_rate * m, head, mean), mean

    return jax.lax.fori_loop(0, steps, step, (head, jax.tree.map(jnp.zeros_like, head)))[0]


@full_precision
def linear_head(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    learning_rate: Scalar = 1.0,
    weight_decay: Scalar = 0.001,
    steps: int = 100,
) -> Float[Array, "q c"]:
    """Trains a linear classifier on the support: Baseline.

    Args:
      support: Support features; scaled here so that their mean squared length is 1.
      support_labels: Their classes.
      query: Query features; scaled by the support's factor.
      num_classes: Number of classes c.
      learning_rate: Learning rate of gradient descent with momentum 0.9 and as much dampening.
      weight_decay: Weight of half the squared weights.
      steps: Number of steps, each on the whole support.

    Returns:
      Probabilities of the queries.

    Raises:
      ValueError: If the arrays are not an episode, or `learning_rate`, `weight_decay` or `steps` is
        below 0.

    Source: Chen et al., A Closer Look at Few-shot Classification, arXiv:1904.04232; momentum,
      dampening and decay of its public code. That takes batches of 4 at a rate of 0.01, random
      first weights and unscaled features; here weights start at zero, so that nothing is drawn.
    """
    require_episode(support, support_labels, query, num_classes)
    support, query = wide(support, query)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(support)))
    support, query = (x / jnp.where(largest > 0, largest, 1) for x in (support, query))
    square = jnp.mean(jnp.sum(support**2, axis=1))
    support, query = (x * jax.lax.rsqrt(jnp.maximum(square, 1e-12)) for x in (support, query))
    head = {
        "weights": jnp.zeros((support.shape[1], num_classes), support.dtype),
        "bias": jnp.zeros(num_classes, support.dtype),
    }

    def logits(head: Any, x: Array) -> Array:
        return x @ head["weights"] + head["bias"]

    found = fine_tune(
        lambda head: logits(head, support), head, one_hot(support_labels, num_classes, support),
        learning_rate=learning_rate, weight_decay=weight_decay, steps=steps,
    )  # fmt: skip
    return tempered_softmax(logits(found, query), 1.0, axis=1)


@full_precision
def cosine_head(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    scale: Scalar = 10.0,
    learning_rate: Scalar = 0.1,
    weight_decay: Scalar = 0.001,
    steps: int = 100,
) -> Float[Array, "q c"]:
    """Trains weights whose scaled cosines to the features are the logits: Baseline++.

    Args:
      support: Support features; scaled to unit length here.
      support_labels: Their classes.
      query: Query features; scaled to unit length here.
      num_classes: Number of classes c.
      scale: Factor of the cosines; the public code takes 2 up to 200 classes of its encoder's
        training, else 10.
      learning_rate: Learning rate of gradient descent with momentum 0.9 and as much dampening.
      weight_decay: Weight of half the squared weights.
      steps: Number of steps, each on the whole support.

    Returns:
      Probabilities of the queries.

    Raises:
      ValueError: If the arrays are not an episode, `scale` is not above 0, or `learning_rate`,
        `weight_decay` or `steps` is below 0.

    Source: Chen et al., A Closer Look at Few-shot Classification, arXiv:1904.04232; see
      `linear_head`. Weights start at the class means, where the public code draws them.
    """
    require_episode(support, support_labels, query, num_classes)
    check_above_0(scale=scale)
    support, query = normalize(support), normalize(query)

    def logits(weights: Array, x: Array) -> Array:
        return scale * (x @ normalize(weights).T)

    found = fine_tune(
        lambda weights: logits(weights, support),
        class_means(support, support_labels, num_classes=num_classes),
        one_hot(support_labels, num_classes, support),
        learning_rate=learning_rate, weight_decay=weight_decay, steps=steps,
    )  # fmt: skip
    return jax.nn.softmax(logits(found, query), axis=1)
