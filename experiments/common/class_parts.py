"""Images of classes in three parts, for training, validation and novel, and intervals over splits.

Recipes that judge what they learn on classes of which no example was seen share them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.images import open_images
from rml import data
from rml.data.classes import PARTS, SAME, open_parts
from rml.ops.intervals import MeanInterval, t_interval


def num_classes(config: Any, part: str) -> int:
    """Number of classes of a part, known without opening data; 0 where they are the base's."""
    wanted = config.classes[part]
    if wanted == SAME:
        return 0
    return wanted if isinstance(wanted, int) else len(wanted)


def image_parts(config: Any) -> dict[str, data.ArraySource]:
    """Images of each part of a config's data, and held-out ones of the base classes.

    `data.base` names the split with the training images, `data.held_out` that with the base
    classes' held-out images, `data.validation` and `data.novel` those of the episodes.
    """

    def open_part(part: str) -> data.Source:
        if len(config.data.image_shape) == 1:  # vectors have no size to be brought to
            return data.load(config.data.name, config.data[part], data_dir=config.data.data_dir)
        if "label_key" not in config.data:
            return open_images(config, part)
        return data.load(
            config.data.name, config.data[part], data_dir=config.data.data_dir,
            image_size=config.data.image_shape[:2], label_key=config.data.label_key,
        )  # fmt: skip

    splits = {part: config.data[part] for part in (*PARTS, "held_out")}
    return open_parts(open_part, config.classes, splits, seed=config.classes.seed)


def over_splits(config: Any, values: Sequence[float]) -> MeanInterval:
    """Computes the mean over splits and its interval; splits overlap in their novel classes."""
    novel, *others = (num_classes(config, part) for part in ("novel", "base", "validation"))
    return t_interval(np.array(values), overlap=novel / sum(others))
