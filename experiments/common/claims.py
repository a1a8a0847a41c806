"""Families of claims that several recipes make."""

from rml.training import Claim


def features_are_learned(source: str) -> tuple[Claim, ...]:
    """Claims that pretraining beats raw pixels and the same encoder untrained.

    Args:
      source: The paper; data and margins are this repository's.

    Returns:
      Four claims on the metrics of `ImageEvaluator.compare`.
    """
    source = f"{source}: features are better; data and margin are this repository's"
    return (
        Claim("kNN on the features is above kNN on raw pixels by 2 points",
              "knn_over_pixels", ">=", 0.02, source),
        Claim("kNN is above the untrained encoder's by 2 points",
              "knn_over_untrained", ">=", 0.02, source),
        Claim("A linear probe is above one on raw pixels by 5 points",
              "linear_probe_over_pixels", ">=", 0.05, source),
        Claim("A linear probe is above the untrained encoder's by 1 point",
              "linear_probe_over_untrained", ">=", 0.01, source),
    )  # fmt: skip
