"""Parts of a data set by designer: which classes and images are in each."""

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
