import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rml.data import NO_LABEL, DataError, batches, load
from rml.data.images import decode, pair, resize, resize_and_center_crop
from rml.errors import UserError

RNG = np.random.default_rng(0)


def write(path, size=(10, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    image.save(path, **options)
    return image


@pytest.fixture
def folder(tmp_path):
    for label, count in (("dog", 10), ("cat", 5)):
        for index in range(count):
            write(tmp_path / label / f"{index}.png")
    return tmp_path


def test_a_folder_a_class(folder):
    write(folder / "cat" / "more" / "nested.PNG")
    (folder / "cat" / ".hidden.png").write_text("not an image")
    (folder / ".git").mkdir()
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / "readme.md").write_text("not an image")
    source = load(f"folder:{folder}", "all")
    assert len(source) == 16
    assert source.class_names == ("cat", "dog")
    assert source.image_shape == (10, 8, 3)
    assert np.bincount(source.labels).tolist() == [6, 10]
    assert np.bincount(load(f"folder:{folder}", "test").labels).tolist() == [1, 2]
    arrays = source.arrays()
    assert arrays["image"].shape == (16, 10, 8, 3)
    assert np.array_equal(arrays["label"], source.labels)
    wanted = {np.asarray(Image.open(file)).tobytes() for file in folder.glob("dog/*.png")}
    assert {image.tobytes() for image in arrays["image"][arrays["label"] == 1]} == wanted


def test_slices_hold_every_class(folder):
    assert np.bincount(load(f"folder:{folder}", "train[:50%]").labels).tolist() == [2, 4]


def test_folders_of_splits(tmp_path):
    write(tmp_path / "train" / "a" / "0.png")
    write(tmp_path / "train" / "b" / "0.png")
    write(tmp_path / "test" / "b" / "0.png")
    write(tmp_path / "val" / "c" / "0.png")
    name = f"folder:{tmp_path}"
    assert load(name, "test")[0]["label"] == 1
    assert load(name, "train").class_names == ("a", "b", "c")
    assert len(load(name, "all")) == 4
    with pytest.raises(DataError, match=r"no split 'dev'; there are \['test', 'train', 'val'\]"):
        load(name, "dev")


def test_a_class_named_train_is_a_class(tmp_path):
    write(tmp_path / "train" / "0.png")
    write(tmp_path / "plane" / "0.png")
    assert load(f"folder:{tmp_path}", "all").class_names == ("plane", "train")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpg", "RGB"),
        ("a.JPEG", "L"),
        ("a.jpg", "CMYK"),
        ("a.bmp", "RGB"),
        ("a.gif", "P"),
        ("a.webp", "RGB"),
        ("a.tif", "L"),
        ("a.png", "P"),
        ("a.png", "1"),
        ("a.png", "LA"),
        ("a.png", "RGBA"),
    ],
)
def test_formats_and_modes(tmp_path, name, mode):
    write(tmp_path / "class" / name, mode=mode)
    source = load(f"folder:{tmp_path}", "all")
    channels = 1 if mode in ("L", "1", "LA") else 3
    assert source.image_shape == (10, 8, channels)
    assert source[0]["image"].shape == (10, 8, channels)
    assert source[0]["image"].dtype == np.uint8


@pytest.mark.parametrize(("mode", "channels"), [("LA", 1), ("RGBA", 3), ("P", 3)])
def test_what_is_transparent_shows_white_paper(tmp_path, mode, channels):
    alpha = np.zeros((10, 8), np.uint8)
    alpha[2:5, 3:6] = 255
    ink = np.zeros((10, 8, 3 if mode == "RGBA" else 1), np.uint8)
    if mode == "P":
        picture = Image.fromarray(np.where(alpha, 1, 0).astype(np.uint8), "P")
        picture.putpalette([255, 0, 0, 0, 0, 0])
        picture.info["transparency"] = 0
    else:
        picture = Image.fromarray(np.concatenate([ink, alpha[..., None]], axis=2), mode)
    (tmp_path / "c").mkdir()
    picture.save(tmp_path / "c" / "a.png")
    image = load(f"folder:{tmp_path}", "all")[0]["image"]
    np.testing.assert_array_equal(image, np.repeat(255 - alpha[..., None], channels, axis=2))


def test_16_bit_grey_keeps_its_range(tmp_path):
    deep = np.linspace(0, 65535, 80, dtype=np.uint16).reshape(10, 8)
    (tmp_path / "c").mkdir()
    Image.fromarray(deep).save(tmp_path / "c" / "a.png")
    image = load(f"folder:{tmp_path}", "all")[0]["image"]
    assert np.array_equal(image[..., 0], (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize("most", [255, 65535])
def test_grey_of_32_bit_integers_has_8_bits_or_16(tmp_path, most):
    deep = np.linspace(0, most, 80).astype(np.int32).reshape(10, 8)
    (tmp_path / "c").mkdir()
    Image.fromarray(deep).save(tmp_path / "c" / "a.tiff")
    image = load(f"folder:{tmp_path}", "all")[0]["image"]
    assert np.array_equal(image[..., 0], deep if most == 255 else deep >> 8)


@pytest.mark.parametrize("kind", ["folder", "images", "npz"])
def test_a_path_that_is_missing_or_of_nobody_is_named(kind, tmp_path, monkeypatch):
    """An empty variable of a shell is not the current directory."""
    write(tmp_path / "c" / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"unknown data set '{kind}:'.*'{kind}:PATH'"):
        load(f"{kind}:", "all")
    with pytest.raises(UserError, match=f"the path of '{kind}:~n0body/x' is .* is no user here"):
        load(f"{kind}:~n0body/x", "all")


def test_pixels_that_are_floats_are_refused(tmp_path):
    (tmp_path / "c").mkdir()
    Image.fromarray(RNG.random((10, 8)).astype(np.float32)).save(tmp_path / "c" / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff cannot be decoded: .* pixels that are floats"):
        load(f"folder:{tmp_path}", "all").arrays()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize(("orientation", "shape"), [(3, (10, 8, 3)), (6, (8, 10, 3))])
def test_exif_orientation_is_applied(tmp_path, ending, orientation, shape):
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "c" / f"a.{ending}", size=(10, 8), exif=exif)
    source = load(f"folder:{tmp_path}", "all")
    assert source.image_shape == shape
    assert source[0]["image"].shape == shape
    assert source.arrays()["image"].shape == (1, *shape)


def test_grey_and_colour_together_are_colour(tmp_path):
    write(tmp_path / "a" / "0.png", mode="L")
    write(tmp_path / "a" / "1.png")
    assert load(f"folder:{tmp_path}", "all").arrays()["image"].shape == (2, 10, 8, 3)


def test_mixed_sizes_need_image_size(tmp_path):
    write(tmp_path / "a" / "0.png", size=(10, 8))
    write(tmp_path / "a" / "1.png", size=(20, 8))
    name = f"folder:{tmp_path}"
    source = load(name, "all")
    assert source.image_shape == (None, 8, 3)
    with pytest.raises(DataError, match="mixed sizes"):
        source.arrays()
    with pytest.raises(DataError, match="mixed sizes"):
        batches(source, batch_size=2, seed=0)
    assert load(name, "all", image_size=6).arrays()["image"].shape == (2, 6, 6, 3)
    with pytest.raises(DataError, match="positive"):
        load(name, "all", image_size=0)


def test_broken_files_are_named(folder):
    (folder / "dog" / "3.png").write_text("not an image")
    with pytest.raises(DataError, match=r"dog/3\.png cannot be decoded"):
        load(f"folder:{folder}", "train")
    write(folder / "dog" / "3.png")
    whole = (folder / "dog" / "3.png").read_bytes()
    (folder / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])  # its header is sound
    with pytest.raises(DataError, match=r"dog/3\.png cannot be decoded"):
        load(f"folder:{folder}", "all").arrays()
    (folder / "dog" / "3.png").unlink()
    source = load(f"folder:{folder}", "all")
    (folder / "dog" / "4.png").unlink()
    with pytest.raises(DataError, match=r"dog/4\.png is gone"):
        source.arrays()


def test_folders_that_are_none(tmp_path):
    for kind in ("folder", "images"):
        with pytest.raises(DataError, match="there is no folder"):
            load(f"{kind}:{tmp_path / 'none'}", "train")
        with pytest.raises(DataError, match=r"holds no images \(of .png"):
            load(f"{kind}:{tmp_path}", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        load(f"folder:{tmp_path}", "train")


def test_images_without_folders_have_no_labels(tmp_path):
    for index in range(10):
        write(tmp_path / f"{index}.png")
    (tmp_path / "empty").mkdir()
    train, test = (load(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert not train.labelled
    assert train.class_names == ()
    assert sorted(train.files + test.files) == [f"{index}.png" for index in range(10)]
    image = np.asarray(Image.open(tmp_path / train.files[3]))
    assert np.array_equal(train[3]["image"], image)
    batch = next(iter(batches(train, batch_size=4, seed=0)))
    assert batch["label"].tolist() == [NO_LABEL] * 4
    assert batch["label"].dtype == np.int32


def test_all_images_below_a_folder_without_labels(folder):
    source = load(f"images:{folder}", "all")
    assert len(source) == 15
    assert not source.labelled
    assert set(source.files) == {str(p.relative_to(folder)) for p in folder.glob("*/*.png")}
    write(folder / "loose.png")
    with pytest.raises(DataError, match=r"\(loose.png\) beside the folders \['cat', 'dog'\]"):
        load(f"folder:{folder}", "all")
    assert len(load(f"images:{folder}", "all")) == 16


def test_splits_without_labels(tmp_path):
    for split, count in (("train", 4), ("test", 2), ("val", 1)):
        for index in range(count):
            write(tmp_path / split / f"{index}.png")
    name = f"folder:{tmp_path}"
    assert [len(load(name, split)) for split in ("train", "test", "val", "all")] == [4, 2, 1, 7]
    assert load(name, "val").files == ("val/0.png",)
    write(tmp_path / "val" / "deep" / "1.png")
    assert len(load(f"images:{tmp_path}", "val")) == 2
    write(tmp_path / "more" / "0.png")  # no name of a split: these are classes
    write(tmp_path / "0.png")
    with pytest.raises(DataError, match="beside the folders"):
        load(name, "train")
    (tmp_path / "0.png").unlink()
    assert load(name, "train").class_names == ("more", "test", "train", "val")


def test_labels_in_one_split_alone(tmp_path):
    write(tmp_path / "train" / "cat" / "0.png")
    write(tmp_path / "test" / "0.png")
    with pytest.raises(DataError, match=r"test holds images without class folders, .*train has"):
        load(f"folder:{tmp_path}", "train")
    assert len(load(f"images:{tmp_path}", "train")) == 1


@pytest.mark.parametrize("names", [("Train", "Test"), ("val", "test"), ("training", "testing")])
def test_splits_without_one_named_train_are_no_classes(tmp_path, names):
    for split in names:
        for label in ("cat", "dog"):
            write(tmp_path / split / label / "0.png")
    with pytest.raises(DataError, match=rf"{sorted(names)[0]}.*no 'train'; expected 'train' and"):
        load(f"folder:{tmp_path}", "all")
    assert len(load(f"images:{tmp_path}", "all")) == 4
    write(tmp_path / "plane" / "0.png")  # no name of a split: these are classes
    assert len(load(f"folder:{tmp_path}", "all").class_names) == 3


def test_resize_and_center_crop_keeps_aspect_and_centre():
    image = RNG.integers(0, 256, (40, 80, 3), dtype=np.uint8)
    shorter = np.asarray(Image.fromarray(image).resize((20, 10), Image.Resampling.BILINEAR))
    got = resize_and_center_crop(image, (10, 10))
    np.testing.assert_allclose(got.astype(int), shorter[:, 5:15].astype(int), atol=1)
    same = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(resize_and_center_crop(same, (8, 8)), same)
    with pytest.raises(DataError, match="uint8 images of 1, 3 or 4 channels"):
        resize(image.astype(np.float32), (4, 4))


def test_any_image_is_cropped_although_its_box_is_rounded():
    """Of an image 29 high a box of 28 * (29 / 28) pixels is cropped, which is more than 29."""
    assert 28 * (29 / 28) > 29
    for height in range(20, 60):
        for width in range(20, 60):
            image = np.zeros((height, width, 1), np.uint8)
            assert resize_and_center_crop(image, (28, 28)).shape == (28, 28, 1)


def test_a_size_is_one_integer_or_two():
    assert pair(8) == pair(np.int64(8)) == pair((8, 8)) == (8, 8)
    assert pair([np.int32(8), 4]) == pair(np.array([8, 4])) == (8, 4)
    assert all(type(side) is int for side in pair(np.array([8, 4])))
    for wrong in (8.0, (8,), (8.5, 8.5), (8, 8, 3), "88", None):
        with pytest.raises(DataError, match=f"{re.escape(repr(wrong))}, expected one integer, or"):
            pair(wrong)


def test_decode_of_bytes_names_what_it_was():
    with pytest.raises(DataError, match="the thing cannot be decoded"):
        decode(b"junk", channels=3, what="the thing")


def refuse(monkeypatch, folder):
    """Lets a folder be one that may not be read, which root may always."""
    scan = os.scandir

    def refused(path):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)


@pytest.mark.parametrize("kind", ["folder", "images"])
def test_a_subfolder_that_cannot_be_read_is_named(kind, folder, monkeypatch):
    write(folder / "cat" / "more" / "a.png")
    refuse(monkeypatch, folder / "cat" / "more")
    with pytest.raises(DataError, match=r"folder .*cat/more cannot be read: Permission denied"):
        load(f"{kind}:{folder}", "all")


def test_links_to_folders_are_followed_but_not_back(tmp_path):
    far, root = tmp_path / "far", tmp_path / "root"
    for file in ("b.png", "deep/c.png", ".hidden/d.png"):
        write(far / file)
    write(root / "cat" / "a.png")
    write(root / "dog" / "a.png")
    (root / "cat" / "more").symlink_to(far)
    (far / "deep" / "back").symlink_to(root)  # a circle through two links
    (root / "cat" / "self").symlink_to(root / "cat")
    expected = ["cat/a.png", "cat/more/b.png", "cat/more/deep/c.png", "dog/a.png"]
    for kind in ("folder", "images"):
        assert sorted(load(f"{kind}:{root}", "all").files) == expected
