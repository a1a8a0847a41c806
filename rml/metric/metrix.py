r"""Mixed examples for losses of pairs, with targets that are mixed as they are.

Venkataramanan et al., It Takes Two to Tango: Mixup for Deep Metric Learning (Metrix), ICLR 2022,
arXiv:2106.04990. A mixture of two examples is positive for an anchor by the share of those that are
of its class. `draw_mixtures` says which examples are mixed, `mix` mixes images or feature maps of
them, and `mixed_similarities` gives what mixed embeddings have, without making one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rml.errors import unknown
from rml.losses.pair_loss import PairForm, class_pair_loss, pair_loss
from rml.ops.precision import full_precision
from rml.ops.shapes import (
    check_above_0,
    check_between,
    check_count,
    check_finite,
    check_shapes,
)
from rml.ops.similarity import normalize, wide

KINDS = {
    "positive-negative": (True, False),
    "anchor-negative": (True, False),
    "positive-positive": (True, True),
    "negative-negative": (False, False),
}
"""What is mixed for an anchor, by name: whether the first of a pair is positive, and the second."""
USED = ("positive-negative", "anchor-negative")
"""The kinds between which every step of Metrix draws."""


class Mixtures(NamedTuple):
    """Pairs of examples that are mixed for each anchor.

    Attributes:
      first: Number of the first example of each pair.
      second: Number of the second.
      weight: Share λ of the first.
      targets: Share by which a mixture is positive for its anchor.
      where: Pairs that are there: an anchor may lack an example of a kind.
    """

    first: Int[Array, "a v"]
    second: Int[Array, "a v"]
    weight: Float[Array, ""]
    targets: Float[Array, "a v"]
    where: Bool[Array, "a v"]


def draw_mixtures(
    key: Key[Array, ""],
    labels: Int[Array, " n"],
    *,
    per_anchor: int,
    kinds: Sequence[str] | None = None,
    alpha: float = 2.0,
    anchor_labels: Int[Array, " a"] | None = None,
    similarities: Float[Array, "a n"] | None = None,
) -> Mixtures:
    """Draws the pairs of a step: one kind and one share λ for all of them.

    Args:
      key: Key of the draw.
      labels: Class of each example.
      per_anchor: Pairs of each anchor.
      kinds: Kinds of `KINDS` between which a coin is thrown; by default `USED`, of which other
        anchors than the examples have the first.
      alpha: The share is drawn from the Beta distribution of α and α.
      anchor_labels: Class of each anchor, such as a proxy; by default the examples are the anchors.
      similarities: Similarity of each anchor to each example; where it is given, negatives are the
        most similar ones in the place of any.

    Returns:
      The pairs. Examples are drawn with replacement, and no anchor is an example of its own but as
      the first of the kind "anchor-negative".

    Raises:
      UserError: A kind is unknown.
      ValueError: If shapes do not fit, there is no kind or pair, a kind needs examples as anchors,
        `alpha` is not above 0 and finite, or there are fewer examples than the most similar ones
        that are wanted.

    Source: Venkataramanan et al., arXiv:2106.04990, mixed pairs; one kind and share a step as in
    its public code, in which the most similar negative is mixed where inputs are.
    """
    if kinds is None:
        kinds = USED if anchor_labels is None else USED[:1]
    check_count(1, per_anchor=per_anchor, kinds=len(kinds))
    check_above_0(alpha=alpha)
    check_finite(alpha=alpha)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of mixture", kind, tuple(KINDS))
    if anchor_labels is not None and "anchor-negative" in kinds:
        raise ValueError("kinds has 'anchor-negative', expected examples as anchors for it.")
    own = labels if anchor_labels is None else anchor_labels
    check_shapes(labels=(labels, "n"), anchor_labels=(own, "a"), similarities=(similarities, "a n"))
    if similarities is not None:
        check_between(1, len(labels), per_anchor=per_anchor)
    same = own[:, None] == labels[None, :]
    positive = same if anchor_labels is not None else same & ~jnp.eye(len(labels), dtype=bool)
    choose, share, *draws = jax.random.split(key, 4)
    shape = (len(own), per_anchor)

    def draw(key: Array, chosen: Array) -> tuple[Array, Array]:
        logits = jnp.where(chosen, 0.0, -jnp.inf)
        number = jax.random.categorical(key, logits[:, None, :], shape=shape)
        return number, jnp.broadcast_to(jnp.any(chosen, axis=1, keepdims=True), shape)

    def negatives(key: Array) -> tuple[Array, Array]:
        if similarities is None:
            return draw(key, ~same)
        found, number = jax.lax.top_k(jnp.where(same, -jnp.inf, similarities), per_anchor)
        return number, found > -jnp.inf

    def pairs(kind: str) -> tuple[Array, ...]:
        sides = [
            draw(key, positive) if side else negatives(key)
            for key, side in zip(draws, KINDS[kind], strict=True)
        ]
        (first, here), (second, there) = sides
        if kind == "anchor-negative":
            first, here = jnp.broadcast_to(jnp.arange(len(own))[:, None], shape), there
        weights = [jnp.asarray(side, jnp.float32) for side in KINDS[kind]]
        return first, second, here & there, *weights

    drawn = [pairs(kind) for kind in kinds]
    picked = jax.random.randint(choose, (), 0, len(kinds))
    first, second, where, one, other = (
        jnp.stack(each)[picked] for each in zip(*drawn, strict=True)
    )
    weight = jax.random.beta(share, alpha, alpha)
    targets = jnp.broadcast_to(weight * one + (1 - weight) * other, first.shape)
    return Mixtures(first, second, weight, targets, where)


def mix(examples: Float[Array, " n *shape"], mixtures: Mixtures) -> Float[Array, " a v *shape"]:
    """Mixes images, feature maps or other examples.

    Args:
      examples: One array an example.
      mixtures: The pairs, and the share of their first.

    Returns:
      The mixtures of each anchor.

    Source: Venkataramanan et al., arXiv:2106.04990, mixing of inputs and of features.
    """
    weight = mixtures.weight.astype(examples.dtype)
    return weight * examples[mixtures.first] + (1 - weight) * examples[mixtures.second]


@full_precision
def mixed_similarities(
    anchors: Float[Array, "a d"], rows: Float[Array, "n d"], mixtures: Mixtures
) -> Float[Array, "a v"]:
    r"""Computes cosines of anchors to mixtures of embeddings, of which none is made.

    With s the cosines of rows, the mixture of i and j at share λ has with the anchor a the cosine

    $$
    \frac{\lambda s_{ai} + (1 - \lambda) s_{aj}}
    {\sqrt{\lambda^2 + (1 - \lambda)^2 + 2 \lambda (1 - \lambda) s_{ij}}}
    $$

    It is 0 where two rows cancel.

    Args:
      anchors: Anchors, not normalised.
      rows: Embeddings, not normalised; they are mixed after that.
      mixtures: The pairs, and the share of their first.

    Returns:
      The cosines.

    Raises:
      ValueError: If shapes do not fit.

    Source: Venkataramanan et al., arXiv:2106.04990, mixing of embeddings.
    """
    check_shapes(
        anchors=(anchors, "a d"), rows=(rows, "n d"), first=(mixtures.first, "a v"),
        second=(mixtures.second, "a v"),
    )  # fmt: skip
    own, z = (normalize(x) for x in wide(anchors, rows))
    to_rows, weight = own @ z.T, mixtures.weight
    first, second = (
        jnp.take_along_axis(to_rows, number, axis=1) for number in (mixtures.first, mixtures.second)
    )
    between = (z @ z.T)[mixtures.first, mixtures.second]
    square = weight**2 + (1 - weight) ** 2 + 2 * weight * (1 - weight) * between
    cancel = square < jnp.finfo(square.dtype).eps
    length = jnp.sqrt(jnp.where(cancel, 1, square))
    return jnp.where(cancel, 0, (weight * first + (1 - weight) * second) / length)


def similarities_of_mixed(
    anchors: Float[Array, "a d"], mixed: Float[Array, "a v d"]
) -> Float[Array, "a v"]:
    """Computes cosines of anchors to embeddings of their own mixtures.

    Args:
      anchors: Anchors, not normalised.
      mixed: Embeddings of the mixtures of each anchor, not normalised.

    Raises:
      ValueError: If shapes do not fit.

    Source: Venkataramanan et al., arXiv:2106.04990, mixing of inputs and of features.
    """
    check_shapes(anchors=(anchors, "a d"), mixed=(mixed, "a v d"))
    own, z = (normalize(x) for x in wide(anchors, mixed))
    return jnp.sum(own[:, None] * z, axis=-1)


@full_precision
def metrix(
    key: Key[Array, ""],
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    form: PairForm,
    proxies: Float[Array, "k d"] | None = None,
    mixed_weight: float = 0.4,
    per_anchor: int = 16,
    kinds: Sequence[str] | None = None,
    alpha: float = 2.0,
) -> Float[Array, ""]:
    """Computes a loss of pairs of a batch, and that of its mixed embeddings.

    Images and feature maps are mixed by `draw_mixtures`, `mix` and `similarities_of_mixed`, between
    which an encoder stands.

    Args:
      key: Key of the mixtures.
      features: Rows, not normalised.
      labels: Class of each row.
      form: The loss, such as `rml.losses.multi_similarity_form()`.
      proxies: Vectors of the classes, which are the anchors then; by default the rows are.
      mixed_weight: Weight w of the loss of mixtures, at least 0.
      per_anchor: Mixtures of each anchor.
      kinds: See `draw_mixtures`.
      alpha: See there.

    Returns:
      The loss.

    Raises:
      UserError: A kind is unknown.
      ValueError: If shapes do not fit, a number is out of its range, the form is one of proxies and
        there are none, or the reverse, or, outside `jit`, a label is of no proxy.

    Source: Venkataramanan et al., arXiv:2106.04990, mixing of embeddings; w as in its public code.
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"), proxies=(proxies, "k d"))
    check_between(0, mixed_weight=mixed_weight)
    check_finite(mixed_weight=mixed_weight)
    if form.proxies != (proxies is not None):
        have = "no proxies" if proxies is None else "proxies"
        raise ValueError(f"there are {have}, expected the opposite by form.proxies={form.proxies}.")
    clean = class_pair_loss(features, labels, form=form, proxies=proxies)
    anchors, classes = features, None
    if proxies is not None:
        anchors, classes = proxies, jnp.arange(len(proxies))
    mixtures = draw_mixtures(
        key, labels, per_anchor=per_anchor, kinds=kinds, alpha=alpha, anchor_labels=classes
    )
    mixed = pair_loss(
        mixed_similarities(anchors, features, mixtures), mixtures.targets, form=form,
        where=mixtures.where,
    )  # fmt: skip
    return clean + mixed_weight * mixed


def positivity_threshold(
    weight: float | Float[Array, "*w"],
    *,
    beta: float = 2.0,
    gamma: float = 50.0,
    margin: float = 0.5,
) -> Float[Array, "*w"]:
    r"""Computes the similarity up to which a mixture of share λ is drawn to its anchor.

    It is $m + \frac{1}{\beta + \gamma} \log \frac{\lambda}{1 - \lambda}$: below it the
    multi-similarity loss of one mixture of a positive and a negative falls in the similarity, above
    it rises. A mixture so acts as a positive with the probability that its similarity is below.

    Args:
      weight: Share λ of the positive, between 0 and 1.
      beta: Sharpness of positives.
      gamma: Sharpness of negatives.
      margin: Similarity m about which pairs turn.

    Returns:
      The threshold.

    Raises:
      ValueError: If a sharpness is not above 0, or a share given as a number is not from 0 to 1.

    Source: Venkataramanan et al., arXiv:2106.04990, analysis of mixed positives.
    """
    check_above_0(beta=beta, gamma=gamma)
    check_between(0, 1, weight=weight)
    share = jnp.asarray(weight, jnp.float32)
    return margin + jax.scipy.special.logit(share) / (beta + gamma)
