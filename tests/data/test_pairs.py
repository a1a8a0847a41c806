import json

import numpy as np
import pytest
from PIL import Image

from rml.data import DataError, batches, load_pairs
from rml.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    """Writes images and lines, whole ones or as they are given; the data set's name."""

    def save(lines, images=10):
        (tmp_path / "images").mkdir(exist_ok=True)
        for number in range(images):
            pixels = RNG.integers(0, 256, (9 + number, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "pairs.jsonl").write_text("\n".join(texts))
        return f"pairs:{tmp_path / 'pairs.jsonl'}"

    return save


def line(number, text=None):
    return {"image": f"images/{number}.png", "text": text or f"text {number}"}


def test_images_of_any_size_with_one_or_more_texts(save, tmp_path):
    name = save([line(0, ["one", "two"]), "", *(line(number) for number in range(1, 10))])
    pairs = load_pairs(name, "all")
    assert len(pairs) == 10
    assert pairs.texts[:2] == (("one", "two"), ("text 1",))
    assert [pairs[at]["image"].shape for at in (0, -1)] == [(9, 12, 3), (18, 12, 3)]
    assert (pairs[0]["row"], pairs[-1]["row"]) == (0, 9)
    assert np.array_equal(pairs[3]["image"], np.asarray(Image.open(tmp_path / "images" / "3.png")))
    with pytest.raises(DataError, match="images of mixed sizes"):
        pairs.arrays()
    assert load_pairs(name, "all", image_size=(8, 6)).arrays()["image"].shape == (10, 8, 6, 3)


def test_images_are_read_when_they_are_asked_for(save, tmp_path):
    pairs = load_pairs(save([line(0), line(1)]), "all")
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    assert pairs[0]["image"].shape == (9, 12, 3)
    with pytest.raises(DataError, match=r"image file .*1\.png cannot be decoded"):
        pairs[1]


def test_splits_are_apart_and_fixed(save):
    name = save([line(number) for number in range(10)])
    train, test = load_pairs(name, "train"), load_pairs(name, "test")
    assert (len(train), len(test)) == (8, 2)
    assert sorted(train.files + test.files) == [f"images/{number}.png" for number in range(10)]
    assert train.files != tuple(sorted(train.files))
    for one in (train, test):
        assert one.texts == tuple((f"text {file[7:-4]}",) for file in one.files)
    assert load_pairs(name, "train[:50%]+test").files == train.files[:4] + test.files
    with pytest.raises(DataError, match=r"no split 'val'; there are \['test', 'train'\]"):
        load_pairs(name, "val")


@pytest.mark.parametrize("in_memory_bytes", [0, 2**20])
def test_batches_lead_to_the_texts(save, in_memory_bytes):
    pairs = load_pairs(save([line(number) for number in range(10)]), "all", image_size=4)
    images = pairs.arrays()["image"]
    found = []
    for batch in batches(
        pairs, batch_size=5, seed=0, repeat=False, in_memory_bytes=in_memory_bytes,
        transform=None if in_memory_bytes else lambda example, rng: example,
    ):  # fmt: skip
        assert np.array_equal(batch["image"], images[batch["row"]])
        found += batch["row"].tolist()
    assert sorted(found) == list(range(10))
    assert found != sorted(found)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(0), "{"], "line 2 is not JSON"),
        ([line(0), "[1]"], r"line 2 is \[1\], expected an object with 'image' and 'text'"),
        ([{"text": "a"}], "line 1: 'image' is None, expected a path"),
        ([line(0), {"image": "images/1.png"}], "line 2: 'text' is None, expected a string or"),
        ([line(0, ["a", " "])], r"line 1: 'text' is \['a', ' '\], expected one or more texts"),
        ([line(0), {"image": "images/1.png", "text": []}], r"line 2: 'text' is \[\], expected"),
        ([line(0, ["a", 3])], r"line 1: 'text' is \['a', 3\], expected"),
        ([line(0), "", line(0)], "line 3: the image 'images/0.png' is there already"),
        ([line(0), line("../images//0")], r"line 2: the image 'images/0\.png' is there"),
        ([line(0), line(77)], r"line 2: there is no image file .*images/77\.png"),
        ([], r"pairs\.jsonl is empty, expected lines with 'image' and 'text'"),
    ],
)
def test_a_broken_line_is_named(save, lines, message):
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(save(lines), "all")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(save, tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.jsonl"):
        load_pairs(f"pairs:{tmp_path / 'none.jsonl'}", "all")
    name = save([line(0)])
    (tmp_path / "pairs.jsonl").write_bytes(json.dumps(line(0)).encode() + b"\n\xff\xfe")
    with pytest.raises(DataError, match=r"line 2 is not UTF-8"):
        load_pairs(name, "all")


@pytest.mark.parametrize("name", ["pairs:", "folder:there", "digits"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match=r"unknown data set .*pairs:PATH"):
        load_pairs(name, "all")
