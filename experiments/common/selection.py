"""By which metric options are chosen: a recipe names it as its `SELECTION`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rml.data.splits import parse
from rml.errors import UserError

SPLITS = ("train", "validation", "test")
"""Splits that a data set may have, beside those that a config names."""
LARGE = 1_000_000
"""Examples of a large split."""


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
        if any("test" in name or name == "all" for name in _names(measured)):
            return f"{self.metric} is measured on the split {measured!r}"
        texts = dict(zip(keys, (measured, trained), strict=True))
        shared = [_overlap(texts, size) for size in _sizes(texts.values())]
        if not any(shared):
            return ""
        # Of a percentage and a number of examples the size decides, which is not known here.
        known = "is" if all(shared) else "may be"
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


def _names(split: str) -> list[str]:
    """The splits that a text such as `train[:80%]+validation` names."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def _sizes(texts: Iterable[str]) -> tuple[int, int]:
    """The least size of splits that leaves no text without an example, and a large one."""
    found = re.findall(r"[\[:-](\d+)(?=[:\]])", " ".join(texts))
    numbers = map(int, found)
    least = 1 + max([99, *numbers])  # of a hundred, percentages are whole numbers
    return least, max(least, min(100 * least, LARGE))


def _overlap(texts: Mapping[str, str], size: int) -> bool:
    """Whether two splits share an example where every split of the data set has one size.

    Args:
      texts: Both splits, by key of the config.
      size: Number of examples.

    Raises:
      UserError: A text is no split.
    """
    names = {name for text in texts.values() for name in _names(text)} - {"all"}
    found = []
    for key, text in texts.items():
        try:
            parts = parse(text, dict.fromkeys((*SPLITS, *names), size))
        except ValueError:
            raise UserError(
                f"{key} is {text!r}, expected splits such as 'train[:80%]' or 'train+validation'"
            ) from None
        found.append([(name, places[0], places[-1]) for name, places in parts if len(places)])
    return any(
        one == other and first <= end and begin <= last
        for one, first, last in found[0]
        for other, begin, end in found[1]
    )


NEIGHBOURS = Selection("knn", "test")
"""Accuracy of nearest neighbours, where `data.test` names a part held out of the training data."""
NDCG = Selection("eval/ndcg", "validation")
"""nDCG@10 of the validation collections during training, the last one."""
