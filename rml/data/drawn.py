"""Batches whose examples are drawn by their classes, resumable bit for bit."""

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from rml.data.pipeline import CountedByBatch, check_part
from rml.data.source import IN_MEMORY_BYTES, Source
from rml.errors import UserError

Rows = Int[np.ndarray, " b"]


def class_batches(
    source: Source,
    *,
    classes: int,
    examples: int,
    seed: int,
    part: int = 0,
    parts: int = 1,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> grain.IterDataset:
    """Makes batches of so many examples of each of so many classes, those of a class side by side.

    Classes are drawn without repetition, examples too where the class has enough. Examples without
    a label are left out. The draw is a function of (seed, batch), so that the iterator's state is
    one position.

    Args:
      source: Source to read; its labels must be known.
      classes: Number of classes in a global batch.
      examples: Number of examples of each.
      seed: Seed of classes and examples.
      part: Number of our part of every global batch.
      parts: Number of equal parts, each of whole classes.
      in_memory_bytes: Sources up to this size are loaded first.

    Returns:
      A checkpointable dataset without end of `{"image": [b, h, w, c], "label": int32 [b]}`.

    Raises:
      UserError: There are fewer classes, a number is below 1, classes cannot be divided among the
        parts, `part` is none of the parts, the seed is negative, or the source does not know its
        labels or has none.

    Source: Hermans et al. 2017, In Defense of the Triplet Loss, section 2: batches of P classes
    and K examples of each.
    """
    if min(classes, examples) < 1 or classes % parts:
        of = f" for {parts} parts" if parts > 1 else ""
        raise UserError(
            f"batches of {classes} classes with {examples} examples each{of}: expected numbers "
            "above 0, and of classes a multiple of that of the parts"
        )
    labels = known_labels(source, in_memory_bytes)
    order, _, first, count = by_class(labels)
    if classes > len(first):
        raise UserError(
            f"{source.name!r} has {len(first)} classes with examples, expected at least the "
            f"{classes} of a batch"
        )
    share = classes // parts

    def rows(batch: int) -> Rows:
        rng = np.random.default_rng([seed, batch])
        drawn = rng.permutation(len(first))[:classes]
        # A class with fewer examples begins again.
        taken = [first[c] + np.resize(rng.permutation(count[c]), examples) for c in drawn.tolist()]
        return order[np.concatenate(taken[part * share : (part + 1) * share])]

    return drawn_batches(
        source, rows, size=share * examples, seed=seed, part=part, parts=parts,
        in_memory_bytes=in_memory_bytes,
    )  # fmt: skip


def known_labels(
    source: Source,
    in_memory_bytes: int = IN_MEMORY_BYTES,
    *,
    otherwise: str = "expected a source that knows its labels",
) -> Rows:
    """Finds the labels of a source's examples, which are drawn by them before any is read.

    Args:
      source: The source.
      in_memory_bytes: Sources up to this size are loaded.
      otherwise: What a user can do where labels are not known.

    Returns:
      The labels.

    Raises:
      UserError: The source does not know its labels, or has none.
    """
    held = source.nbytes is not None and source.nbytes <= in_memory_bytes
    labels = source.arrays(max_bytes=in_memory_bytes)["label"] if held else source.labels
    if labels is None:
        raise UserError(
            f"{source.name!r} knows a label only by reading its example, and examples are drawn by "
            f"their labels first; {otherwise}"
        )
    if not (np.asarray(labels) >= 0).any():
        raise UserError(f"{source.name!r} has no example of a known class, expected some to draw")
    return np.asarray(labels)


def by_class(
    labels: Int[np.ndarray, " b"],
) -> tuple[
    Int[np.ndarray, " n"], Int[np.ndarray, " c"], Int[np.ndarray, " c"], Int[np.ndarray, " c"]
]:
    """Orders labelled examples by class.

    Args:
      labels: Class of each example, below 0 of one without.

    Returns:
      Positions of the examples, those of a class side by side; the classes that have some; where in
      the positions each begins; and how many each has.
    """
    known = np.flatnonzero(labels >= 0)
    order = known[np.argsort(labels[known], kind="stable")]
    return (order, *np.unique(labels[order], return_index=True, return_counts=True))


def drawn_batches(
    source: Source,
    rows: Callable[[int], Rows],
    *,
    size: int,
    seed: int,
    part: int = 0,
    parts: int = 1,
    added: Callable[[Rows], Mapping[str, np.ndarray]] = lambda rows: {},
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> grain.IterDataset:
    """Makes batches of the examples that a function names for each.

    Args:
      source: Source to read.
      rows: `rows(batch) -> positions` of our part of a batch.
      size: Number of rows of our part.
      seed: Seed that `rows` draws from.
      part: Number of our part.
      parts: Number of parts.
      added: Further entries of a batch from its positions, a value each.
      in_memory_bytes: Sources up to this size are loaded first.

    Returns:
      A checkpointable dataset without end.

    Raises:
      UserError: The seed is negative, or `part` is none of the parts.
    """
    if seed < 0:
        raise UserError(f"seed must not be negative, got {seed}")
    check_part(part, parts)
    if source.nbytes is not None and source.nbytes <= in_memory_bytes:
        arrays = source.arrays(max_bytes=in_memory_bytes)
        return grain.MapDataset.source(_Gathered(arrays, rows, added)).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
    kept = lru_cache(maxsize=4)(rows)  # asked for anew for every row of a batch
    read = grain.MapDataset.source(_Read(source, kept, added, size)).to_iter_dataset().batch(size)
    return CountedByBatch(read, size)


class _Gathered:
    """Batches by position, each one vectorised gather from memory."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], rows: Callable[[int], Rows], added: Callable
    ) -> None:
        self._arrays, self._rows, self._added = arrays, rows, added

    def __len__(self) -> int:
        return sys.maxsize // 2

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rows = self._rows(int(index))
        return {name: array[rows] for name, array in self._arrays.items()} | dict(self._added(rows))


class _Read:
    """Examples by position in the stream of all batches, read one by one."""

    def __init__(
        self, source: Source, rows: Callable[[int], Rows], added: Callable, size: int
    ) -> None:
        self._source, self._rows, self._added, self._size = source, rows, added, size

    def __len__(self) -> int:
        return sys.maxsize // 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(int(index), self._size)
        rows = self._rows(batch)
        example = self._source[int(rows[row])]
        more = {name: values[row] for name, values in self._added(rows).items()}
        return {**example, "label": np.int32(example["label"]), **more}
