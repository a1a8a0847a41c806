"""Label propagation over the kNN graph of an episode."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar, in_type
from rml.fewshot.checks import one_hot, require_episode
from rml.fewshot.gram import gaussian, gram, mean_square_length, neighbor_count, squared_distances
from rml.ops.graph import nearest, symmetrize
from rml.ops.precision import full_precision
from rml.ops.shapes import check_above_0

TOLERANCE = 1e-6
"""Share of itself by which no label changes in a step once all have settled."""

STEPS = 10_000
"""The most steps, of which each brings labels one edge further."""


@full_precision
def label_propagation(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    alpha: Scalar = 0.8,
    neighbors: int | None = None,
    bandwidth: Scalar | None = None,
) -> Float[Array, "q c"]:
    """Spreads the support's labels along a kNN graph until they settle.

    With S = D^-1/2 W D^-1/2 of the graph's affinities W, F ← α S F + (1 - α) Y is repeated until no
    label changes by more than `TOLERANCE` of itself. Labels are then short of their limit
    (1 - α) (I - α S)^-1 Y by about `TOLERANCE` α / (1 - α) of themselves. Above an α of 0.999
    `STEPS` may end the loop before, further from the limit.

    Args:
      support: Support features.
      support_labels: Their classes.
      query: Query features.
      num_classes: Number of classes c.
      alpha: Share of a point's label that comes from its neighbours, in (0, 1).
      neighbors: Edges of a point; by default 10, or as many as there are other points.
      bandwidth: σ of the affinity exp(-|x - y|² / 2σ²); by default the root mean square length
        of the edges (ours).

    Returns:
      The queries' shares of the labels; uniform where none arrives.

    Raises:
      ValueError: If the arrays are not an episode, it has no more than `neighbors` points, `alpha`
        is not above 0 and below 1, or `bandwidth` is not above 0.

    Source: Zhou et al. 2004, Learning with Local and Global Consistency, as documented for
      `sklearn.semi_supervised.LabelSpreading`; a kNN graph as in Liu et al., arXiv:1805.10002.
    """
    require_episode(support, support_labels, query, num_classes)
    check_above_0(bandwidth=bandwidth)
    if isinstance(alpha, int | float | np.number) and not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected a number above 0 and below 1")
    rows = jnp.concatenate([support, query])
    d2 = squared_distances(gram(rows))
    (alpha,) = in_type(d2.dtype, alpha)
    edges = nearest(d2, k=neighbor_count(neighbors, len(rows), default=10))
    width = jnp.sqrt(mean_square_length(edges, d2)) if bandwidth is None else bandwidth
    affinity = symmetrize(edges) * gaussian(d2, width)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.sum(affinity, axis=1), 1e-30))
    spread = scale[:, None] * affinity * scale
    start = jnp.zeros((rows.shape[0], num_classes), d2.dtype)
    start = start.at[: support.shape[0]].set(one_hot(support_labels, num_classes, d2))
    # Of the gradient, a sum over all points, what is far away is a small part.
    labels = jax.lax.custom_linear_solve(
        lambda f: f - alpha * (spread @ f), start, _settled,
        transpose_solve=lambda turned, b: jax.scipy.sparse.linalg.cg(
            turned, b, tol=1e-6, maxiter=1000
        )[0],
    )[support.shape[0] :]  # fmt: skip
    total = jnp.sum(labels, axis=1, keepdims=True)
    return jnp.where(total > 0, labels / jnp.where(total > 0, total, 1), 1 / num_classes)


def _settled(matvec: Callable[[Array], Array], b: Array) -> Array:
    """Repeats f ← f - A f + b, that is α S f + b, until it changes no more.

    These are sums of what is not negative: a label that has come far is small, and exact among the
    small. A solver's error is small beside the labels at their sources, which is not enough there.
    """

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        f, _, number = state
        new = f - matvec(f) + b
        moving = jnp.any(jnp.abs(new - f) > TOLERANCE * jnp.abs(new))
        return new, moving, number + 1

    start = b, jnp.array(True), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda s: s[1] & (s[2] < STEPS), step, start)[0]
