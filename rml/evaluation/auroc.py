"""Area under the ROC curve, by unit of the test data, so that intervals can be made of it."""

import numpy as np
from jaxtyping import Bool, Float, Integer


def auroc_by_group(
    scores: Float[np.ndarray, "*batch n"],
    positive: Bool[np.ndarray, " n"],
    groups: Integer[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "*batch g"]:
    """Computes one value for each group of examples, whose mean is the area under the ROC curve.

    The area is a mean over pairs, whose examples are not independent of one another. To first order
    it is a mean over examples, or over groups of examples that belong together, such as those of
    one day. Student's interval of these values is one of the area, and of the differences of two
    systems' values one of the difference of areas on the same examples.

    Args:
      scores: Scores of examples, the last axis; those before it are of several systems.
      positive: Mask of the positive examples.
      groups: Group of each example; each is a group of its own if not given. Groups are
        independent of one another.

    Returns:
      Values by group, in the order of the groups' numbers. Their mean is the area, which is the
      share of pairs of a positive and a negative example in which the positive has more, those with
      equal scores by half; a single value may lie outside 0 and 1.

    Raises:
      ValueError: If the mask is not of truth values, no example is positive, none is negative, a
        score is not finite, there is one group only, or not one group an example is given.

    Source: DeLong, DeLong and Clarke-Pearson 1988, "Comparing the Areas under Two or More
      Correlated Receiver Operating Characteristic Curves: A Nonparametric Approach"; with groups
      Obuchowski 1997, "Nonparametric Analysis of Clustered ROC Curve Data".
    """
    above, below = _placements(scores, positive)
    area = above.mean(-1, keepdims=True)
    share = np.empty(scores.shape, np.float64)
    share[..., positive] = (above - area) / above.shape[-1]
    share[..., ~positive] = (below - area) / below.shape[-1]
    if groups is None:
        groups = np.arange(scores.shape[-1])
    if np.shape(groups) != scores.shape[-1:]:
        raise ValueError(
            f"groups must hold one number for each of {scores.shape[-1]} examples, got shape "
            f"{np.shape(groups)}"
        )
    names, of = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError("the area under a ROC curve by group needs at least 2 groups, got 1")
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(len(names)))
    return np.asarray(area + len(names) * np.add.reduceat(share[..., order], starts, axis=-1))


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of positives the share of negatives below them, of negatives that of positives above."""
    from scipy.stats import rankdata  # not needed to train

    if positive.dtype != bool:
        raise ValueError(f"positive must be of truth values, got an array of type {positive.dtype}")
    if positive.all() or not positive.any():
        kind = "positive" if positive.all() else "negative"
        raise ValueError(f"the area under a ROC curve needs both classes, all examples are {kind}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    ranks = rankdata(scores, axis=-1)

    def others(rows: np.ndarray) -> np.ndarray:
        """Of rows the share of all other examples that rank below, those level with it by half."""
        within = rankdata(scores[..., rows], axis=-1)
        return np.asarray((ranks[..., rows] - within) / (~rows).sum())

    return others(positive), 1 - others(~positive)
