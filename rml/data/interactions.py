"""Which user met which item when, the last items of each held out: `interactions:PATH`."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rml.data import own
from rml.data.errors import DataError
from rml.data.source import select

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COLUMNS = ("user", "item", "time")
HELD_OUT = 3
"""Interactions that a user needs for the last two to be held out."""


class Interactions(NamedTuple):
    """Interactions of one split: each user's are together, in the order of time.

    Attributes:
      user: int32 `[n]`, positions in `user_ids`, ascending.
      item: int32 `[n]`, positions in `item_ids`.
      time: float64 `[n]`, as the file has it.
      rating: float32 `[n]`, or `None` where the file has none.
      user_ids: Ids of all splits' users as the file has them, in the order of strings.
      item_ids: Ids of all splits' items, in the order of strings.
    """

    user: Int[np.ndarray, " n"]
    item: Int[np.ndarray, " n"]
    time: Float[np.ndarray, " n"]
    rating: Float[np.ndarray, " n"] | None
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]


def load_interactions(name: str, split: str) -> Interactions:
    """Reads interactions into memory.

    The last interaction of a user is for "test", the one before for "validation", all others for
    "train"; users of fewer than three are in "train" alone. Of equal times, the line that comes
    later in the file counts as later.

    Args:
      name: `interactions:PATH` of a `.csv` or `.tsv` with a header, or a `.jsonl`; each may be
        compressed (`.gz`). The columns (keys) are `user`, `item`, `time` and, if there are
        ratings, `rating`; others are not read. Times are numbers, of any unit.
      split: Split in TFDS's syntax.

    Returns:
      The interactions of the split. Numbers of users and items are the same in all splits.

    Raises:
      DataError: If the file is missing or empty, a column is missing, a line is broken or repeats
        another one, a time or a rating is no number, or the split does not exist.
    """
    path = own.path_of(name, "interactions")
    users, items = _Numbers(), _Numbers()
    times, ratings = [], []
    rated = None
    for where, row in _rows(path):
        rated = "rating" in row if rated is None else rated
        users.add(_id(where, row, "user"))
        items.add(_id(where, row, "item"))
        times.append(_number(where, row, "time"))
        if rated:
            ratings.append(_number(where, row, "rating"))
        elif "rating" in row:
            raise DataError(
                f"{where} has a rating, lines before it have none: expected all or none"
            )
    if not times:
        raise DataError(f"{path} holds no interactions, expected {', '.join(COLUMNS)} in each line")
    (user, user_ids), (item, item_ids) = users.sorted(), items.sorted()
    time = np.array(times)
    _check_repeats(path, user, item, time)

    order = np.lexsort((time, user))  # stable: the order of lines where times are equal
    counts = np.bincount(user)
    later = np.cumsum(counts)[user[order]] - 1 - np.arange(len(order))  # of the same user
    part = np.where(counts[user[order]] < HELD_OUT, 2, np.minimum(later, 2))
    members = {
        key: np.flatnonzero(part == number)
        for key, number in (("train", 2), ("validation", 1), ("test", 0))
        if (part == number).any()
    }
    parts = select(split, {key: len(at) for key, at in members.items()}, name=name)
    rows = order[np.sort(np.concatenate([members[key][positions] for key, positions in parts]))]
    return Interactions(
        user[rows],
        item[rows],
        time[rows],
        np.array(ratings, np.float32)[rows] if rated else None,
        user_ids,
        item_ids,
    )


class _Numbers:
    """Ids as numbers."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._column: list[int] = []

    def add(self, key: str) -> None:
        """Appends an id to the column."""
        self._column.append(self._number.setdefault(key, len(self._number)))

    def sorted(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The column as positions in the ids, int32, and the ids in the order of strings."""
        place = np.empty(len(self._number), np.int32)
        ids = sorted(self._number)
        place[[self._number[key] for key in ids]] = np.arange(len(ids))
        return place[self._column], tuple(ids)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line by column, and where it is."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".jsonl":
        yield from own.json_lines(path, expected="an object with 'user', 'item' and 'time'")
        return
    if suffix not in DELIMITERS:
        raise DataError(f"{path} ends in {suffix!r}, expected .csv, .tsv or .jsonl (or with .gz)")
    delimiter = DELIMITERS[suffix]
    header: list[str] = []
    for where, line in own.lines(path):
        try:
            row = next(csv.reader([line], delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise DataError(f"{where} is broken: {error}") from error
        if not header:
            header = [column.strip() for column in row]
            if not set(COLUMNS) <= set(header) or len(set(header)) < len(header):
                raise DataError(
                    f"{where} has the columns {header}, expected a header with "
                    f"{', '.join(COLUMNS)} and, if there are ratings, rating"
                )
        elif len(row) != len(header):
            raise DataError(f"{where} has {len(row)} columns, expected {len(header)}: {header}")
        else:
            yield where, dict(zip(header, row, strict=True))


def _id(where: str, row: dict[str, Any], key: str) -> str:
    value = str(own.field(where, row, key, (str, int), "a string that is not empty"))
    if not value:
        raise DataError(f"{where}: {key!r} is empty, expected an id")
    return value


def _number(where: str, row: dict[str, Any], key: str) -> float:
    value = own.field(where, row, key, (str, int, float), "a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {key!r} is {value!r:.80}, expected a number")
    return number


def _check_repeats(path: Path, user: np.ndarray, item: np.ndarray, time: np.ndarray) -> None:
    """Refuses lines of the same user, item and time: held out, one would be known from another."""
    order = np.lexsort((time, item, user))
    same = np.all(
        [column[order][1:] == column[order][:-1] for column in (user, item, time)], axis=0
    )
    if same.any():
        first, second = sorted(order[same.argmax() :][:2].tolist())
        places = [where for where, _ in _rows(path)]
        raise DataError(
            f"{places[second]} repeats {places[first].rpartition(', ')[2]}: the same user, item "
            "and time, expected each once"
        )
