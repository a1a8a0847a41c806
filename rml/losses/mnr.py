"""Multiple-negatives ranking: every other document of the batch is a negative."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rml.losses.infonce import info_nce
from rml.ops.shapes import check_shapes
from rml.ops.similarity import normalize


def multiple_negatives_ranking(
    queries: Float[Array, "n d"],
    documents: Float[Array, "n d"],
    *,
    temperature: float | Float[Array, ""] = 0.05,
    hard_negatives: Float[Array, "n h d"] | None = None,
    false_negatives: Bool[Array, "n l"] | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes the cross-entropy of each query's document among all documents by cosine.

    Args:
      queries: Queries, not normalised.
      documents: Documents, row i answering query i.
      temperature: Divides the cosine similarities; above 0.
      hard_negatives: h further documents mined for each query; they are negatives for all.
      false_negatives: Where a document, or behind all of them a hard negative, answers the query
        too and is left out; row i keeps its own document.
      reduction: Mean over the queries, or each query's loss.
      block_size: Rows of one strip of logits; automatic by default.

    Returns:
      The loss.

    Raises:
      ValueError: If shapes do not fit.

    Source: Henderson et al. 2017, Efficient Natural Language Response Suggestion for Smart Reply,
    section 4.4; cosine and temperature as in Reimers & Gurevych 2019, Sentence-BERT.
    """
    check_shapes(
        queries=(queries, "n d"),
        documents=(documents, "n d"),
        hard_negatives=(hard_negatives, "n h d"),
    )
    negatives = None
    if hard_negatives is not None:
        negatives = normalize(jnp.reshape(hard_negatives, (-1, hard_negatives.shape[-1])))
    return info_nce(
        normalize(queries),
        normalize(documents),
        temperature=temperature,
        negatives=negatives,
        false_negatives=false_negatives,
        reduction=reduction,
        block_size=block_size,
    )
