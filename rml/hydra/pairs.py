"""Pairs of classes: numbering, uniform sampling and batches, without listing all pairs."""

from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from rml.data import Source, augment
from rml.data.drawn import by_class, drawn_batches, known_labels
from rml.data.pipeline import check_part
from rml.data.source import IN_MEMORY_BYTES
from rml.errors import UserError, unknown

SAMPLING = ("uniform", "batch", "identical", "distinct")
Integers = Array | np.ndarray


def number_of_pairs(classes: int) -> int:
    """Counts unordered pairs of classes, those of a class with itself included."""
    if classes < 1:
        raise ValueError(f"classes is {classes}, expected at least 1")
    return classes * (classes + 1) // 2


def unrank(
    index: Int[Integers, "*n"], *, classes: int
) -> tuple[Int[Integers, "*n"], Int[Integers, "*n"]]:
    """Computes the pair of each index, a bijection of [0, C (C + 1) / 2) and the pairs i <= j.

    Rows j and C - 1 - j (for odd C, rows j - 1 and C - 1 - j) of the triangle i <= j, laid end to
    end, have equal length, so that the triangle is a rectangle: one division, exact in integers.

    Args:
      index: Index of the pair, in any integer type that holds C (C + 1) / 2; int32 does up to
        65,535 classes.
      classes: Number of classes C.

    Returns:
      i and j, of the type of `index`.

    Raises:
      ValueError: If the type of `index` is too narrow for this many classes.
    """
    pairs = number_of_pairs(classes)
    if pairs - 1 > np.iinfo(index.dtype).max:
        raise ValueError(
            f"{classes} classes have {pairs} pairs, more than {index.dtype} counts: give a wider "
            "integer type, or draw pairs with sample_pairs"
        )
    width, _ = _rectangle(classes)
    return _fold(index % width, index // width, classes)


def sample_pairs(
    key: Key[Array, ""], number: int, *, classes: int
) -> tuple[Int[Array, " number"], Int[Array, " number"]]:
    """Draws unordered pairs uniformly, (i, i) as likely as (i, j).

    Args:
      key: Random key of the draw.
      number: Number of pairs.
      classes: Number of classes; 32-bit arithmetic is exact for any that fits memory.

    Returns:
      i and j with i <= j.
    """
    width, height = _rectangle(classes)
    across, down = jax.random.split(key)
    return _fold(
        jax.random.randint(across, (number,), 0, width),
        jax.random.randint(down, (number,), 0, height),
        classes,
    )


def sample_partners(
    key: Key[Array, ""], labels: Int[Array, " n"], *, classes: int, sampling: str = "uniform"
) -> Int[Array, " n"]:
    """Draws the partner class of each row of a batch.

    Args:
      key: Random key of the draw.
      labels: Class of each row.
      classes: Number of classes.
      sampling: "uniform", such that all unordered pairs are equally likely where the labels are:
        a row's own class with probability 2 / (C + 1), any other with 1 / (C + 1); "batch", the
        labels permuted, so that every partner is in the batch; "identical", the own class;
        "distinct", any other class.

    Returns:
      The partners.

    Raises:
      ValueError: If `sampling` is unknown, or "distinct" with one class.

    Source: batch, identical and distinct: the authors' code of arXiv:2410.18200.
    """
    if sampling not in SAMPLING:
        raise unknown("sampling of pairs", sampling, SAMPLING)
    if sampling == "identical":
        return labels
    if sampling == "batch":
        return jax.random.permutation(key, labels)
    if sampling == "distinct" and classes < 2:
        raise ValueError(f"distinct pairs need at least 2 classes, got {classes}")
    # Steps 0 and C both lead back to the own class, which makes it twice as likely.
    low, high = (1, classes) if sampling == "distinct" else (0, classes + 1)
    return (labels + jax.random.randint(key, labels.shape, low, high)) % classes


def view_partners(
    key: Key[Array, ""],
    labels: Int[Array, " b"],
    *,
    classes: int,
    sampling: str = "uniform",
    views: int = 2,
) -> Int[Array, " n"]:
    """Draws a partner class for each view of each image, as `sample_partners` does for a row.

    Args:
      key: Key of the draw.
      labels: Class of each image.
      classes: Number of classes.
      sampling: One of `SAMPLING`.
      views: Number of views of an image.

    Returns:
      The partners, in the order of `rml.data.augment.flat_views`.
    """
    rows = jnp.tile(labels, views)
    partners = sample_partners(key, rows, classes=classes, sampling=sampling)
    return augment.flat_views(partners.reshape(views, -1))


def pair_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    part: int = 0,
    parts: int = 1,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> grain.IterDataset:
    """Makes batches of drawn pairs: rows 2p and 2p + 1 are examples of the two classes of pair p.

    With many classes a shuffled batch rarely holds both classes of a drawn pair; here it always
    does. Pairs are uniform over those of the classes that have examples, examples uniform in
    their class (two different ones for a pair (i, i) where the class has them). Examples without
    a label are left out. The draw is a function of (seed, batch), so that the iterator's state is
    one position.

    Args:
      source: Source to read; its labels must be known.
      batch_size: Rows of the global batch.
      seed: Seed of pairs and examples.
      part: Number of our part of every global batch.
      parts: Number of equal parts, each of an even number of rows.
      in_memory_bytes: Sources up to this size are loaded first.

    Returns:
      A checkpointable dataset without end of `{"image": [b, h, w, c], "label": int32 [b],
      "partner": int32 [b]}`, where a row's partner is the class of the other row of its pair.

    Raises:
      UserError: If a part would not be whole pairs or is none of the parts, the seed is negative,
        or the source does not know its labels or has none.
    """
    check_part(part, parts)
    if batch_size < 2 or batch_size % (2 * parts):
        of = f" for each of {parts} parts" if parts > 1 else ""
        raise UserError(f"batches of pairs need an even batch_size{of}, got {batch_size}")
    otherwise = "take pairs.sampling='batch'"
    labels = known_labels(source, in_memory_bytes, otherwise=otherwise)
    draw = _Draw(labels, batch_size // 2, seed, part, parts)
    return drawn_batches(
        source, draw.rows, size=draw.size, seed=seed, part=part, parts=parts,
        added=lambda rows: {"partner": draw.partners(rows)}, in_memory_bytes=in_memory_bytes,
    )  # fmt: skip


def _rectangle(classes: int) -> tuple[int, int]:
    """Width and height of the rectangle of all pairs; the width is odd."""
    width = classes + 1 - classes % 2
    return width, number_of_pairs(classes) // width


def _fold(a: Any, b: Any, classes: int) -> tuple[Any, Any]:
    """The pair at column `a` and row `b` of the rectangle."""
    length = b + 1 - classes % 2  # of the first row of the triangle that was laid here
    where = jnp.where if isinstance(a, jax.Array) else np.where
    first = a < length
    return where(first, a, a - length), where(first, length - 1, classes - 1 - b)


class _Draw:
    """Which examples are in which batch of pairs."""

    def __init__(self, labels: np.ndarray, pairs: int, seed: int, part: int, parts: int):
        self.labels, self.pairs, self.seed = labels, pairs, seed
        self.size = 2 * pairs // parts
        self.ours = slice(part * self.size, (part + 1) * self.size)
        self.order, self.classes, self.first, self.count = by_class(labels)

    def rows(self, batch: int) -> np.ndarray:
        """Positions of our rows of a batch."""
        rng = np.random.default_rng([self.seed, batch])
        present = len(self.classes)
        width, height = _rectangle(present)
        i, j = _fold(
            rng.integers(0, width, self.pairs), rng.integers(0, height, self.pairs), present
        )
        one = rng.integers(0, self.count[i])
        # From the own class any example but the first one's, where there is another.
        other = rng.integers(0, np.where((i == j) & (self.count[j] > 1), -1, 0) + self.count[j])
        other += (i == j) & (other >= one) & (self.count[j] > 1)
        rows = np.stack([self.first[i] + one, self.first[j] + other], 1).reshape(-1)
        return self.order[rows[self.ours]]

    def partners(self, rows: np.ndarray) -> np.ndarray:
        """The class of the other row of each row's pair."""
        return self.labels[rows].reshape(-1, 2)[:, ::-1].reshape(-1).astype(np.int32)
