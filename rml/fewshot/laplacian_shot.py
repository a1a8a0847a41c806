"""LaplacianShot: fixed prototypes, assignments smoothed over the queries' kNN graph."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rml.fewshot.bdcspn import Weights, rectified_mix
from rml.fewshot.bound import Scalar, assign, bound_updates, step_size
from rml.fewshot.checks import require_episode
from rml.fewshot.gram import (
    Graph,
    before_shift,
    class_mix,
    distances_to_mixtures,
    inner_products,
    neighbour_graph,
    shift_queries,
)
from rml.ops.precision import full_precision


@full_precision
def laplacian_shot(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    laplacian_weight: Scalar = 0.7,
    neighbors: int | None = None,
    temperature: Scalar = 1.0,
    graph: Graph = "directed",
    rectify: bool = True,
    scale: Scalar = 10.0,
    weights: Weights = "classes",
    shift: bool = True,
    steps: int = 20,
    tolerance: float = 1e-4,
) -> Float[Array, "q c"]:
    """Assigns queries by distance to fixed prototypes and by what their neighbours are assigned.

    Derivatives are of forward mode only, since the loop ends by convergence.

    Args:
      support: Support features, of about unit length for the defaults.
      support_labels: Their classes.
      query: Query features.
      num_classes: Number of classes c.
      laplacian_weight: λ; best chosen on validation classes.
      neighbors: Edges of a query, itself not counted (the public code's `knn` less one); by
        default 2, or as many as there are other queries.
      temperature: T of the entropy barrier; the paper has none, which is 1.
      graph: "directed" as in the public code, for which no energy falls by proof; "symmetric"
        has the theorem's descent.
      rectify: Rectify the prototypes by the queries, as `rectify_prototypes`.
      scale: ε of the rectification.
      weights: Kind of the rectification.
      shift: Classify the queries moved onto the support's mean, as the public code does where it
        rectifies; easyfsl does not.
      steps: The most updates.
      tolerance: Stop when no assignment changes by more.

    Returns:
      The queries' assignments.

    Raises:
      ValueError: If the arrays are not an episode, an option is unknown, `temperature` is not
        above 0, `laplacian_weight`, `scale` or `steps` is below 0, or there are no more than
        `neighbors` queries.

    Source: Ziko et al., Laplacian Regularized Few-Shot Learning, arXiv:2006.15486, and its public
      code.
    """
    require_episode(support, support_labels, query, num_classes)
    rows, s = jnp.concatenate([support, query]), support.shape[0]
    products = inner_products(rows, rows)
    if rectify:
        mix = rectified_mix(
            products, support_labels, num_classes=num_classes, scale=scale, weights=weights
        )
    else:
        mix = class_mix(support_labels, num_classes=num_classes, rows=rows.shape[0])
        mix = mix.astype(products.dtype)
    if shift:
        products = shift_queries(products, s)
    elif rectify:
        mix = before_shift(mix, s)
    unary = distances_to_mixtures(products, mix)[:, s:]
    affinity, _ = neighbour_graph(products[s:, s:], neighbors=neighbors, graph=graph, default=2)
    weighted: dict[str, Any] = dict(laplacian_weight=laplacian_weight, temperature=temperature)
    assignments, _ = bound_updates(
        assign(-unary, temperature),
        unary,
        affinity,
        step=step_size(affinity, **weighted) if graph == "symmetric" else 1.0,
        steps=steps,
        tolerance=tolerance,
        **weighted,
    )
    return assignments.T
