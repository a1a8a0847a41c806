"""What the few-shot experiments share: classes split into base, validation and novel."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from experiments.contrastive.common import open_split
from rml import data
from rml.errors import UserError

PARTS = ("base", "validation", "novel")
SAME = "base"
"""Value of `classes.validation` for held-out images of the base classes."""


def num_base(config: Any) -> int:
    """Number of base classes, known without opening data."""
    base = config.classes.base
    return base if isinstance(base, int) else len(base)


def split_classes(
    wanted: Any, present: Mapping[str, Int[np.ndarray, " c"]], names: Mapping[str, str]
) -> dict[str, Int[np.ndarray, " k"]]:
    """Classes of each part.

    Args:
      wanted: For each of `PARTS` the classes as a list or as a number of classes, which are taken
        from those that no earlier part has: in ascending order, or shuffled by `seed` if it is not
        None. `validation` may be "base": the base classes again, for images that are held out.
      present: Classes that the part's split of the data holds.
      names: The part's split, for messages.

    Returns:
      Class numbers of each part.

    Raises:
      UserError: Parts overlap, or name more classes or other classes than there are.
    """
    same = wanted.validation == SAME
    parts = [part for part in PARTS if not (same and part == "validation")]
    chosen: dict[str, np.ndarray] = {}
    for part in parts:
        value = wanted[part]
        if isinstance(value, str):
            raise UserError(
                f"classes.{part} is {value!r}, expected a number of classes, a list of them"
                + (f" or {SAME!r}" if part == "validation" else "")
            )
        if isinstance(value, int):
            continue
        chosen[part] = np.asarray(value, int)
        missing = np.setdiff1d(chosen[part], present[part]).tolist()
        if missing:
            raise UserError(
                f"classes.{part} names {missing[:8]}, expected classes that data.{part}="
                f"{names[part]!r} holds: {_shorten(present[part])}"
            )
    taken = {int(c): part for part, classes in chosen.items() for c in classes}
    for part in (part for part in parts if part not in chosen):
        free = np.array([c for c in np.unique(present[part]) if int(c) not in taken], int)
        if not 0 < wanted[part] <= len(free):
            raise UserError(
                f"classes.{part} is {wanted[part]}, expected 1 to {len(free)}: data.{part}="
                f"{names[part]!r} holds {len(present[part])} classes, of which other parts have "
                f"{len(present[part]) - len(free)}"
            )
        if wanted.seed is not None:
            free = np.random.default_rng(wanted.seed).permutation(free)
        chosen[part] = np.sort(free[: wanted[part]])
        taken |= {int(c): part for c in chosen[part]}
    for part, classes in chosen.items():
        stolen = [int(c) for c in classes if taken[int(c)] != part]
        if stolen or len(set(classes.tolist())) < len(classes):
            other = taken[stolen[0]] if stolen else part
            raise UserError(
                f"classes.{part} and classes.{other} share {_shorten(stolen or classes)}; expected "
                "every class in one part, once"
            )
    if same:
        chosen["validation"] = chosen["base"]
    return chosen


def select(source: data.Source, classes: Int[np.ndarray, " k"]) -> data.ArraySource:
    """The examples of some classes of a source, which become classes 0 to k - 1 in that order."""
    arrays = source.arrays()
    number = np.full(source.num_classes, -1)
    number[classes] = np.arange(len(classes))
    label = number[arrays["label"]]
    kept = label >= 0
    return data.ArraySource(
        arrays["image"][kept],
        label[kept],
        class_names=[source.class_names[c] for c in classes],
        name=source.name,
        split=source.split,
    )


class Parts:
    """The parts of a config's data; nothing is opened before it is needed.

    `data.base` names the split with the training images, `data.held_out` that with the base
    classes' held-out images, `data.validation` and `data.novel` those of the episodes.
    """

    def __init__(self, config: Any):
        """Remembers the config, of which `data` and `classes` are read."""
        self.config = config

    def __getitem__(self, part: str) -> data.ArraySource:
        return self._parts[part]

    @cached_property
    def _parts(self) -> dict[str, data.ArraySource]:
        names = {part: self.config.data[part] for part in (*PARTS, "held_out")}
        opened = {name: self._open(name) for name in dict.fromkeys(names.values())}
        present = {part: np.unique(opened[name].arrays()["label"]) for part, name in names.items()}
        classes = split_classes(self.config.classes, present, names)
        if self.config.classes.validation == SAME and names["validation"] == names["base"]:
            raise UserError(
                f"classes.validation is {SAME!r} and data.validation is data.base="
                f"{names['base']!r}, expected another split: held-out images of the base classes"
            )
        classes["held_out"] = classes["base"]
        return {part: select(opened[name], classes[part]) for part, name in names.items()}

    def _open(self, split: str) -> data.Source:
        if len(self.config.data.image_shape) == 1:  # vectors have no size to be brought to
            return data.load(self.config.data.name, split, data_dir=self.config.data.data_dir)
        config = ConfigDict({"data": self.config.data.to_dict() | {"split": split}})
        return open_split(config, "split")


def _shorten(classes: Any) -> str:
    shown = ", ".join(str(int(c)) for c in classes[:8])
    return shown + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
