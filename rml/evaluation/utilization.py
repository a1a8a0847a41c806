"""How far test examples lie from what a model was trained on."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.ops.topk import topk


def utilization(queries: Float[Array, "q d"], examples: Float[Array, "n d"]) -> Float[Array, ""]:
    r"""Computes the mean squared distance of queries to the nearest example.

    It is low where examples, such as training examples and mixtures of them, reach the places of
    an embedding space that queries take. Distances have the scale of the embeddings: compare those
    of different models relative to the mean distance of the queries from one another.

    Args:
      queries: Embeddings of test examples.
      examples: Embeddings of training examples.

    Returns:
      $\frac{1}{q} \sum_i \min_j \|q_i - x_j\|^2$.

    Raises:
      ValueError: If shapes do not fit.

    Source: Venkataramanan et al., It Takes Two to Tango: Mixup for Deep Metric Learning,
    arXiv:2106.04990, utilization.
    """
    nearest, _ = topk(queries, examples, k=1, metric="euclidean")
    return jnp.mean(nearest**2)
