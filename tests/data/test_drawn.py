"""Batches of classes: what they hold, who reads which part, and how they go on."""

import jax
import numpy as np
import pytest

from rml.data import ArraySource, class_batches
from rml.errors import UserError

LABELS = np.array([2, 0, 1, -1, 2, 2, 0, 1, 3, 1, 2, 0])


def source(labels=LABELS, classes=4):
    return ArraySource(
        np.arange(float(len(labels)))[:, None], labels, class_names="abcd"[:classes], name="few"
    )


@pytest.mark.parametrize("in_memory_bytes", [2**20, 0])
def test_a_batch_has_as_many_examples_of_as_many_classes(in_memory_bytes):
    batches = iter(class_batches(
        source(), classes=3, examples=2, seed=0, in_memory_bytes=in_memory_bytes
    ))  # fmt: skip
    seen, of_one = set(), set()
    for _ in range(60):
        batch = next(batches)
        rows = batch["image"][:, 0].astype(int)
        np.testing.assert_array_equal(batch["label"], LABELS[rows])
        classes = batch["label"].reshape(3, 2)
        assert (classes[:, 0] == classes[:, 1]).all()
        assert len(set(classes[:, 0].tolist())) == 3
        for label, pair in zip(classes[:, 0].tolist(), rows.reshape(3, 2), strict=True):
            assert label == 3 or pair[0] != pair[1]  # the class 3 has one example
            of_one.add(label)
        seen |= set(rows.tolist())
    assert of_one == {0, 1, 2, 3}
    assert seen == set(np.flatnonzero(LABELS >= 0).tolist())


def test_both_ways_of_reading_give_the_same_batches():
    of_memory, by_example = (
        next(iter(class_batches(source(), classes=2, examples=3, seed=5, in_memory_bytes=size)))
        for size in (2**20, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, of_memory, by_example)


@pytest.mark.parametrize("in_memory_bytes", [2**20, 0])
def test_batches_resume_where_they_stopped_and_differ(in_memory_bytes):
    def started():
        return iter(class_batches(
            source(), classes=2, examples=2, seed=3, in_memory_bytes=in_memory_bytes
        ))  # fmt: skip

    batches = started()
    first = next(batches)
    state = batches.get_state()
    second = next(batches)
    resumed = started()
    resumed.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, next(resumed), second)
    assert (first["image"] != second["image"]).any()
    jax.tree.map(np.testing.assert_array_equal, next(started()), first)


def test_parts_of_a_batch_are_its_classes():
    def second(part, parts):
        batches = iter(class_batches(
            source(), classes=4, examples=2, seed=1, part=part, parts=parts
        ))  # fmt: skip
        return [next(batches) for _ in range(2)][1]

    whole, parts = second(0, 1), [second(part, 2) for part in range(2)]
    jax.tree.map(lambda w, *p: np.testing.assert_array_equal(np.concatenate(p), w), whole, *parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 5}, "'few' has 4 classes with examples, expected at least the 5"),
        ({"classes": 0}, "batches of 0 classes with 2 examples each: expected numbers above 0"),
        ({"examples": 0}, "batches of 2 classes with 0 examples each: expected numbers above 0"),
        ({"classes": 3, "parts": 2}, "each for 2 parts: .* a multiple of that of the parts"),
        ({"part": 1}, r"part=1 is not in 0\.\.0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_batches_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        class_batches(source(), **{"classes": 2, "examples": 2, "seed": 0, **options})


def test_a_source_without_labels_is_refused():
    with pytest.raises(UserError, match="'few' has no example of a known class"):
        class_batches(source(np.full(4, -1)), classes=1, examples=1, seed=0)
