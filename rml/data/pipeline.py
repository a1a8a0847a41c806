"""Batches of a source: shuffled anew each epoch and resumable bit for bit.

Data that fits in memory is gathered a batch at a time, without Python for each example.
"""

import os
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np

from rml.data.errors import DataError
from rml.data.images import pair, resize, resize_and_center_crop
from rml.data.source import IN_MEMORY_BYTES, Example, Examples, Source

Transform = Callable[[Example, np.random.Generator], Example]


def batches(
    source: Examples,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    repeat: bool = True,
    drop_remainder: bool = True,
    transform: Transform | None = None,
    num_threads: int | None = None,
    part: int = 0,
    parts: int = 1,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> grain.IterDataset:
    """Makes batches of a source as NumPy arrays, with the keys of its examples.

    Of images they are `{"image": [b, h, w, c], "label": int32 [b]}`, of texts
    (`tokens.token_source`) `{"tokens": int32 [b, L], "length": int32 [b]}`.

    Every example comes once an epoch (but for the remainder, which is another one each epoch).
    The order, and what `transform` draws, are functions of (seed, epoch, example) alone: the
    iterator's state is the number of the next batch, a resumed iterator continues exactly, and the
    global batch does not depend on the number of processes or threads.

    Args:
      source: Source to read.
      batch_size: Size of the global batch; each process yields its `batch_size / parts` rows.
      seed: Seed of order and transforms.
      shuffle: A new order each epoch, otherwise the source's own.
      repeat: Epochs without end, otherwise one.
      drop_remainder: Leaves out the last, smaller batch of each epoch.
      transform: `(example, rng) -> example` on the host, in threads; it makes sizes equal where
        they are not (see `decode_and_resize`).
      num_threads: Number of threads that read examples; that of CPUs, at most 16, if not given.
        Not used for data in memory.
      part: Number of our part of the global batch.
      parts: Number of equal parts.
      in_memory_bytes: Sources up to this size are loaded first.

    Returns:
      A dataset whose iterator has `get_state` and `set_state`.

    Raises:
      DataError: If the batch does not fit the source, the processes or the memory.
    """
    n = len(source)
    if batch_size < 1:
        raise DataError(f"batch_size must be positive, got {batch_size}")
    if batch_size > n and drop_remainder:
        raise DataError(
            f"batch_size={batch_size} is larger than the {n} examples of {source.name!r} split "
            f"{source.split!r}: take at most {n}"
        )
    if seed < 0:
        raise DataError(f"seed must not be negative, got {seed}")
    check_part(part, parts)
    if batch_size % parts:
        raise DataError(f"batch_size={batch_size} is not divisible by {parts} processes")
    if parts > 1 and not drop_remainder:
        raise DataError("several processes need equal batches: drop_remainder must be True")

    order = _Order(
        n=n,
        batch_size=batch_size,
        seed=seed if shuffle else None,
        drop_remainder=drop_remainder,
        first=part * (batch_size // parts),
        rows=batch_size // parts,
    )
    epochs = sys.maxsize // (n * 2) if repeat else 1
    if transform is None and (source.nbytes is None or source.nbytes <= in_memory_bytes):
        arrays = (
            source.arrays(max_bytes=in_memory_bytes)
            if isinstance(source, Source)
            else source.arrays()
        )
        gather = _Gather(arrays, order, epochs)
        # Threads would only contend for the interpreter lock.
        return grain.MapDataset.source(gather).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
    threads = min(16, os.cpu_count() or 1) if num_threads is None else num_threads
    if not drop_remainder and n % batch_size and repeat:
        raise DataError(
            f"{source.name!r} is read by example, where batches of unequal size do not repeat: "
            "set drop_remainder=True or repeat=False"
        )
    reader = _Reader(source, order, epochs, transform, seed)
    read = (
        grain.MapDataset.source(reader)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * threads, 64))
        )
        .batch(order.rows, drop_remainder=drop_remainder)
    )
    return CountedByBatch(read, order.rows, len(reader))


def check_part(part: int, parts: int) -> None:
    """Raises `DataError` unless a part of each batch is one of so many."""
    if not 0 <= part < parts:
        raise DataError(f"part={part} is not in 0..{parts - 1}")


class _Order:
    """Which examples are in which batch; rows `first:first + rows` of each are ours."""

    def __init__(
        self,
        *,
        n: int,
        batch_size: int,
        seed: int | None,
        drop_remainder: bool,
        first: int,
        rows: int,
    ) -> None:
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.first = first
        self.rows = rows
        self.per_epoch = n // batch_size if drop_remainder else -(-n // batch_size)
        self._drawn: dict[int, np.ndarray] = {}

    def batch(self, index: int) -> np.ndarray:
        """Positions of our rows of batch `index`, counted through all epochs."""
        epoch, batch = divmod(index, self.per_epoch)
        start = batch * self.batch_size + self.first
        stop = min(start + self.rows, self.n)
        if self.seed is None:
            return np.arange(start, stop)
        return self._permutation(self.seed, epoch)[start:stop]

    def _permutation(self, seed: int, epoch: int) -> np.ndarray:
        """The order of an epoch; it and the one drawn before are kept, as threads read both."""
        drawn = self._drawn
        if epoch not in drawn:
            new = np.random.default_rng([seed, epoch]).permutation(self.n)
            # Replaced and not changed, since other threads read it meanwhile.
            drawn = self._drawn = {**{one: drawn[one] for one in [*drawn][-1:]}, epoch: new}
        return drawn[epoch]


class _Gather:
    """Batches by position, each one vectorised gather from memory."""

    def __init__(self, arrays: dict[str, np.ndarray], order: _Order, epochs: int) -> None:
        self._arrays = arrays
        self._order = order
        self._size = order.per_epoch * epochs

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rows = self._order.batch(int(index))
        return {key: array[rows] for key, array in self._arrays.items()}

    def __repr__(self) -> str:
        return f"_Gather(n={self._order.n}, batch_size={self._order.batch_size})"


class _Reader:
    """Examples by position in the stream of our rows of all batches."""

    def __init__(
        self, source: Examples, order: _Order, epochs: int, transform: Transform | None, seed: int
    ) -> None:
        self._source = source
        self._order = order
        self._transform = transform
        self._seed = seed
        whole = order.per_epoch * order.rows
        self._size = (
            epochs * whole if order.rows < order.batch_size else epochs * min(whole, order.n)
        )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        batch, row = divmod(int(index), self._order.rows)
        position = int(self._order.batch(batch)[row])
        example = self._source[position]
        if self._transform is not None:
            epoch = batch // self._order.per_epoch
            rng = np.random.default_rng([self._seed, epoch, position, 1])
            example = self._transform(example, rng)
        if "label" in example:
            example = {**example, "label": np.int32(example["label"])}
        return example

    def __repr__(self) -> str:
        return f"_Reader({self._source!r})"


class CountedByBatch(grain.IterDataset):
    """Batches whose position is their number, whatever the rows of a process in each."""

    def __init__(self, parent: grain.IterDataset, rows: int, size: int = sys.maxsize) -> None:
        super().__init__(parent)
        self._rows, self._size = rows, size

    def __iter__(self) -> grain.DatasetIterator:
        return _CountedIterator(iter(self._parent), self._rows, self._size)


class _CountedIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, rows: int, size: int) -> None:
        super().__init__(parent)
        self._rows, self._size = rows, size

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._parent)

    def get_state(self) -> dict[str, int]:
        return {"next_index": -(-self._parent.get_state()["next_index"] // self._rows)}

    def set_state(self, state: dict[str, int]) -> None:
        at = min(state["next_index"] * self._rows, self._size)  # the last batch may be smaller
        self._parent.set_state({"next_index": at})


def decode_and_resize(
    size: int | Sequence[int],
    *,
    scale: Sequence[float | int] | None = None,
    ratio: Sequence[float | int] = (3 / 4, 4 / 3),
) -> Transform:
    """Makes a host transform that brings images of any size to one, so that they stack.

    Args:
      size: Height and width of the result.
      scale: Range of the share of the area that a random crop keeps; `None` takes the largest
        centred crop instead, the same each time.
      ratio: Range of the crop's aspect (width by height), drawn log-uniformly.

    Returns:
      A transform for `batches`.

    Raises:
      DataError: If a range is not ascending and positive, or scale exceeds 1.
    """
    target = pair(size)
    for what, bounds in (("scale", scale or (1.0, 1.0)), ("ratio", ratio)):
        if not 0 < bounds[0] <= bounds[1]:
            raise DataError(f"{what} must be an ascending range of positive numbers, got {bounds}")
    if scale is not None and scale[1] > 1:
        raise DataError(f"scale is a share of the image's area, at most 1, got {scale}")

    def transform(example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        if scale is None:
            return {**example, "image": resize_and_center_crop(image, target)}
        box = _random_box(image.shape[0], image.shape[1], scale, ratio, rng)
        return {**example, "image": resize(image, target, box=box)}

    return transform


def stacked_views(crops: Sequence[Transform]) -> Transform:
    """Makes a host transform that cuts several crops of each image, as `augment.views` takes them.

    Args:
      crops: One transform a view, such as `decode_and_resize` with a `scale`; of one size.

    Returns:
      A transform for `batches` that gives images `[n, h, w, c]`.
    """

    def transform(example: Example, rng: np.random.Generator) -> Example:
        return {**example, "image": np.stack([crop(example, rng)["image"] for crop in crops])}

    return transform


def _random_box(
    height: int,
    width: int,
    scale: Sequence[float | int],
    ratio: Sequence[float | int],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    area = rng.uniform(scale[0], scale[1], 10) * height * width
    aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), 10))
    tall, wide = np.sqrt(area / aspect), np.sqrt(area * aspect)
    # The first of ten draws that fits; if none does, the first one clipped.
    first = np.argmax((tall <= height) & (wide <= width))
    box_h, box_w = min(tall[first], height), min(wide[first], width)
    left, top = rng.uniform(0, width - box_w), rng.uniform(0, height - box_h)
    return left, top, left + box_w, top + box_h
