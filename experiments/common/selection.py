"""By which metric options are chosen: a recipe names it as its `SELECTION`."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from rml.data.splits import names, overlap


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
          The reason, empty where the split has neither test nor training data in it.

        Raises:
          UserError: A split of the config cannot be read.
        """
        keys = (f"data.{self.part}", "data.train")
        measured, trained = (str(config.data.get(key.removeprefix("data."))) for key in keys)
        if any("test" in name or name == "all" for name in names(measured)):
            return f"{self.metric} is measured on the split {measured!r}"
        shared = overlap(dict(zip(keys, (measured, trained), strict=True)))
        if shared is False:
            return ""
        known = "is" if shared else "may be"
        return f"{self.metric} {known} measured on the training data ({measured!r} of {trained!r})"


def at_edge(chosen: float, tried: Iterable[float]) -> bool:
    """Tells whether the least or the largest of several values was chosen.

    Beside it a better one may lie. Of one value or two each is an end.

    Args:
      chosen: The value.
      tried: All that were tried.
    """
    values = tuple(tried)
    return chosen in (min(values), max(values))


NEIGHBOURS = Selection("knn", "test")
"""Accuracy of nearest neighbours, where `data.test` names a part held out of the training data."""
NDCG = Selection("eval/ndcg", "validation")
"""nDCG@10 of the validation collections during training, the last one."""
