"""Classes split into base, validation and novel ones, and features that a file has so split."""

import numpy as np
import pytest

from rml.data.classes import (
    PARTS,
    first_of_each_class,
    open_parts,
    read_feature_parts,
    select_classes,
    split_classes,
)
from rml.data.source import ArraySource
from rml.errors import UserError

PRESENT = {part: np.arange(10) for part in PARTS}
SPLITS = dict.fromkeys(PARTS, "all")


def test_counted_classes_are_disjoint_and_lists_stay():
    found = split_classes(dict(base=4, validation=3, novel=(0, 9)), PRESENT, SPLITS)
    assert {part: v.tolist() for part, v in found.items()} == {
        "base": [1, 2, 3, 4], "validation": [5, 6, 7], "novel": [0, 9]
    }  # fmt: skip
    shuffled = split_classes(dict(base=4, validation=3, novel=3), PRESENT, SPLITS, seed=0)
    assert sorted(np.concatenate(list(shuffled.values())).tolist()) == list(range(10))
    assert shuffled["base"].tolist() != [0, 1, 2, 3]
    assert all((np.diff(classes) > 0).all() for classes in shuffled.values())
    others = [
        split_classes(dict(base=4, validation=3, novel=3), PRESENT, SPLITS, seed=s)["base"]
        for s in range(4)
    ]
    assert len({tuple(classes.tolist()) for classes in others}) == 4
    same = split_classes(dict(base=(2, 3), validation="base", novel=2), PRESENT, SPLITS)
    assert same["validation"].tolist() == [2, 3]
    assert same["novel"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (dict(base=(0, 1), validation=(1, 2), novel=(3,)), "classes.base and classes.validation"),
        (dict(base=(0, 0), validation=(1,), novel=(3,)), "expected every class in one part, once"),
        (dict(base=(0,), validation=(1,), novel=(12,)), r"classes.novel names \[12\]"),
        (dict(base=8, validation=3, novel=1), "classes.validation is 3, expected 1 to 2"),
        (dict(base=0, validation=3, novel=1), "classes.base is 0"),
        (dict(base="novel", validation=3, novel=1), "classes.base is 'novel'"),
    ],
)
def test_splits_of_classes_that_cannot_be_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        split_classes(classes, PRESENT, SPLITS)


def numbered(split, labels=(0, 1, 2, 3, 0, 1, 2, 3)):
    """Images whose one pixel is their number."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource(images, np.array(labels), class_names="abcd", name="four", split=split)


def test_selected_classes_are_numbered_in_the_order_given():
    chosen = select_classes(numbered("all"), np.array([3, 1]))
    assert chosen.class_names == ("d", "b")
    assert chosen.arrays()["image"].ravel().tolist() == [1, 3, 5, 7]
    assert chosen.labels.tolist() == [1, 0, 1, 0]


def test_parts_open_each_split_once():
    opened = []

    def open_part(part):
        opened.append(part)
        return numbered(part)

    splits = dict(base="train", held_out="test", validation="train", novel="test")
    wanted = dict(base=(2,), validation=(0, 1), novel=(3,))
    parts = open_parts(open_part, wanted, splits)
    assert opened == ["base", "held_out"]
    assert {part: source.class_names for part, source in parts.items()} == {
        "base": ("c",), "held_out": ("c",), "validation": ("a", "b"), "novel": ("d",)
    }  # fmt: skip
    assert {part: source.split for part, source in parts.items()} == {
        "base": "base", "held_out": "held_out", "validation": "base", "novel": "held_out"
    }  # fmt: skip
    with pytest.raises(UserError, match="expected another split: held-out"):
        open_parts(open_part, wanted | dict(validation="base"), splits)


@pytest.mark.parametrize(
    ("base", "validation", "word"),
    [
        ("train", "train[80%:]", "shares"),
        ("train[:80%]", "train[79%:]", "shares"),
        ("train[:5]", "train[4:]", "shares"),
        ("all", "test", "shares"),
        ("train[:80%]", "train[-1000:]", "may share"),
        ("train[:80%]", "train[80%:]", ""),
        ("train[:-5]", "train[-5:]", ""),
        ("train", "test", ""),
    ],
)
def test_validation_on_base_classes_sees_no_training_example(base, validation, word):
    def opened(classes):
        splits = dict(base=base, held_out=base, validation=validation, novel="all")
        return open_parts(numbered, dict(base=2, validation=classes, novel=1), splits)

    assert opened(1)["validation"].class_names == ("c",)  # of other classes no split is refused
    if not word:
        assert opened("base")["validation"].class_names == ("a", "b")
        return
    with pytest.raises(UserError) as error:
        opened("base")
    assert str(error.value).startswith(
        f"classes.validation is 'base' and data.validation={validation!r} {word} examples with "
        f"data.base={base!r}, expected another split"
    )


def test_examples_without_a_label_are_of_no_class():
    """TFDS writes the label -1 where there is none."""
    labels = (0, 1, 2, 3, -1, 3, -1)
    chosen = select_classes(numbered("all", labels), np.array([3, 1]))
    assert chosen.arrays()["image"].ravel().tolist() == [1, 3, 5]
    assert chosen.labels.tolist() == [1, 0, 0]
    wanted = dict(base=2, validation=1, novel=1)
    parts = open_parts(lambda part: numbered(part, labels), wanted, SPLITS)
    assert [parts[part].class_names for part in PARTS] == [("a", "b"), ("c",), ("d",)]
    with pytest.raises(UserError, match=r"classes\.novel is 2, expected 1 to 1: .* 4 classes"):
        open_parts(lambda part: numbered(part, labels), wanted | dict(novel=2), SPLITS)
    assert first_of_each_class(np.array([-1, 1, -1, 0, 1, 1]), 2).tolist() == [1, 3, 4]
    assert first_of_each_class(np.array([-1, -1]), 2).tolist() == []


def test_the_first_examples_of_each_class():
    labels = np.array([1, 0, 1, 1, 3, 0, 0, 1])
    assert first_of_each_class(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_of_each_class(labels, 9).tolist() == list(range(8))


def test_features_of_a_file_are_checked(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.normal(size=(6, 3)) for part in PARTS}
    arrays |= {f"y_{part}": np.array(["b", "a", "b", "a", "c", "c"]) for part in PARTS}
    path = tmp_path / "features.npz"
    np.savez(path, **arrays)
    features = read_feature_parts(path)
    assert list(features) == ["base", "validation", "novel"]
    assert features["novel"][1].tolist() == [1, 0, 1, 0, 2, 2]
    np.testing.assert_allclose(features["base"][0], arrays["x_base"], rtol=1e-6)
    for change, message in (
        ({"x_novel": arrays["x_novel"][:, :2]}, r"x_novel is \[6, 2\]"),
        ({"y_base": arrays["y_base"][:5]}, r"y_base \[5\]"),
        ({"x_validation": arrays["x_validation"] * np.nan}, "x_validation holds NaN"),
        ({"x_novel": np.full((6, 3), 1e300)}, "x_novel holds .* infinite values in float32"),
        ({"x_base": np.full((6, 3), "a")}, "x_base has type <U1, expected numbers"),
        ({"x_base": np.float32(3)}, r"x_base is \[\] and y_base \[6\], expected \[n, d\]"),
    ):
        np.savez(path, **(arrays | change))
        with pytest.raises(UserError, match=message):
            read_feature_parts(path)
    np.savez(path, x_base=arrays["x_base"])
    with pytest.raises(UserError, match="lack y_base, x_validation"):
        read_feature_parts(path)
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    for body in (b"none", b"", whole[: len(whole) // 2]):
        path.write_bytes(body)
        with pytest.raises(UserError, match=r"features\.npz is no readable \.npz file"):
            read_feature_parts(path)
    path.write_bytes(whole[:90] + bytes(20) + whole[110:])
    with pytest.raises(UserError, match=r"features\.npz: array 'x_base' is damaged"):
        read_feature_parts(path)
    np.save(tmp_path / "one.npy", arrays["x_base"])
    with pytest.raises(UserError, match=r"one\.npy is one array, expected an \.npz file"):
        read_feature_parts(tmp_path / "one.npy")
