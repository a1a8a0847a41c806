"""Gates of pairs of classes on frozen features, and how well they set a pair apart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float64, Int

from rml.errors import UserError
from rml.hydra.feature_filter import gate_penalty
from rml.hydra.loss import hydra_loss
from rml.hydra.pairs import Integers, number_of_pairs, unrank
from rml.ops.pairwise import cosine_similarity


def draw_pairs(
    number: int, *, classes: int, seed: int
) -> tuple[Int[Integers, " n"], Int[Integers, " n"]]:
    """Draws different pairs of two classes each, uniformly.

    Args:
      number: Number of pairs; all of them are drawn where there are no more.
      classes: Number of classes.
      seed: Seed of the draw.

    Returns:
      i and j with i < j.

    Raises:
      UserError: Fewer than 3 classes, which leave none beside a pair.
    """
    if classes < 3:
        raise UserError(f"pairs against the rest need at least 3 classes, got {classes}")
    pairs = number_of_pairs(classes - 1)  # i <= j of one class less is i < j + 1
    rng = np.random.default_rng(seed)
    i, j = unrank(rng.choice(pairs, min(number, pairs), replace=False), classes=classes - 1)
    return i, j + 1


def learn_gates(
    features: Float[Array, "n d"],
    labels: Int[Integers, " n"],
    first: Int[Integers, " p"],
    second: Int[Integers, " p"],
    *,
    steps: int,
    learning_rate: float,
    temperature: float,
    penalty: float,
) -> Float[Array, "p d"]:
    """Learns the gates of each pair on frozen features, such that its two classes agree.

    Args:
      features: Features of training images; they stay as they are.
      labels: Class of each image.
      first: One class of each pair.
      second: The other class of each pair.
      steps: Number of steps of Adam, all features at once.
      learning_rate: Learning rate of Adam.
      temperature: Temperature of the loss.
      penalty: Weight of the gates' distance from binary values.

    Returns:
      Gates in (0, 1), a row a pair.

    Source: the experiment that motivates arXiv:2410.18200.
    """
    numbers = dict(learning_rate=learning_rate, temperature=temperature, penalty=penalty)
    return _learned(features, jnp.asarray(labels, jnp.int32), (first, second), numbers, steps=steps)


@partial(jax.jit, static_argnames="steps")
def _learned(
    features: Array, labels: Array, pairs: tuple[Array, Array], numbers: dict[str, Array], *,
    steps: int,
) -> Array:  # fmt: skip
    """The gates of all pairs, as a program that another set of features finds compiled."""
    optimizer, penalty = optax.adam(numbers["learning_rate"]), numbers["penalty"]

    def fit(pair: tuple[Array, Array]) -> Array:
        i, j = pair
        # Other classes' partner is none of the labels: without a positive they are negatives only.
        absent = jnp.max(labels) + 1
        partners = jnp.where(labels == i, j, jnp.where(labels == j, i, absent))

        def loss(logits: Array) -> Array:
            gates = jax.nn.sigmoid(logits)
            rows = jnp.broadcast_to(gates, features.shape)
            value = hydra_loss(features, labels, partners, rows, temperature=numbers["temperature"])
            return value + penalty * gate_penalty(gates)

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            logits, state = carry
            updates, state = optimizer.update(jax.grad(loss)(logits), state)
            return (optax.apply_updates(logits, updates), state), None

        logits = jnp.zeros(features.shape[1])
        (logits, _), _ = jax.lax.scan(step, (logits, optimizer.init(logits)), None, steps)
        return jax.nn.sigmoid(logits)

    # One pair after another: the logits of all pairs of images of one are memory enough.
    return jax.lax.map(fit, pairs)


def pair_auroc(
    features: Float[Array, "n d"],
    labels: Int[Integers, " n"],
    gates: Float[Array, "p d"],
    first: Int[Integers, " p"],
    second: Int[Integers, " p"],
) -> Float64[np.ndarray, " p"]:
    """Computes how well the cosine of gated features tells a pair's other class from the rest.

    Args:
      features: Features of test images.
      labels: Class of each image.
      gates: Gates of each pair.
      first: One class of each pair.
      second: The other class of each pair.

    Returns:
      For each pair the area under the ROC curve of the cosines of its images: those with an image
      of the other class of the pair against those with an image of any class beside the two.

    Raises:
      UserError: No image of a class of a pair, or none of another class.
    """
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(labels)

    def area(gate: Array, i: int, j: int) -> float:
        one, other = labels == i, labels == j
        rest = ~(one | other)
        if not (one.any() and other.any() and rest.any()):
            raise UserError(f"the pair ({i}, {j}) needs images of both classes and of the rest")
        z = features * gate
        cosine = np.asarray(cosine_similarity(z, z))
        blocks = (cosine[one][:, other], cosine[other][:, one], cosine[~rest][:, rest])
        truth = np.concatenate([np.full(b.size, p) for b, p in zip(blocks, (1, 1, 0), strict=True)])
        return roc_auc_score(truth, np.concatenate([block.ravel() for block in blocks]))

    pairs = zip(gates, np.asarray(first).tolist(), np.asarray(second).tolist(), strict=True)
    return np.array([area(*pair) for pair in pairs])
