"""Fashion-MNIST, whole, as Debian carries it."""

import gzip
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rml import assets
from rml.data import packaged
from rml.data.errors import DataError
from rml.data.packaged import SEED, Fetched, image
from rml.data.splits import interleave

NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
HEADER = {"images": 16, "labels": 8}  # bytes of an IDX file
SIDE = 28


class FashionMnist(Fetched):
    """Photographs of clothes in ten classes: 28x28 grey, 60,000 train, 10,000 test (Zalando, 2017).

    Every slice holds the classes in near equal proportion.

    Ground truth: the kinds that the shop's own experts gave.

    Splits: the published ones.
    """

    name = "fashion_mnist"
    ASSETS = ("fashion_mnist",)

    def _features(self) -> dict[str, Any]:
        return {
            "image": image(SIDE, channels=1),
            "label": tfds.features.ClassLabel(names=list(NAMES)),
        }

    def _examples(self) -> Mapping[str, Iterable[dict[str, Any]]]:
        files = {
            path.rpartition("/")[2].removesuffix("-ubyte.gz"): gzip.decompress(content)
            for path, content in assets.members("fashion_mnist", "*-ubyte.gz")
        }
        return {
            split: _examples(files[f"{start}-images-idx3"], files[f"{start}-labels-idx1"])
            for split, start in (("train", "train"), ("test", "t10k"))
        }


def _examples(images: bytes, labels: bytes) -> Iterable[dict[str, Any]]:
    """Examples of two IDX files."""
    pixels = np.frombuffer(images, np.uint8, offset=HEADER["images"]).reshape(-1, SIDE, SIDE, 1)
    classes = np.frombuffer(labels, np.uint8, offset=HEADER["labels"])
    if len(pixels) != len(classes):
        raise DataError(f"fashion_mnist has {len(pixels)} images and {len(classes)} labels")
    for at in interleave(classes, seed=SEED)[: packaged.MOST]:
        yield {"image": pixels[at], "label": int(classes[at])}
