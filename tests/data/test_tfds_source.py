import contextlib
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rml.assets import default_data_dir
from rml.data import DataError, batches, builders, decode_and_resize, load
from rml.data.source import MEMORY_BOUND, NO_LABEL, ArraySource
from rml.data.tfds_source import read_texts

tfds = pytest.importorskip("tensorflow_datasets")

SHAPES = [(20, 30), (32, 24), (24, 24), (40, 17)]


def picture(index):
    rng = np.random.default_rng(index)
    return rng.integers(0, 256, (*SHAPES[index % len(SHAPES)], 3), dtype=np.uint8)


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Encoded images of mixed sizes, as imagenet2012 stores them."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="a"), tfds.core.BuilderConfig(name="b"))
    code_path = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "file_name": tfds.features.Text(),
                    "score": np.float32,
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, 12),
            "validation": self._generate_examples(12, 16),
        }

    def _generate_examples(self, start, stop):
        for index in range(start, stop):
            file = io.BytesIO()
            Image.fromarray(picture(index)).save(file, "PNG")
            file.seek(0)
            yield (
                index,
                {"image": file, "label": index % 2, "file_name": f"{index}.png", "score": 0.5},
            )


def prepare(directory, config, file_format="array_record"):
    builder = Pictures(data_dir=str(directory), config=config, file_format=file_format)
    tfds.display_progress_bar(enable=False)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return builder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    prepare(directory, "a")
    return directory


@pytest.mark.parametrize("name", ["pictures", "pictures/a", "pictures/a:1.2.0", "pictures:1.2.0"])
def test_any_prepared_data_set_is_read(prepared, name):
    source = load(name, "train+validation", data_dir=prepared)
    assert len(source) == 16
    assert source.image_shape == (None, None, 3)
    assert source.class_names == ("cat", "dog")
    for index in (0, 11, 12, 15):
        example = source[index]
        assert np.array_equal(example["image"], picture(index))
        assert example["label"] == index % 2


def test_mixed_sizes_load_once_resized(prepared):
    with pytest.raises(DataError, match=r"mixed sizes.*image_size"):
        load("pictures", "train", data_dir=prepared).arrays()
    arrays = load("pictures", "train[2:]", data_dir=prepared, image_size=16).arrays()
    assert arrays["image"].shape == (10, 16, 16, 3)
    assert arrays["label"].tolist() == [0, 1] * 5


def test_mixed_sizes_stream_through_a_transform(prepared):
    source = load("pictures", "train", data_dir=prepared)
    transform = decode_and_resize((12, 8), scale=(0.3, 1.0))
    dataset = batches(source, batch_size=4, seed=1, transform=transform, num_threads=2)
    batch = next(iter(dataset))
    assert batch["image"].shape == (4, 12, 8, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    with pytest.raises(DataError, match="mixed sizes"):
        batches(source, batch_size=4, seed=1)


def test_other_feature_names(prepared):
    with pytest.raises(DataError, match=r"no feature 'picture'; it has \['file_name', 'image'"):
        load("pictures", "train", data_dir=prepared, image_key="picture")
    with pytest.raises(DataError, match="'score' is no class label"):
        load("pictures", "train", data_dir=prepared, label_key="score")
    with pytest.raises(DataError, match="no uint8 images"):
        load("pictures", "train", data_dir=prepared, image_key="file_name")


def test_several_configs_must_be_named(tmp_path):
    prepare(tmp_path, "a")
    prepare(tmp_path, "b")
    with pytest.raises(DataError, match=r"\['pictures/a', 'pictures/b'\]"):
        load("pictures", "train", data_dir=tmp_path)
    assert len(load("pictures/b", "validation", data_dir=tmp_path)) == 4


def test_another_file_format_says_how_to_convert(tmp_path):
    builder = prepare(tmp_path, "a")
    info = builder.data_path / "dataset_info.json"
    stated = json.loads(info.read_text())
    info.write_text(json.dumps({**stated, "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"tfds convert_format .*out_file_format=array_record"):
        load("pictures", "train", data_dir=tmp_path)


def overwritten(body):
    """A file with other bytes in the middle, where records are."""
    at = len(body) // 2
    return body[:at] + bytes(b ^ 255 for b in body[at : at + 40]) + body[at + 40 :]


@pytest.mark.parametrize(
    ("pattern", "change", "message"),
    [
        ("*train.array*", lambda body: body[: len(body) // 2], "Corrupted"),
        ("*train.array*", overwritten, "Corrupted"),
        ("*train.array*", lambda body: b"", "should be at least 64KB big"),
        ("dataset_info.json", lambda body: body[:20], "Failed to load JSON"),
        ("features.json", None, "Cannot restore"),
    ],
    ids=["cut", "overwritten", "empty", "broken info", "no features"],
)
def test_damaged_files_say_how_they_are_mended(tmp_path, pattern, change, message):
    shutil.copytree(builders.prepare("digits", default_data_dir()), tmp_path / "digits" / "1.0.0")
    [file] = (tmp_path / "digits" / "1.0.0").glob(pattern)
    body = file.read_bytes()
    file.unlink()
    if change:
        file.write_bytes(change(body))
    for read in (
        lambda: load("digits", "train", data_dir=tmp_path),
        lambda: load("digits", "train", data_dir=tmp_path, image_size=16).arrays(),
        lambda: read_texts("digits", "train", data_dir=tmp_path, keys=["label"]),
    ):
        with pytest.raises(DataError, match=rf"{message}.*: remove {tmp_path}/digits") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_missing_record_files_are_named(tmp_path):
    builder = prepare(tmp_path, "a")
    for file in builder.data_path.glob("*train*"):
        file.unlink()
    with pytest.raises(DataError, match=r"'train': .*00000-of-00001 is missing; remove"):
        load("pictures", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifra10", "did you mean 'cifar10'"),
        ("digit", "did you mean 'digits'"),
        ("no such thing at all", "unknown data set"),
        ("", "empty or has spaces"),
        (" digits", "empty or has spaces"),
        ("cifar10", r"tfds\.builder\('cifar10', .*file_format='array_record'"),
        ("imagenet2012", r"ILSVRC2012_img_train\.tar.*downloads/manual"),
        ("pictures:9.0.0", r"there is a/1\.2\.0 of it"),
        ("/own/images", "'/own/images' is a path, expected 'folder:/own/images', which has"),
        ("~/images", "'~/images' is a path, expected 'folder:~/images'"),
        ("./images", r"is a path, expected 'folder:\./images'"),
        ("/pictures", "is a path, expected 'folder:/pictures'"),  # is prepared, as `pictures`
        (":1.2.0", "is a path"),
        ("own/images.npz", "is a path, expected 'npz:own/images.npz'"),
        ("tests/data", "it is a path, did you mean 'folder:tests/data' or 'images:tests/data'"),
    ],
)
def test_unknown_and_unprepared_data_sets(prepared, name, message):
    with pytest.raises(DataError, match=message) as caught:
        load(name, "train", data_dir=prepared)
    assert len(str(caught.value)) < 700


@pytest.mark.usefixtures("unchecked")
def test_a_name_is_a_text(tmp_path):
    for name in (tmp_path, None):
        with pytest.raises(DataError, match=r"data set name is .*, expected a text such as"):
            load(name, "train")


def test_unknown_split_names_those_there_are(prepared):
    with pytest.raises(DataError, match=r"no split 'test'; there are \['train', 'validation'\]"):
        load("pictures", "test", data_dir=prepared)


def test_array_source_checks_its_arrays():
    images, labels = np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int32)
    with pytest.raises(DataError, match=r"label has shape \(2,\)"):
        ArraySource(images, labels[:2], class_names=["a"])
    with pytest.raises(DataError, match=r"\(3, 4, 4\)"):
        ArraySource(images[..., 0], labels, class_names=["a"])


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ([0, 1, 2], "ab", "label has numbers 0 to 2, expected those of 2 classes from 0, or -1"),
        ([0, -2, 1], "ab", "label has numbers -2 to 1, expected those of 2 classes"),
        ([0, 0, 0], "", "label has numbers 0 to 0, expected those of 0 classes"),
        (np.array([0, 1, 200], np.uint8), "ab", "label has numbers 0 to 200"),
        ([0.0, 1.0, 0.5], "ab", "label has dtype float64, expected integers"),
        ([True, False, True], "ab", "label has dtype bool, expected integers"),
    ],
)
def test_labels_that_are_no_classes_are_named(label, names, message):
    with pytest.raises(DataError, match=message):
        ArraySource(np.zeros((3, 2), np.float32), np.array(label), class_names=names)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64])
def test_labels_of_any_integers_are_kept(dtype):
    label = np.array([1, 0, 1], dtype)
    found = ArraySource(np.zeros((3, 2), np.float32), label, class_names="ab").labels
    np.testing.assert_array_equal(found, np.array([1, 0, 1], np.int32), strict=True)


def test_examples_without_a_class_stand_beside_others():
    label = np.array([NO_LABEL, 1, 0])
    source = ArraySource(np.zeros((3, 2), np.float32), label, class_names="ab")
    assert [source[i]["label"] for i in range(3)] == [NO_LABEL, 1, 0]
    none = np.full(3, NO_LABEL)
    assert not ArraySource(np.zeros((3, 2), np.float32), none, class_names=()).labelled


def test_what_is_in_memory_is_returned_whatever_its_size():
    image = np.broadcast_to(np.uint8(7), (MEMORY_BOUND // 1024**2 + 1, 1024, 1024, 1))
    source = ArraySource(image, np.zeros(len(image), np.int32), class_names=["a"])
    assert source.nbytes > MEMORY_BOUND
    assert source.arrays()["image"] is image
