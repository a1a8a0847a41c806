"""What builders of fetched archives share: what of drawings is left out is counted."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rml.data import builders
from rml.data.packaged import Drawn, image, split_of

GROUPS = 60


class Toy(Drawn):
    """Smooth noise; every group's drawing, every fifth blank, one drawing twice in a test group."""

    name = "toy_drawings"

    def _features(self) -> dict[str, Any]:
        return {"image": image(64), "group": tfds.features.Text()}

    def _drawings(self):
        rng = np.random.default_rng(0)
        trained = None
        for at in range(GROUPS):
            key = f"group {at}"
            cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            pixels = np.asarray(Image.fromarray(cells).resize((64, 64), Image.Resampling.BICUBIC))
            if at % 5 == 4:
                yield key, None
                continue
            if split_of(key) == "train":
                trained = pixels
            yield key, {"image": pixels, "group": key}
            if split_of(key) == "test" and trained is not None:
                yield key, {"image": trained, "group": key}


def test_blank_drawings_and_near_copies_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(builders.KNOWN, Toy.name, Toy)
    told = []
    where = builders.prepare(Toy.name, tmp_path, lambda *progress: told.append(progress))
    info = tfds.builder_from_directory(where).info
    shown = [split_of(f"group {at}") for at in range(GROUPS) if at % 5 != 4]
    assert shown.count("test") > 0
    expected = {split: shown.count(split) for split in ("train", "validation", "test")}
    assert {split: one.num_examples for split, one in info.splits.items()} == expected
    assert info.metadata["blank"] == GROUPS // 5
    copies = {"train": 0, "validation": 0, "test": shown.count("test")}
    assert info.metadata["near_copies"] == copies
    for done, count in (("read", len(shown) + shown.count("test")), ("written", len(shown))):
        assert [one[2] for one in told if one[1] == done] == list(range(1, count + 1))
    assert [one[1] for one in told] == sorted(one[1] for one in told)  # first read, then written
