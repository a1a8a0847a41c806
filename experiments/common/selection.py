"""By which metric options are chosen: a recipe names it as its `SELECTION`."""

from typing import Any, NamedTuple


class Selection(NamedTuple):
    """A metric that says which of several runs is better.

    Attributes:
      metric: Name in the run's results or in its `metrics.jsonl`.
      part: Key of `config.data` whose split it is measured on.
      mode: "max" where more is better, "min" where less is.
    """

    metric: str
    part: str
    mode: str = "max"

    def why_not(self, config: Any) -> str:
        """Why nothing may be chosen by it with this config: it is no validation metric.

        Args:
          config: The run's config.

        Returns:
          The reason, empty where the split is neither test nor training data.
        """
        measured, trained = (str(config.data.get(part)) for part in (self.part, "train"))
        if "test" in measured.partition("[")[0]:
            return f"{self.metric} is measured on the split {measured!r}"
        bases = {split.partition("[")[0] for split in (measured, trained)}
        if measured == trained or (len(bases) == 1 and not ("[" in measured and "[" in trained)):
            return f"{self.metric} is measured on the training data ({measured!r})"
        return ""


NEIGHBOURS = Selection("knn", "test")
"""Accuracy of nearest neighbours, where `data.test` names a part held out of the training data."""
NDCG = Selection("eval/ndcg", "validation")
"""nDCG@10 of the validation collections during training, the last one."""
