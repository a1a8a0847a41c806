"""Unsupervised FixMatch: a model's own confident labels of unchanged inputs teach it others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rml.errors import UserError
from rml.ops.shapes import (
    check_above_0,
    check_between,
    check_count,
    check_indices,
    check_shapes,
)
from rml.ops.shares import whole_part
from rml.ops.similarity import wide
from rml.ops.trees import check_leaf


class PseudoLabelled(NamedTuple):
    """Losses of examples by their pseudo-labels.

    Attributes:
      losses: Cross-entropy of each example, 0 where it is not kept.
      kept: Whether an example is trusted, or its label confident.
    """

    losses: Float[Array, " b"]
    kept: Bool[Array, " b"]

    def mean(self) -> Float[Array, ""]:
        """Averages over kept examples; 0 where none is."""
        return jnp.sum(self.losses) / jnp.maximum(jnp.sum(self.kept), 1)


def trusted_examples(
    probabilities: Float[Array, "n c"], *, share: float = 0.1, most: int = 100
) -> Bool[Array, " n"]:
    """Chooses the most confident examples of each class, equally many of each.

    Of N examples and C classes they are min(share N / C, most) a class, rounded down and, ours, at
    least one. An example can be among the most confident of two classes.

    Args:
      probabilities: Probabilities of classes by the model before it learns.
      share: Share of the examples of a class of mean size.
      most: Largest number a class.

    Raises:
      UserError: There is no example, or a probability is not finite. Traced ones are not looked at.
      ValueError: `share` is not between 0 and 1, or `most` is no whole number of at least 1.

    Source: Zhang et al., arXiv:2407.02880, public code, which by an error trusts all examples.
    """
    check_between(0, 1, share=share)
    check_count(1, most=most)
    n, c = probabilities.shape
    if not n:
        raise UserError(f"probabilities are {[n, c]}, expected those of at least 1 example")
    check_leaf("the array of probabilities", probabilities)
    count = max(1, min(whole_part(share * n / c), most))
    _, rows = jax.lax.top_k(probabilities.T, count)
    return jnp.zeros(n, bool).at[rows.reshape(-1)].set(True)


def ufm(
    weak: Float[Array, "b c"],
    strong: Float[Array, "b c"],
    labels: Int[Array, " b"],
    trusted: Bool[Array, " b"],
    *,
    threshold: ArrayLike = 0.99,
    temperature: ArrayLike = 0.5,
) -> PseudoLabelled:
    """Computes cross-entropies of augmented inputs to labels that the model itself gives.

    The pseudo-label of an example is p^(1/T) / Σ p^(1/T) with p of its unchanged view, held
    constant. It counts where the largest p is above the threshold. Trusted examples keep the label
    that the model had given before it learned, and always count.

    Args:
      weak: Logits of unchanged inputs.
      strong: Logits of augmented ones.
      labels: Labels of the model before it learned; those of trusted examples are read.
      trusted: Choice of `trusted_examples`; all true is what the public code does in fact.
      threshold: Confidence, before sharpening, above which an example that is not trusted counts.
      temperature: Temperature T of the sharpening; the public code multiplies by 1/2 and divides
        by the sum, which sharpens nothing.

    Returns:
      Losses of examples, and which of them count.

    Raises:
      ValueError: If shapes do not fit, the threshold is not between 0 and 1, the temperature is
        not above 0, or, outside `jit`, a trusted label is out of range.

    Source: Zhang et al., arXiv:2407.02880, and its public code ("UFM"), after Sohn et al.,
      FixMatch, arXiv:2001.07685.
    """
    check_shapes(
        weak=(weak, "n c"), strong=(strong, "n c"), labels=(labels, "n"), trusted=(trusted, "n")
    )
    check_between(0, 1, threshold=threshold)
    check_above_0(temperature=temperature)
    check_indices("labels", jnp.where(trusted, labels, 0), weak.shape[1])
    weak, strong = wide(jax.lax.stop_gradient(weak), strong)
    sharpened = jax.nn.softmax(weak / temperature)
    fixed = jax.nn.one_hot(labels, weak.shape[-1], dtype=sharpened.dtype)
    targets = jnp.where(trusted[:, None], fixed, sharpened)
    kept = trusted | (jnp.max(jax.nn.softmax(weak), axis=-1) > threshold)
    # A class with logit -inf has target 0 and no part in the loss.
    losses = optax.safe_softmax_cross_entropy(strong, targets)
    return PseudoLabelled(jnp.where(kept, losses, 0), kept)
