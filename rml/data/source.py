"""Random-access labelled images: the one shape every data set takes."""

import hashlib
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from rml.data import splits
from rml.data.errors import DataError
from rml.data.images import decode, pair, resize_and_center_crop

Example = dict[str, Any]

MEMORY_BOUND = 2**31
"""Bytes that `Source.arrays` loads without being asked for more."""

IN_MEMORY_BYTES = 2**28
"""Sources up to this size are decoded once and gathered by batch, others read by example."""

NO_LABEL = -1
"""Label of an image that has none."""


@runtime_checkable
class Examples(Protocol):
    """What `batches` reads: examples by position, each a dict of arrays.

    Attributes:
      name: Name of the data set, for messages.
      split: Name of the split, for messages.
    """

    name: str
    split: str

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Example:
        """One example; called from several threads."""

    @property
    def nbytes(self) -> int | None:
        """Bytes of all examples, or `None` where they do not stack into one array."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Stacks all examples, by key."""


class Arrays:
    """Examples in memory: rows of arrays of one length, by key."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], *, name: str = "arrays", split: str = "all"
    ) -> None:
        """Wraps arrays without copying them.

        Args:
          arrays: Arrays `[n, ...]` by key, n at least 1.
          name: Name of the data set, for messages.
          split: Name of the split, for messages.

        Raises:
          DataError: If there is no array, no row, or lengths differ.
        """
        sizes = {key: len(array) for key, array in arrays.items()}
        if len(set(sizes.values())) != 1 or not min(sizes.values()):
            raise DataError(
                f"{name!r} split {split!r} has arrays with {sizes or 'no'} rows, expected arrays "
                "of one length that is not 0"
            )
        self.name = name
        self.split = split
        self._arrays = dict(arrays)
        self._size = min(sizes.values())

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        return {key: array[index] for key, array in self._arrays.items()}

    def __repr__(self) -> str:
        shapes = {key: array.shape for key, array in self._arrays.items()}
        return f"Arrays({self.name!r}, {self.split!r}, {shapes})"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays.values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all examples, by key."""
        return self._arrays


class Source:
    """Labelled images (or feature vectors) of one split, read by position.

    `source[i]` is `{"image": uint8 [h, w, c] (or float32), "label": int}`. Subclasses implement
    `_read(i)`, which is called from several threads. Images without labels have no classes, and
    `NO_LABEL` is the label of each.

    Attributes:
      name: Name as given to `load`.
      split: Split as given to `load`, for example `"train[:80%]"`.
      class_names: Names by label.
      image_shape: `(h, w, c)`, with `None` for what varies; `None` where examples are vectors.
      feature_shape: `(d,)` where examples are vectors, otherwise `None`.
      labels: int32 `[n]`, or `None` where a label is known only by reading its example.
      files: Paths of the images by position, relative to their folder; `None` where examples are
        no files.
    """

    image_shape: tuple[int | None, int | None, int] | None
    feature_shape: tuple[int] | None = None
    labels: np.ndarray | None = None
    files: tuple[str, ...] | None = None

    def __init__(self, *, name: str, split: str, class_names: Sequence[str], size: int) -> None:
        self.name = name
        self.split = split
        self.class_names = tuple(class_names)
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        position = int(index)
        if not -self._size <= position < self._size:
            raise IndexError(f"{self!r} has no example {index}")
        return self._read(position % self._size)

    def __repr__(self) -> str:
        shape = self.feature_shape or self.image_shape
        return f"{type(self).__name__}({self.name!r}, {self.split!r}, n={len(self)}, shape={shape})"

    @property
    def num_classes(self) -> int:
        """Number of classes, seen in this split or not."""
        return len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether examples have a class."""
        return self.num_classes > 0

    @property
    def nbytes(self) -> int | None:
        """Bytes of all images decoded, or `None` where their sizes vary."""
        shape = self.feature_shape or self.image_shape
        if shape is None or None in shape:
            return None
        return len(self) * int(np.prod([int(axis or 0) for axis in shape]))

    def arrays(self, *, max_bytes: int = MEMORY_BOUND) -> dict[str, np.ndarray]:
        """Loads every example.

        Args:
          max_bytes: The most memory the images may take.

        Returns:
          `{"image": [n, h, w, c] (or [n, d]), "label": int32 [n]}`. What was decoded is kept, and
          cannot be written then: copy what you change.

        Raises:
          DataError: If image sizes vary or the images take more than `max_bytes`.
        """
        needed = self.nbytes
        if needed is None:
            raise DataError(
                f"{self.name!r} has images of mixed sizes, which do not stack into one array: "
                "load it with image_size=... or give `batches` a transform that resizes"
            )
        if needed > max_bytes:
            raise DataError(
                f"{self.name!r} split {self.split!r} takes {needed:,} bytes in memory, more than "
                f"max_bytes={max_bytes:,}"
            )
        return self._load()

    def _read(self, index: int) -> Example:
        raise NotImplementedError

    def _load(self) -> dict[str, np.ndarray]:
        raise NotImplementedError


class ArraySource(Source):
    """A source whose examples are in memory."""

    labels: np.ndarray

    def __init__(
        self,
        image: np.ndarray,
        label: np.ndarray,
        *,
        class_names: Sequence[str],
        name: str = "arrays",
        split: str = "all",
    ) -> None:
        """Wraps arrays without copying them.

        Args:
          image: `[n, h, w, c]` images or `[n, d]` feature vectors.
          label: `[n]` integers in `[0, len(class_names))`, or `NO_LABEL` of an example without a
            class.
          class_names: Names by label.
          name: Name of the data set, for messages.
          split: Name of the split, for messages.

        Raises:
          DataError: If the shapes do not fit each other, or a label is no such integer.
        """
        if image.ndim not in (2, 4):
            raise DataError(f"image has shape {image.shape}, expected [n, h, w, c] or [n, d]")
        if label.shape != image.shape[:1]:
            raise DataError(
                f"label has shape {label.shape}, expected {image.shape[:1]} for image {image.shape}"
            )
        if label.dtype.kind not in "iu":
            raise DataError(f"label has dtype {label.dtype}, expected integers")
        if label.size and not NO_LABEL <= int(label.min()) <= int(label.max()) < len(class_names):
            raise DataError(
                f"label has numbers {label.min()} to {label.max()}, expected those of "
                f"{len(class_names)} classes from 0, or {NO_LABEL}"
            )
        super().__init__(name=name, split=split, class_names=class_names, size=len(image))
        self._image = image
        self.labels = label.astype(np.int32)
        if image.ndim == 2:
            self.image_shape, self.feature_shape = None, image.shape[1:]
        else:
            self.image_shape = image.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return self._image.nbytes

    def arrays(self, *, max_bytes: int = MEMORY_BOUND) -> dict[str, np.ndarray]:
        """Returns all examples, which are in memory whatever `max_bytes` is."""
        return {"image": self._image, "label": self.labels}

    def _read(self, index: int) -> Example:
        return {"image": self._image[index], "label": int(self.labels[index])}


class Kept:
    """Decoded arrays of the sources that were read last, up to a number of bytes in all.

    Recipes open a source anew for each purpose and evaluation, and each would decode all images.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._arrays: dict[Hashable, dict[str, np.ndarray]] = {}

    def get(self, key: Hashable) -> dict[str, np.ndarray] | None:
        """Returns the arrays that are kept under a key, or None."""
        with self._lock:
            if (found := self._arrays.pop(key, None)) is not None:
                self._arrays[key] = found  # the last to be dropped
            return found and dict(found)

    def put(self, key: Hashable, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps arrays in the place of those read longest ago; nothing is kept under None."""
        if key is None or (size := _bytes(arrays)) > self.limit:
            return
        _freeze(arrays)
        with self._lock:
            self._arrays.pop(key, None)
            while size + sum(map(_bytes, self._arrays.values())) > self.limit:
                del self._arrays[next(iter(self._arrays))]
            self._arrays[key] = dict(arrays)


def _bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return arrays["image"].nbytes


def _freeze(arrays: Mapping[str, np.ndarray]) -> None:
    """Lets nobody write into arrays that others read."""
    for array in arrays.values():
        array.flags.writeable = False


KEPT = Kept(IN_MEMORY_BYTES)
"""What is kept of data sets that lie in files."""


def unchanged(files: Iterable[str | Path], *others: Any) -> Hashable:
    """Makes a key of what depends on files, None where they are not of this machine.

    Files that are written anew are others, wherever they lie.
    """
    digest = hashlib.sha256(repr(others).encode())
    try:
        for file in files:
            own = os.stat(file)
            digest.update(f"{file}\0{own.st_ino} {own.st_size} {own.st_mtime_ns}\0".encode())
    except OSError:
        return None
    return digest.digest()


class Record(NamedTuple):
    """One example as stored: an encoded image (bytes or a file), or an array; and its label."""

    image: bytes | Path | np.ndarray
    label: int


class RecordSource(Source):
    """A source of stored records, decoded when read.

    Args:
      record: Record by position in the split.
      size: Number of records.
      image_shape: Shape of a decoded image; `None` for what varies.
      image_size: Brings every image to this height and width: the shorter side is resized, the
        centre is kept.
      class_names: Names by label.
      name: Name as given to `load`.
      split: Split as given to `load`.
      labels: int32 `[size]` where known.
      key: What images and labels depend on: what is decoded is kept for other sources of one key,
        too. Without, it is kept for this source alone.
    """

    def __init__(
        self,
        record: Callable[[int], Record],
        *,
        size: int,
        image_shape: tuple[int | None, int | None, int],
        image_size: int | Sequence[int] | None,
        class_names: Sequence[str],
        name: str,
        split: str,
        labels: np.ndarray | None = None,
        key: Hashable = None,
    ) -> None:
        super().__init__(name=name, split=split, class_names=class_names, size=size)
        self._key = key
        self._record = record
        self._image_size = None if image_size is None else pair(image_size)
        self.image_shape = (*(self._image_size or image_shape[:2]), image_shape[2])
        self.labels = labels
        self._kept: dict[str, np.ndarray] | None = None

    def _read(self, index: int) -> Example:
        record = self._record(index)
        image = record.image
        channels = (self.image_shape or (None, None, 3))[2]
        if not isinstance(image, np.ndarray):
            image = decode(image, channels=channels, what=f"example {index} of {self.name!r}")
        if self._image_size is not None:
            image = resize_and_center_crop(image, self._image_size)
        return {"image": image, "label": record.label}

    def _load(self) -> dict[str, np.ndarray]:
        # Every evaluation reads all images, which would be decoded anew.
        if self._kept is None:
            arrays = KEPT.get(self._key) or self._decoded()
            if _bytes(arrays) > IN_MEMORY_BYTES:
                return arrays
            _freeze(arrays)
            KEPT.put(self._key, arrays)
            self._kept = arrays
        return dict(self._kept)

    def _decoded(self) -> dict[str, np.ndarray]:
        images = np.empty((len(self), *(self.image_shape or ())), np.uint8)
        labels = np.empty(len(self), np.int32)

        def fill(chunk: range) -> None:
            for index in chunk:
                example = self._read(index)
                if example["image"].shape != images.shape[1:]:
                    raise DataError(
                        f"example {index} of {self.name!r} has shape {example['image'].shape}, "
                        f"the data set promises {images.shape[1:]}"
                    )
                images[index], labels[index] = example["image"], example["label"]

        # Decoding releases the interpreter lock. Chunks, because a task costs as much as reading
        # a small image.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            chunks = [range(at, min(at + 512, len(self))) for at in range(0, len(self), 512)]
            for done in [pool.submit(fill, chunk) for chunk in chunks]:
                done.result()
        return {"image": images, "label": labels}


def select(split: str, sizes: dict[str, int], *, name: str) -> list[tuple[str, np.ndarray]]:
    """Finds positions that a split string names, see `splits.parse`; errors name the set."""
    if not isinstance(split, str):
        raise DataError(f"{name!r}: split is {split!r}, expected a text such as 'train[:80%]'")
    try:
        return splits.parse(split, sizes)
    except ValueError as error:
        raise DataError(f"{name!r}: {error}") from error
