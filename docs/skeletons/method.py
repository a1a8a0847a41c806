r"""Alignment and uniformity: positive pairs coincide, all rows spread over the sphere.

Wang and Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity
on the Hypersphere, arXiv:2005.10242.
"""

from jaxtyping import Array, Float

from rml.evaluation import alignment, uniformity


def align_uniform(
    a: Float[Array, "n d"], b: Float[Array, "n d"], *, weight: float = 1.0, t: float = 2.0
) -> Float[Array, ""]:
    r"""Computes the alignment of two views plus the weighted uniformity of both.

    With unit rows $x_i$ of `a` and $y_i$ of `b`:

    $$
    \frac{1}{n} \sum_i \left\lVert x_i - y_i \right\rVert^2
    + \frac{w}{2} \sum_{z \in \{x, y\}} \log \frac{1}{n (n - 1)} \sum_{i \neq j}
    e^{-t \left\lVert z_i - z_j \right\rVert^2}
    $$

    Args:
      a: First views, not normalised; at least two rows.
      b: Second views, row i of the same example as row i of `a`.
      weight: Weight $w$ of the uniformity.
      t: Sharpness of the Gaussian potential.

    Returns:
      The loss.

    Raises:
      ValueError: If the shapes differ or there are fewer than two rows.

    Source: Wang and Isola, arXiv:2005.10242, Section 4.2.
    """
    return alignment(a, b) + weight * (uniformity(a, t=t) + uniformity(b, t=t)) / 2
