"""Features that are computed once, and again when anything that they depend on changes."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rml.data import ArraySource, given
from rml.encoder import Encoder, ImageEmbedder
from rml.evaluation import cached_features

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
WEIGHTS = {"params": {"kernel": np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)}}


def product(variables, images):
    return images.reshape(len(images), -1) / 255 @ variables["params"]["kernel"]


@dataclasses.dataclass
class Counted:
    """A frozen encoder that counts how often it computes."""

    function: Callable[..., Any] = product
    variables: Any = dataclasses.field(default_factory=lambda: WEIGHTS)
    calls: int = 0
    meet: Callable[[], Any] = int

    def __call__(self, images):
        self.calls += 1
        self.meet()
        return np.asarray(self.function(self.variables, jnp.asarray(images[:])))


@pytest.fixture
def computed(tmp_path):
    """Whether features of these had to be computed."""

    def ask(images=IMAGES, name="product", **changes):
        encoder = Counted(**changes)
        found = cached_features(encoder, images, name=name, directory=tmp_path)
        np.testing.assert_array_equal(found, Counted(**changes)(images))
        return encoder.calls == 1

    return ask


def test_features_are_computed_once_and_read_from_memory_mapped_files(tmp_path):
    encoder = Counted()
    first, second = (
        cached_features(encoder, IMAGES, name="a/b @64", directory=tmp_path) for _ in range(2)
    )
    assert encoder.calls == 1
    assert isinstance(second, np.memmap)
    np.testing.assert_array_equal(first, second)
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("a_b_64-")
    np.testing.assert_array_equal(np.load(file), first)


def another(array, at, value):
    changed = array.copy()
    changed[at] = value
    return changed


def weights(kernel):
    return {"variables": {"params": {"kernel": kernel}}}


KERNEL = WEIGHTS["params"]["kernel"]


@pytest.mark.parametrize(
    "change",
    [
        weights(another(KERNEL, (7, 1), np.nextafter(KERNEL[7, 1], np.float32(9)))),
        weights(KERNEL.astype(np.float64).astype(np.float16)),
        {"images": another(IMAGES, (4, 3, 3, 0), IMAGES[4, 3, 3, 0] ^ 1)},
        {"images": IMAGES[::-1]},
        {"images": IMAGES[:4]},
        {"images": IMAGES.reshape(5, 2, 8, 1)},
        {"images": IMAGES.astype(np.float32)},
        {"name": "product, layer 2"},
        {"function": lambda variables, images: 2 * product(variables, images)},
    ],
    ids=[
        "a weight",
        "their type",
        "a pixel",
        "order",
        "fewer",
        "size",
        "type",
        "layer",
        "function",
    ],
)
def test_they_are_computed_again_where_anything_changes(computed, change):
    assert computed()
    assert computed(**change)
    assert not computed(**change)
    assert not computed()


def test_types_that_files_cannot_name_are_not_kept(computed, tmp_path):
    def half(variables, images):
        return product(variables, images).astype(jnp.bfloat16)

    assert computed(function=half)
    assert computed(function=half)
    assert not list(tmp_path.iterdir())


def test_what_a_function_closes_over_counts(computed):
    def scaled(scale):
        return lambda variables, images: scale * product(variables, images)

    scale = np.arange(3, dtype=np.float32)
    assert computed(function=scaled(scale))
    assert computed(function=scaled(scale + 1))
    assert not computed(function=scaled(scale))


def test_a_source_is_its_images(computed, monkeypatch):
    assert computed()
    source = ArraySource(IMAGES, np.zeros(5, int), class_names=["one"])
    found = given.in_slices(source)
    assert found is IMAGES
    monkeypatch.setattr(given, "IN_MEMORY_BYTES", 0)
    assert not computed(given.in_slices(source))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:200],
        lambda content: b"",
        lambda content: content[:140] + bytes([content[140] ^ 1]) + content[141:],
    ],
    ids=["cut short", "cut shorter", "empty", "a flipped bit"],
)
def test_a_damaged_file_is_computed_again_with_a_warning(computed, tmp_path, caplog, damage):
    computed()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert computed()
    assert f"{file} is damaged" in caplog.text
    assert file.read_bytes() == whole
    assert not computed()


def test_a_file_of_another_user_is_read(computed, tmp_path, monkeypatch, caplog):
    tmp_path.chmod(0o755)
    computed()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644

    def refused(*_, **__):
        raise PermissionError("only its owner says when a file was read")

    monkeypatch.setattr("os.utime", refused)
    assert not computed()
    assert "damaged" not in caplog.text


def test_where_they_cannot_be_kept_a_warning_says_so(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("RML_CACHE", str(tmp_path / "file"))
    found = cached_features(Counted(), IMAGES, name="product")
    np.testing.assert_array_equal(found, Counted()(IMAGES))
    assert "features of product are not kept" in caplog.text


def test_two_that_compute_at_once_leave_one_whole_file(tmp_path):
    together = threading.Barrier(2)
    found = []

    def work():
        encoder = Counted(meet=together.wait)
        found.append(cached_features(encoder, IMAGES, name="product", directory=tmp_path))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    np.testing.assert_array_equal(*found)
    (file,) = tmp_path.iterdir()
    np.testing.assert_array_equal(np.load(file), found[0])


def test_processes_of_one_program_compute_together(computed, tmp_path, monkeypatch):
    computed()
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"not read")
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert computed()
    assert file.read_bytes() == b"not read"


def test_what_was_not_read_for_longest_is_removed_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RML_CACHE", str(tmp_path))
    directory = tmp_path / "features"

    def kept(name, **options):
        cached_features(Counted(), IMAGES, name=name, **options)
        return {path.name.partition("-")[0] for path in directory.glob("*-*.npy")}

    directory.mkdir()
    (directory / "mine.npy").write_bytes(b"not ours")
    kept("a")
    kept("b")
    size = next(directory.glob("a-*")).stat().st_size
    kept("a")
    assert kept("c", limit_bytes=2 * size) == {"a", "c"}
    assert (directory / "mine.npy").exists()
    # What another program removes meanwhile is not looked at.
    gone = next(directory.glob("a-*"))
    gone.with_name(f"gone-{'0' * 32}.npy").symlink_to("nothing")
    assert {"a", "d"} <= kept("d", limit_bytes=3 * size)


def test_an_encoder_of_a_run_keeps_its_preprocessing(tmp_path, monkeypatch):
    """Also of a source that is not held in memory, and told apart in the names of files."""

    def function(variables, images):
        return images.reshape(len(images), -1)[:, :3] / 255 * variables["scale"]

    def encoder(side):
        config = {"data": {"image_shape": (side, side, 1), "image_dtype": "uint8"}}
        embedder = ImageEmbedder(function, {"scale": np.float32(2.0)}, 8)
        return Encoder("images", config, "run", 1, embedder)

    source = ArraySource(IMAGES, np.zeros(5, int), class_names=["one"])
    for limit in (given.IN_MEMORY_BYTES, 1):
        monkeypatch.setattr(given, "IN_MEMORY_BYTES", limit)
        for side in (2, 3):
            found = cached_features(encoder(side), source, name="own", directory=tmp_path)
            np.testing.assert_allclose(found, encoder(side)(source), rtol=1e-6)
