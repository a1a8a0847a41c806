"""SwAV: the cluster that one view is assigned to is predicted from another view."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.losses.reduction import reduced
from rml.ops.shapes import check_above_0, check_between, check_shapes


def sinkhorn_codes(
    scores: Float[Array, "n k"], *, epsilon: float | Float[Array, ""] = 0.05, iterations: int = 3
) -> Float[Array, "n k"]:
    """Computes soft assignments to prototypes that use all prototypes equally.

    In turn the columns of exp(scores / ε) are scaled to the sum n / k and its rows to 1, in
    logarithms, so that no score over- or underflows. Rows sum to 1 exactly, columns after many
    iterations.

    Args:
      scores: Cosine of each row with each prototype.
      epsilon: Weight of the entropy, ε; the smaller, the harder the assignment.
      iterations: Number of scalings of columns and rows; the paper's three are an approximation.

    Returns:
      The codes, through which no gradient flows, in float32 or wider.

    Raises:
      ValueError: If `scores` has other axes or no row, `epsilon` is not above 0, or `iterations`
        is below 1.

    Source: Caron et al. 2020, SwAV, eq. 3 to 5 and the supplement's algorithm.
    """
    check_shapes(scores=(scores, "n k"))
    check_above_0(epsilon=epsilon)
    check_between(1, iterations=iterations)
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    return _scaled(jax.lax.stop_gradient(scores).astype(wide) / epsilon, iterations)


@partial(jax.jit, static_argnames="iterations")  # a loop outside would be compiled at every call
def _scaled(logits: Array, iterations: int) -> Array:
    def scale(logits: Array, _: None) -> tuple[Array, None]:
        return jax.nn.log_softmax(jax.nn.log_softmax(logits, axis=0), axis=1), None

    return jnp.exp(jax.lax.scan(scale, logits, None, iterations)[0])


def swav(
    scores: Float[Array, "v n k"],
    *,
    temperature: float | Float[Array, ""] = 0.1,
    epsilon: float | Float[Array, ""] = 0.05,
    iterations: int = 3,
    coded: int = 2,
    queue: Float[Array, "c r k"] | None = None,
    reduction: str = "mean",
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes the cross-entropy of a view's codes and the other views' softmax over prototypes.

    With codes q_c of view c and p_v = softmax(scores_v / τ), the mean over pairs c ≠ v of
    -Σ_k q_ck log p_vk. Codes are of the batch: an example's value depends on the others'.

        value = swav(jnp.stack([first, second]))  # cosines with prototypes, [2, n, k]

    Args:
      scores: Cosines of each view's rows with the prototypes, views of full resolution first.
      temperature: Divides the scores that predict, τ; above 0.
      epsilon: Weight of the entropy, ε, in `sinkhorn_codes`.
      iterations: Number of scalings in `sinkhorn_codes`.
      coded: Number of views that have codes, c of the first ones; small crops only predict.
      queue: Scores of earlier batches for each view that has codes, which are assigned beside the
        batch's where it is small against the prototypes.
      reduction: Mean over the examples, or each example's value.

    Returns:
      The value.

    Raises:
      ValueError: If `reduction` is unknown, there is no example, `coded` or the queue does not fit
        the views, `temperature` or `epsilon` is not above 0, or `iterations` is below 1.

    Source: Caron et al. 2020, Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments (arXiv:2006.09882), eq. 1 to 6; queue: Section 4.1.
    """
    check_shapes(scores=(scores, "v n k"), queue=(queue, "c r k"))
    check_above_0(temperature=temperature)
    views, n, _ = scores.shape
    if views < 2 or not 1 <= coded <= views:
        raise ValueError(f"swav needs 2 views or more and 1 to all of them coded: {views}, {coded}")
    if queue is not None and queue.shape[0] != coded:
        raise ValueError(f"the queue has scores of {queue.shape[0]} views, {coded} are coded")
    own = scores[:coded]
    if queue is not None:
        own = jnp.concatenate([own, queue.astype(own.dtype)], axis=1)
    assign = jax.vmap(lambda one: sinkhorn_codes(one, epsilon=epsilon, iterations=iterations))
    codes = assign(own)[:, :n]
    logs = jax.nn.log_softmax(scores.astype(codes.dtype) / temperature, axis=-1)
    # All pairs of views from two sums, less a view's pair with itself.
    pairs = jnp.sum(codes.sum(0) * logs.sum(0), -1) - jnp.sum(codes * logs[:coded], (0, -1))
    return reduced(-pairs / (coded * (views - 1)), reduction)
