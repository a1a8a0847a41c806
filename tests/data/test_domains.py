"""Parts of a data set by designer: which classes and images are in each."""

import contextlib
import io

import numpy as np
import pytest

from rml.data import ArraySource, DataError, domains
from rml.errors import UserError

LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3])
DESIGNERS = np.array([0, 1, 0, 1, 2, 1, 1, 0, 1, 2, 2])


@pytest.fixture
def drawings(monkeypatch):
    """A data set of four classes by three designers, whose images state their position."""
    image = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None], (11, 2, 2, 1))
    names = {"label": tuple("abcd"), "by": ("ann", "bob", "cyd"), "kind": ("x", "y")}
    values = {"label": LABELS, "by": DESIGNERS, "kind": np.array([1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0])}

    def read(name, split, keys, data_dir=None):
        return {key: domains.Classes(values[key], names[key]) for key in keys}

    monkeypatch.setattr(domains, "read_classes", read)
    monkeypatch.setattr(
        domains, "load", lambda *_, **__: ArraySource(image, LABELS, class_names="abcd")
    )
    domains._open.cache_clear()
    yield
    domains._open.cache_clear()


def opened(*wanted, classes=3):
    return domains.open_domains(
        "set", "all", wanted, domain_key="by", label_key="label", classes=classes, image_size=(2, 2)
    )


def test_parts_share_classes_and_no_designer(drawings):
    # Classes b and d have three designers, a two and c one.
    for wanted, rows in ((("ann",), [0, 2, 7]), (("bob", "cyd"), [1, 3, 4, 8, 9, 10])):
        arrays = opened(*wanted).arrays()
        assert arrays["image"][:, 0, 0, 0].tolist() == rows
        np.testing.assert_array_equal(arrays["label"], np.searchsorted([0, 1, 3], LABELS[rows]))
    source = opened("ann")
    assert source.class_names == ("a", "b", "d")
    assert source.split != opened("bob").split
    assert opened("ann", classes=2).class_names == ("b", "d")


def test_groups_are_those_that_examples_name(drawings):
    groups = domains.groups_of_classes("set", "all", label_key="label", group_key="kind")
    assert groups == {"a": "y", "b": "x", "c": "y", "d": "x"}


def test_what_is_not_there_is_named(drawings):
    with pytest.raises(UserError, match="by of set 'bobb'; did you mean 'bob'"):
        opened("bobb")
    with pytest.raises(DataError, match="5 classes are asked for, 4 have examples"):
        opened("ann", classes=5)


def test_what_has_no_class_or_no_designer_is_left_out(tmp_path):
    """Of a prepared data set with the labels -1, classes, designers and groups are as without."""
    tfds = pytest.importorskip("tensorflow_datasets")
    rows = [(0, 0), (0, 1), (1, 0), (1, 1), (2, -1), (2, 1), (-1, 0), (-1, 1), (-1, 2)]

    class Partly(tfds.core.GeneratorBasedBuilder):
        """Images that state their position, some without class or designer."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = {
                "image": tfds.features.Tensor(shape=(1, 1, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                "by": tfds.features.ClassLabel(names=["ann", "bob", "cyd"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for at, (label, by) in enumerate(rows):
                yield at, {"image": np.full((1, 1, 1), at, np.uint8), "label": label, "by": by}

    with contextlib.redirect_stdout(io.StringIO()):
        Partly(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    keys = dict(domain_key="by", label_key="label", image_size=(1, 1), data_dir=tmp_path)
    two, three = (
        domains.open_domains("partly", "all", ["bob"], classes=count, **keys) for count in (2, 3)
    )
    assert two.class_names == ("a", "b")
    assert three.arrays()["image"].ravel().tolist() == [1, 3, 5]
    groups = domains.groups_of_classes(
        "partly", "all", label_key="label", group_key="by", data_dir=tmp_path
    )
    assert groups == {"a": "ann", "b": "ann", "c": "bob"}
