"""What is odd in sources that can be read."""

import re

import numpy as np
import pytest

from rml.data import ArraySource, DataError, oddities, require_labels

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 6, 5, 1), dtype=np.uint8)
LABELS = np.arange(60) % 3


def source(start=0, stop=60, image=IMAGES, label=LABELS, classes=3, split="train"):
    names = [str(label) for label in range(classes)]
    own = slice(start, stop)
    return ArraySource(image[own], label[own], class_names=names, name="mine", split=split)


TRAIN, TEST = source(0, 40), source(40, 60, split="test")


def test_nothing_is_odd_in_what_is_in_order():
    assert oddities(TRAIN, TEST) == []
    vectors = IMAGES.reshape(60, -1).astype(np.float32)
    assert oddities(source(0, 40, vectors), source(40, 60, vectors, split="test")) == []


FLOATS = IMAGES.astype(np.float32)


@pytest.mark.parametrize(
    ("train", "test", "finding"),
    [
        (TRAIN, TRAIN, "train and test are both 'train' of mine"),
        (
            TRAIN,
            source(35, 60, split="test"),
            "5 of the 25 test images of mine are training images too",
        ),
        (
            source(0, 40, label=0 * LABELS),
            source(40, 60, label=0 * LABELS, split="test"),
            "of one class, '0'",
        ),
        (
            source(0, 40, label=LABELS % 2),
            TEST,
            "7 of the 20 test images of mine are of classes without",
        ),
        (source(0, 40, FLOATS), TEST, r"floats from 0 to 255, .* expect 0 to 1"),
        (source(0, 40, FLOATS / 255 - 1), TEST, "floats from -1 to 0"),
    ],
)
def test_what_is_odd_is_one_line(train, test, finding):
    (line,) = oddities(train, test)
    assert "\n" not in line
    assert re.search(finding, line)


def test_equal_images_of_other_classes_are_no_leak():
    assert oddities(TRAIN, source(0, 20, label=(LABELS + 1) % 3, split="test")) == []


@pytest.mark.parametrize("without", [["train"], ["test"], ["train", "test"]])
def test_images_are_shared_also_where_a_source_has_no_labels(without):
    none = {"label": np.full(60, -1), "classes": 0}
    train = source(0, 40, **(none if "train" in without else {}))
    test = source(33, 60, split="test", **(none if "test" in without else {}))
    assert oddities(train, test) == ["7 of the 27 test images of mine are training images too"]


def test_labels_that_are_needed():
    none = np.full(60, -1)
    bare = source(label=none, classes=0)
    assert require_labels(TRAIN, "a loss") is TRAIN
    with pytest.raises(
        DataError, match=r"contrastive\.supcon needs labels, of which mine has none"
    ):
        require_labels(bare, "contrastive.supcon")
    other = source(image=255 - IMAGES, label=none, classes=0, split="test")
    assert oddities(bare, other) == []
