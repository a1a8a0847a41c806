"""What is decoded once is kept for the next source of the same images."""

import os

import numpy as np
import pytest
from PIL import Image

from rml.data import load
from rml.data.source import Kept, RecordSource


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


def test_sources_without_a_key_share_nothing():
    kept = Kept(10)
    kept.put(None, of_bytes(3))
    assert kept.get(None) is None


def own_folder(path, classes="ab"):
    for label in classes:
        (path / label).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((4, 4), 10 * number, np.uint8)
            Image.fromarray(pixels).save(path / label / f"{number}.png")
    return f"folder:{path}", path / "a" / "0.png"


def own_arrays(path):
    file = path.with_suffix(".npz")
    np.savez(file, image=np.arange(96, dtype=np.uint8).reshape(6, 4, 4), label=list("aaabbb"))
    return f"npz:{file}", file


@pytest.mark.parametrize("own", [own_folder, own_arrays])
def test_own_images_are_kept_until_a_file_is_another(own, tmp_path):
    name, file = own(tmp_path / "own")

    def arrays(split="all", size=None):
        source = load(name, split, image_size=size)
        assert source.class_names == ("a", "b")
        return source.arrays()

    first = arrays()
    assert arrays()["image"] is first["image"]
    assert np.array_equal(np.sort(arrays()["label"]), [0, 0, 0, 1, 1, 1])
    assert arrays(size=2)["image"].shape == (6, 2, 2, 1)
    assert len(arrays("train[:2]")["image"]) == 2
    os.utime(file, ns=(0, 1))
    anew = arrays()
    assert anew["image"] is not first["image"]
    np.testing.assert_array_equal(anew["image"], first["image"])


def test_files_that_are_read_without_labels_have_none_though_they_were_read_with(tmp_path):
    name, _ = own_folder(tmp_path / "own", classes="a")
    assert set(load(name, "all").arrays()["label"]) == {0}
    bare = load(name.replace("folder:", "images:"), "all")
    assert set(bare.arrays()["label"]) == {-1}
