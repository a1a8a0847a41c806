"""What is decoded once is kept for the next source of the same images."""

import os

import numpy as np
import pytest
from PIL import Image

from rml.data import load
from rml.data.source import KEPT, Kept, RecordSource


def of_bytes(count):
    return {"image": np.zeros(count, np.uint8)}


def test_arrays_read_longest_ago_make_room():
    kept = Kept(10)
    for key in "abc":
        kept.put(key, of_bytes(3))
    assert kept.get("a") is not None  # and so "b" was read longest ago
    kept.put("d", of_bytes(4))
    assert [key for key in "abcd" if kept.get(key) is None] == ["b"]
    kept.put("d", of_bytes(4))  # again, in its own place
    assert [key for key in "abcd" if kept.get(key) is None] == ["b"]
    kept.put("e", of_bytes(11))
    assert kept.get("e") is None
    assert kept.get("a") is not None
    kept.put("f", of_bytes(10))
    assert [key for key in "acdef" if kept.get(key) is not None] == ["f"]


def test_what_is_kept_cannot_be_changed_by_who_reads_it():
    kept = Kept(10)
    kept.put("a", of_bytes(3))
    found = kept.get("a")
    with pytest.raises(ValueError, match="read-only"):
        found["image"][0] = 1
    found["other"] = 1
    assert set(kept.get("a")) == {"image"}


@pytest.mark.parametrize("size", [None, 6])
def test_a_second_source_of_the_same_images_decodes_nothing(size, tmp_path, monkeypatch):
    read = []

    def spied(source, index):
        read.append(index)
        return unspied(source, index)

    unspied = RecordSource._read
    monkeypatch.setattr(RecordSource, "_read", spied)

    def arrays(split="test", **given):
        given = {"data_dir": tmp_path, "image_size": size} | given
        return load("digits", split, **given).arrays()

    first, count = arrays(), len(read)
    assert count == (0 if size is None else len(first["image"]))
    again = arrays()
    assert again["image"] is first["image"]
    assert again["label"] is first["label"] or size is None  # which are given another type
    assert len(read) == count
    others = [arrays("test[:50%]"), arrays(image_size=5)]
    assert all(other["image"].shape != first["image"].shape for other in others)
    file = next(tmp_path.rglob("digits-test.*"))
    os.utime(file, ns=(0, 1))
    anew = arrays()
    assert anew["image"] is not first["image"]
    np.testing.assert_array_equal(anew["image"], first["image"])


def test_images_in_folders_are_kept_for_their_source_alone(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            pixels = np.full((4, 4), 10 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    before = dict(KEPT._arrays)
    source = load(f"folder:{tmp_path}", "all")
    assert source.arrays()["image"] is source.arrays()["image"]
    assert load(f"folder:{tmp_path}", "all").arrays()["image"] is not source.arrays()["image"]
    assert KEPT._arrays.keys() == before.keys()
