r"""Losses of pairs in one form, in which a pair may be positive by a share.

Venkataramanan et al., It Takes Two to Tango: Mixup for Deep Metric Learning, ICLR 2022,
arXiv:2106.04990, whose generic loss this is. Contrastive learning, the binomial deviance, the
multi-similarity loss and proxy anchors are cases of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.losses.reduction import check_reduction, reduced
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0, check_finite, check_indices, check_shapes
from rml.ops.similarity import normalize, wide

Number = float | Float[Array, ""]


class PairSide(NamedTuple):
    r"""What positive or negative pairs of an anchor add: $\sigma(\sum_x y_x \rho(s_x))$.

    Attributes:
      rho: Function of similarities; where `sharpness` is given, the logarithm of $\rho$.
      sharpness: $\sigma$ is the identity where it is None, otherwise $\log(1 + x)$ divided by it.
      mean: Whether the sum is divided by that of the weights $y_x$.
    """

    rho: Callable[[Array], Array]
    sharpness: Number | None = None
    mean: bool = False

    def __call__(self, similarities: Array, weights: Array) -> Array:
        """Computes the side of each anchor; a pair of weight 0 adds nothing."""
        values = self.rho(similarities)
        if self.sharpness is None:
            total = jnp.sum(jnp.where(weights != 0, weights * values, 0), axis=1)
            count = jnp.sum(weights, axis=1)
            return total / jnp.where(count > 0, count, 1) if self.mean else total
        # log(1 + x) of the logarithm of x, which does not overflow.
        nothing = jnp.zeros((len(values), 1), values.dtype)
        shares = jnp.log(jnp.where(weights != 0, weights, 1)) + values
        terms = jnp.where(weights != 0, shares, -jnp.inf)
        return jax.nn.logsumexp(jnp.hstack([nothing, terms]), axis=1) / self.sharpness


class PairForm(NamedTuple):
    """A loss of pairs: what positive pairs add and what negative ones do.

    Attributes:
      positive: Side of positive pairs, falling in the similarity.
      negative: Side of negative pairs, rising in it.
      proxies: Whether anchors are proxies: the mean of positive sides is then over those that have
        a positive pair, that of negative ones over all.
    """

    positive: PairSide
    negative: PairSide
    proxies: bool = False


def contrastive_form(margin: Number = 0.5) -> PairForm:
    r"""Makes the contrastive loss of similarities: $-s$ of positives, $[s - m]_+$ of negatives.

    Args:
      margin: Similarity m below which a negative is left alone.

    Source: Venkataramanan et al., arXiv:2106.04990, table of losses; of distances it is
    `contrastive_pairs`.
    """
    check_finite(margin=margin)
    return PairForm(PairSide(lambda s: -s), PairSide(lambda s: jax.nn.relu(s - margin)))


def binomial_form(beta: Number = 2.0, gamma: Number = 50.0, margin: Number = 0.5) -> PairForm:
    r"""Makes the binomial deviance: means of $\log(1 + e^{-\beta (s - m)})$ and of its opposite.

    Args:
      beta: Sharpness of positives, above 0.
      gamma: Sharpness of negatives, above 0.
      margin: Similarity m about which pairs turn.

    Source: Yi, Lei, Li, Deep Metric Learning for Person Re-Identification, ICPR 2014, eq. 8, in the
    form of Wang et al., arXiv:1904.06627, eq. 6.
    """
    check_above_0(beta=beta, gamma=gamma)
    check_finite(margin=margin)
    return PairForm(
        PairSide(lambda s: jax.nn.softplus(-beta * (s - margin)), mean=True),
        PairSide(lambda s: jax.nn.softplus(gamma * (s - margin)), mean=True),
    )


def multi_similarity_form(
    beta: Number = 2.0, gamma: Number = 50.0, margin: Number = 0.5
) -> PairForm:
    r"""Makes the multi-similarity loss, a logarithm over all positives and one over all negatives.

    They are $\frac{1}{\beta} \log(1 + \sum_p e^{-\beta (s_p - m)})$ and
    $\frac{1}{\gamma} \log(1 + \sum_n e^{\gamma (s_n - m)})$.

    Args:
      beta: Sharpness of positives, above 0; α in its paper.
      gamma: Sharpness of negatives, above 0; β in its paper.
      margin: Similarity m about which pairs turn; λ in its paper.

    Source: Wang et al., Multi-Similarity Loss, CVPR 2019, arXiv:1904.06627, eq. 16.
    """
    check_above_0(beta=beta, gamma=gamma)
    check_finite(margin=margin)
    return PairForm(
        PairSide(lambda s: -beta * (s - margin), beta),
        PairSide(lambda s: gamma * (s - margin), gamma),
    )


def proxy_anchor_form(scale: Number = 32.0, margin: Number = 0.1) -> PairForm:
    r"""Makes the loss of proxies as anchors.

    It is $\log(1 + \sum_p e^{-\alpha (s_p - \delta)})$ and
    $\log(1 + \sum_n e^{\alpha (s_n + \delta)})$.

    Args:
      scale: Sharpness α, above 0.
      margin: Margin δ.

    Source: Kim et al., Proxy Anchor Loss, CVPR 2020, arXiv:2003.13911, eq. 4.
    """
    check_above_0(scale=scale)
    check_finite(margin=margin)
    return PairForm(
        PairSide(lambda s: -scale * (s - margin), 1.0),
        PairSide(lambda s: scale * (s + margin), 1.0),
        proxies=True,
    )


def pair_loss(
    similarities: Float[Array, "a u"],
    targets: Float[Array, "a u"],
    *,
    form: PairForm,
    where: Bool[Array, "a u"] | None = None,
    reduction: str = "mean",
) -> Float[Array, ""] | Float[Array, " a"]:
    r"""Computes a loss of pairs, of which one with target y is positive by y, negative by 1 - y.

    $$
    \sigma^+\Big(\sum_x y_x \rho^+(s_x)\Big) + \sigma^-\Big(\sum_x (1 - y_x) \rho^-(s_x)\Big)
    $$

    Args:
      similarities: Similarity of each anchor to each example.
      targets: Share, from 0 to 1, by which a pair is positive.
      form: The loss, such as `multi_similarity_form()`.
      where: Pairs that count, by default all; an anchor is no example of its own.
      reduction: Mean over anchors, see `PairForm`, or each anchor's loss.

    Returns:
      The loss; 0 for an anchor without pairs.

    Raises:
      ValueError: If shapes do not fit, there is no anchor or no example, or `reduction` is unknown.

    Source: Venkataramanan et al., arXiv:2106.04990, generic loss, of interpolated labels too.
    """
    check_shapes(similarities=(similarities, "n k"), targets=(targets, "n k"), where=(where, "n k"))
    check_reduction(reduction)
    (s,) = wide(similarities)
    y = jnp.asarray(targets, s.dtype)
    counts = jnp.ones(y.shape, bool) if where is None else where
    positive = form.positive(s, jnp.where(counts, y, 0))
    negative = form.negative(s, jnp.where(counts, 1 - y, 0))
    if reduction == "none" or not form.proxies:
        return reduced(positive + negative, reduction)
    present = jnp.any(counts & (y > 0), axis=1)
    mean = jnp.sum(jnp.where(present, positive, 0)) / jnp.maximum(jnp.sum(present), 1)
    return mean + jnp.mean(negative)


@full_precision
def class_pair_loss(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    form: PairForm,
    proxies: Float[Array, "k d"] | None = None,
    reduction: str = "mean",
) -> Float[Array, ""] | Float[Array, " a"]:
    """Computes a loss of the pairs of a batch, positive where classes are the same, by cosines.

    Args:
      features: Rows, not normalised.
      labels: Class of each row.
      form: The loss.
      proxies: Vector of each class, not normalised, which are the anchors; by default the rows are,
        each with all others.
      reduction: Mean over anchors, see `PairForm`, or each anchor's loss.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, `reduction` is unknown or, outside `jit`, a label is of no
        proxy.

    Source: Venkataramanan et al., arXiv:2106.04990, generic loss.
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"), proxies=(proxies, "k d"))
    rows = normalize(*wide(features))
    anchors, classes, where = rows, labels, ~jnp.eye(len(labels), dtype=bool)
    if proxies is not None:
        check_indices("labels", labels, len(proxies))
        anchors, classes = normalize(*wide(proxies)), jnp.arange(len(proxies))
        where = jnp.ones((len(proxies), len(labels)), bool)
    same = (classes[:, None] == labels).astype(rows.dtype)
    return pair_loss(anchors @ rows.T, same, form=form, where=where, reduction=reduction)


def multi_similarity(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    beta: Number = 2.0,
    gamma: Number = 50.0,
    margin: Number = 0.5,
    reduction: str = "mean",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes the multi-similarity loss of a batch by the cosines of its rows, without mining.

    Args:
      features: Rows, not normalised.
      labels: Class of each row.
      beta: See `multi_similarity_form`.
      gamma: See there.
      margin: See there.
      reduction: Mean over rows, or each row's loss.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, a sharpness is not above 0, or `reduction` is unknown.

    Source: Wang et al., arXiv:1904.06627, eq. 16.
    """
    form = multi_similarity_form(beta, gamma, margin)
    return class_pair_loss(features, labels, form=form, reduction=reduction)


def proxy_anchor(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    proxies: Float[Array, "k d"],
    *,
    scale: Number = 32.0,
    margin: Number = 0.1,
) -> Float[Array, ""]:
    """Computes the loss of proxies as anchors, by cosines.

    Args:
      features: Rows, not normalised.
      labels: Class of each row.
      proxies: Vector of each class, not normalised.
      scale: See `proxy_anchor_form`.
      margin: See there.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit, `scale` is not above 0 or, outside `jit`, a label is out of
        range.

    Source: Kim et al., arXiv:2003.13911, eq. 4.
    """
    form = proxy_anchor_form(scale, margin)
    return class_pair_loss(features, labels, form=form, proxies=proxies)
