import re
import zipfile

import numpy as np
import pytest

from rml.data import NO_LABEL, DataError, load

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 6, 5), dtype=np.uint8)
LABELS = np.repeat(np.arange(5), 10)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return f"npz:{tmp_path / 'data.npz'}"

    return save


@pytest.mark.parametrize("keys", [("image", "label"), ("x", "y"), ("image", "y")])
def test_a_file_without_splits_gets_a_stratified_one(save, keys):
    name = save(**dict(zip(keys, (IMAGES, LABELS), strict=True)))
    everything = load(name, "all")
    assert everything.image_shape == (6, 5, 1)
    assert np.array_equal(everything.arrays()["image"][..., 0], IMAGES)
    assert np.array_equal(everything.labels, LABELS)
    train, test = load(name, "train"), load(name, "test")
    assert np.bincount(train.labels).tolist() == [8] * 5
    assert np.bincount(test.labels).tolist() == [2] * 5
    rows = np.concatenate([source.arrays()["image"] for source in (train, test)])
    assert {row.tobytes() for row in rows} == {row.tobytes() for row in IMAGES}
    assert np.bincount(load(name, "train[:50%]").labels).tolist() == [4] * 5
    assert np.array_equal(load(name, "train").arrays()["image"], train.arrays()["image"])


def test_given_splits_stay_in_order_with_one_numbering(save):
    name = save(
        image_train=IMAGES[:30],
        label_train=np.array(["b", "a", "d"] * 10),
        image_test=IMAGES[30:],
        label_test=np.array(["c", "b"] * 10),
    )
    train, test = load(name, "train"), load(name, "test")
    assert train.class_names == test.class_names == ("a", "b", "c", "d")
    assert train.labels[:3].tolist() == [1, 0, 3]
    assert test.labels[:2].tolist() == [2, 1]
    assert np.array_equal(test.arrays()["image"][..., 0], IMAGES[30:])
    assert len(load(name, "all")) == len(load(name, "train+test")) == 50
    assert len(load(name, "test[:25%]")) == 5


def test_without_labels(save):
    name = save(x=IMAGES)
    train, test = load(name, "train"), load(name, "test")
    assert (len(train), len(test)) == (40, 10)
    assert not train.labelled
    assert train[0]["label"] == NO_LABEL
    assert np.array_equal(load(name, "all").arrays()["image"][..., 0], IMAGES)
    name = save(image_train=IMAGES[:30], image_test=IMAGES[30:])
    assert np.array_equal(load(name, "test").arrays()["image"][..., 0], IMAGES[30:])
    assert set(load(name, "test").labels.tolist()) == {NO_LABEL}


def test_only_a_training_split(save):
    name = save(x_train=IMAGES, y_train=LABELS)
    assert len(load(name, "train")) == 50
    with pytest.raises(DataError, match=r"no split 'test'; there are \['train'\].*'train\[80%:\]'"):
        load(name, "test")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
def test_vectors_stay_vectors(save, dtype):
    features = RNG.normal(size=(50, 7)).astype(dtype)
    source = load(save(x=features, y=LABELS), "all")
    assert source.image_shape is None
    assert source.feature_shape == (7,)
    assert source[4]["image"].dtype == np.float32
    np.testing.assert_array_equal(source.arrays()["image"], features.astype(np.float32))


def test_types_of_images(save):
    as_integers = load(save(x=IMAGES.astype(np.int64), y=LABELS), "all").arrays()["image"]
    assert as_integers.dtype == np.uint8
    assert np.array_equal(as_integers[..., 0], IMAGES)
    colour = RNG.uniform(-3, 3, size=(50, 6, 5, 3))
    kept = load(save(x=colour, y=LABELS), "all").arrays()["image"]
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept, colour.astype(np.float32))


def test_labels_with_gaps_and_one_class(save):
    source = load(save(x=IMAGES, y=np.where(LABELS > 2, 7, 3)), "all")
    assert source.class_names == ("3", "7")
    assert set(source.labels.tolist()) == {0, 1}
    assert load(save(x=IMAGES, y=np.zeros(50, np.int64)), "train").num_classes == 1


def test_integers_of_several_types_are_one_numbering(save):
    name = save(
        x_train=IMAGES[:30], y_train=LABELS[:30].astype(np.uint64) + 2**60,
        x_test=IMAGES[30:], y_test=LABELS[30:] + 2**60,
    )  # fmt: skip
    train, test = load(name, "train"), load(name, "test")
    assert train.class_names == test.class_names == tuple(str(2**60 + i) for i in range(5))
    assert train.labels.tolist() == LABELS[:30].tolist()
    assert test.labels.tolist() == LABELS[30:].tolist()


@pytest.mark.parametrize("shape", [(3, 5, 4), (4, 4, 7), (1, 1, 9), (6, 5, 2)])
def test_few_rows_of_pixels_are_no_channels(save, shape):
    image = RNG.integers(0, 256, (50, *shape), dtype=np.uint8)
    assert load(save(x=image, y=LABELS), "all").image_shape == shape


def test_image_size_resizes(save):
    assert load(save(x=IMAGES, y=LABELS), "train", image_size=(8, 4)).image_shape == (8, 4, 1)


def bad(images, at, value, dtype=np.float32):
    images = images.astype(dtype)
    images[at, 2, 2] = value
    return images


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": LABELS}, r"holds the arrays \['label'\]; expected"),
        ({"x_train": IMAGES, "x_test": IMAGES, "y_test": LABELS}, r"\['x_test', 'x_train'"),
        ({"a": IMAGES, "b": LABELS}, r"\['a', 'b'\]"),
        ({"x": IMAGES, "y": LABELS, "x_train": IMAGES, "y_train": LABELS}, "holds the arrays"),
        ({"x": IMAGES, "y": LABELS[:-1]}, "x has 50 examples, y has 49"),
        ({"x": IMAGES, "y": LABELS - 1}, r"negative labels \(-1; the first at index 0\)"),
        ({"x": IMAGES, "y": LABELS.astype(float)}, "float64, expected integers or strings"),
        ({"x": IMAGES, "y": np.eye(5)[LABELS]}, r"y has shape \(50, 5\)"),
        ({"x": bad(IMAGES, 7, np.nan), "y": LABELS}, "NaN or infinite values in 1 of 50.*index 7"),
        ({"x": bad(IMAGES, 9, np.inf), "y": LABELS}, "index 9"),
        (
            {"x": bad(IMAGES, 8, 1e39, np.float64), "y": LABELS},
            "infinite values in 1 of 50 examples as float32, the first at index 8",
        ),
        ({"x": IMAGES.astype(int) + 9, "y": LABELS}, r"integers in 9\.\.26\d, expected 0\.\.255"),
        ({"x": IMAGES.astype(str), "y": LABELS}, "expected uint8 or float"),
        ({"x": IMAGES[0, 0], "y": LABELS}, r"x has shape \(5,\), expected"),
        ({"x": IMAGES[0, 0, 0], "y": LABELS}, r"x has shape \(\), expected"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, r"shape \(0, 6, 5\), which holds no image"),
        (
            {"x": np.stack([IMAGES] * 3, axis=1), "y": LABELS},
            r"\(50, 3, 6, 5\), expected \[n, h, w, c\], got what looks like \[n, c, h, w\]",
        ),
        (
            {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS.astype(str)},
            "labels are integers in one part and strings in the other",
        ),
        ({"x": np.array([{}] * 50), "y": LABELS}, "array 'x' cannot be read.*pickle"),
        (
            {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, 1:], "y_test": LABELS},
            "train and test images differ",
        ),
    ],
)
def test_what_is_wrong_is_named(save, arrays, message):
    name = save(**arrays)
    with pytest.raises(DataError, match=message):
        load(name, "train")


@pytest.mark.parametrize("split", [None, 3, ["train"]])
def test_a_split_is_a_text(save, unchecked, split):
    with pytest.raises(DataError, match=re.escape(f"split is {split!r}, expected a text such as")):
        load(save(x=IMAGES, y=LABELS), split)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        load(f"npz:{tmp_path / 'none.npz'}", "train")
    (tmp_path / "text.npz").write_text("not a zip file")
    with pytest.raises(DataError, match=r"no readable \.npz file: it is no archive"):
        load(f"npz:{tmp_path / 'text.npz'}", "train")
    np.savez(tmp_path / "whole.npz", x=IMAGES, y=LABELS)
    cut = (tmp_path / "whole.npz").read_bytes()[:900]
    (tmp_path / "cut.npz").write_bytes(cut)
    with pytest.raises(DataError, match=r"no readable \.npz"):
        load(f"npz:{tmp_path / 'cut.npz'}", "train")
    damaged = bytearray((tmp_path / "whole.npz").read_bytes())
    damaged[600:700] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(DataError, match="array 'x' is damaged"):
        load(f"npz:{tmp_path / 'damaged.npz'}", "train")
    for byte, value, message in (  # of the directory's first entry: version and flags
        (6, 99, r"no readable \.npz file: zip file version 9\.9"),
        (8, 1, r"array 'x' is damaged: .*encrypted"),
    ):
        changed = bytearray((tmp_path / "whole.npz").read_bytes())
        changed[changed.index(b"PK\1\2") + byte] = value
        (tmp_path / "changed.npz").write_bytes(changed)
        with pytest.raises(DataError, match=message):
            load(f"npz:{tmp_path / 'changed.npz'}", "train")
    with zipfile.ZipFile(tmp_path / "words.npz", "w") as archive:
        archive.writestr("x", "words")
    with pytest.raises(DataError, match=r"holds the arrays \[\]; expected 'image'"):
        load(f"npz:{tmp_path / 'words.npz'}", "train")
    for shape in ((10**17,), (10**30,)):  # which a header of 128 bytes may say
        file = tmp_path / "huge.npz"
        with zipfile.ZipFile(file, "w") as archive, archive.open("x.npy", "w") as member:
            said = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, said)
        with pytest.raises(DataError, match="array 'x' is damaged: "):
            load(f"npz:{tmp_path / 'huge.npz'}", "train")
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(DataError, match="one array"):
        load(f"npz:{tmp_path / 'one.npy'}", "train")
    with pytest.raises(DataError, match=r"no readable \.npz"):
        load(f"npz:{tmp_path}", "train")
