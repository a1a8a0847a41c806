"""Retrieval among examples of classes, each a query for the others of its class."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.ops.shapes import check_count, check_shapes
from rml.ops.similarity import normalize
from rml.ops.topk import topk


def class_retrieval(
    features: Float[Array, "n d"], labels: Int[Array, " n"], *, cutoffs: Sequence[int] = (1,)
) -> dict[str, Float[Array, " q"]]:
    r"""Searches every example's nearest others by cosine, and measures which are of its class.

    With R the other examples of a query's class and $r_i$ whether the i-th nearest is one of them,
    `recall@k` is 1 if any of the first k is, `r_precision` is $\frac{1}{R} \sum_{i \le R} r_i$, and
    `map@r` is $\frac{1}{R} \sum_{i \le R} r_i P_i$ with $P_i$ the share of them among the first i.

    Args:
      features: Embeddings, not normalised.
      labels: Class of each.
      cutoffs: Values of k.

    Returns:
      `recall@k` for each k, `r_precision` and `map@r`, each of the q queries whose class has
      another example, in the order of the examples.

    Raises:
      ValueError: If shapes do not fit, a cutoff is no whole number of at least 1, or not below the
        number of examples, or no class has two examples.

    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020, arXiv:2003.08505, section
    3.1; Recall@k as in Oh Song et al., arXiv:1511.06452.
    """
    check_shapes(features=(features, "n d"), labels=(labels, "n"))
    for k in cutoffs:
        check_count(1, cutoff=k)
        if k >= len(labels):
            raise ValueError(f"cutoff is {k}, expected less than the {len(labels)} examples")
    known = np.asarray(labels)
    _, group, sizes = np.unique(known, return_inverse=True, return_counts=True)
    others = sizes[group] - 1
    if not others.any():
        raise ValueError(f"labels are {len(sizes)} classes of one example, expected two of a class")
    depth = max(*cutoffs, int(others.max()))
    _, found = topk(normalize(features), normalize(features), k=depth, exclude_self=True)
    asked = np.flatnonzero(others)
    # A row that is no neighbour, of features that are no numbers, is of no class.
    hit = (jnp.asarray(known)[found] == jnp.asarray(known)[:, None]) & (found >= 0)
    hit, relevant = hit[asked], jnp.asarray(others[asked])
    within = hit & (jnp.arange(depth) < relevant[:, None])
    share = jnp.cumsum(hit, axis=1) / jnp.arange(1, depth + 1)
    return {f"recall@{k}": jnp.any(hit[:, :k], axis=1).astype(jnp.float32) for k in cutoffs} | {
        "r_precision": jnp.sum(within, axis=1) / relevant,
        "map@r": jnp.sum(jnp.where(within, share, 0), axis=1) / relevant,
    }
