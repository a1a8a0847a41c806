"""Which examples a split string names, and splits that keep the classes in proportion."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from rml.errors import UserError

SPLITS = ("train", "validation", "test")
"""Splits that a data set may have, beside those that a config names."""
HUNDRED = 100
"""Of so many examples, percentages are whole numbers."""
_PART = re.compile(r"(?P<name>[^\[\]+]+?)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def parse(split: str, sizes: dict[str, int]) -> list[tuple[str, np.ndarray]]:
    """Reads TFDS's split syntax: `train`, `train[:80%]`, `test[100:-50]`, `train+test`, `all`.

    Args:
      split: Split to read; `all` is every split that exists.
      sizes: Number of examples by split that exists.

    Returns:
      For each part, the split it reads and the positions in it, ascending.

    Raises:
      ValueError: If the string does not parse, a split does not exist, or nothing is selected.
    """
    return [(name, np.arange(part.start, part.stop)) for name, part in _ranges(split, sizes)]


def _ranges(split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """What `parse` returns, as ranges."""
    parts = []
    for text in split.split("+"):
        match = _PART.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"split {split!r} is not of the form 'name', 'name[from:to]' (numbers or "
                "percents) or 'name+name'"
            )
        name = match["name"].strip()
        if name not in sizes and name != "all":
            held_out = "; 'train[:80%]' and 'train[80%:]' hold a part of it out"
            raise ValueError(
                f"there is no split {name!r}; there are {sorted(sizes)} and 'all'"
                + held_out * (list(sizes) == ["train"])
            )
        for chosen in [name] if name in sizes else list(sizes):
            size = sizes[chosen]
            start = _boundary(match["start"], size, default=0)
            stop = _boundary(match["stop"], size, default=size)
            parts.append((chosen, range(start, max(start, stop))))
    if not sum(len(positions) for _, positions in parts):
        raise ValueError(f"split {split!r} selects no example of {sizes}")
    return parts


def _boundary(text: str | None, size: int, *, default: int) -> int:
    if text is None:
        return default
    if text.endswith("%"):
        percent = int(text[:-1])
        if abs(percent) > 100:
            raise ValueError(f"slice boundary {text!r} is outside -100%..100%")
        value = round(percent * size / 100)  # as TFDS rounds
    else:
        value = int(text)
    if abs(value) > size:
        raise ValueError(f"slice boundary {text!r} is outside the {size} examples there are")
    return value + size if value < 0 else value


def names(split: str) -> list[str]:
    """Lists the splits that a text such as `train[:80%]+validation` names."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def overlap(texts: Mapping[str, str]) -> bool | None:
    """Tells whether two splits of one data set share an example, its size not being known.

    Args:
      texts: Both splits, by key of the config.

    Returns:
      True where they do at every size from 100 on at which both select examples, False where they
      do at no size, and None where the size decides: as it does of a percentage and a number of
      examples, and of `train[:90%]` and `train[-10%:]`, which share one of 15 but none of 100.

    Raises:
      UserError: A text is no split, or the two select examples at no common size.
    """
    found, refused = set(), None
    for size in _sizes(texts.values()):
        try:
            shared = _overlap(texts, size)
        except UserError as error:
            refused = error
            continue
        # Of fewer, near percentages round to one place, which makes splits share less.
        if shared or size >= HUNDRED:
            found.add(shared)
    if refused is not None and not found:
        raise refused
    return found.pop() if len(found) == 1 else None


def _sizes(texts: Iterable[str]) -> list[int]:
    """Sizes of splits among which is one for every order that boundaries in the texts have.

    Of n examples, `p%` and `k` change their order where n p / 100 is k ± ½, between which it is
    rounded to k, and `-m` and `k` where n is k + m. Counted from the end, `-m` is m, and `p%` is
    (100 - p)% but where it is a half: that is rounded to the even number, from either end, at
    sizes that come back every 200.
    """
    whole = " ".join(texts)
    numbers = [int(number) for number in re.findall(r"[\[:-](\d+)(?=[:\]])", whole)]
    percents = {int(percent) for percent in re.findall(r"(\d+)%", whole)}
    shares = {share for percent in percents for share in (percent, 100 - percent) if share > 0}
    first = max([1, *numbers])  # of fewer, a number is outside
    least = max(HUNDRED, first + 1)
    turns = [one + other for one in numbers for other in numbers]
    turns += [
        (100 * number + half) // share
        for number in numbers
        for share in shares
        for half in (-50, 50)
    ]
    near = (turn + step for turn in turns for step in (-1, 0, 1))
    sizes = {least, 100 * least, *(size for size in near if size > least)}
    if re.search(r"-\d+%", whole):
        sizes = {size + more for size in sizes for more in range(2 * HUNDRED)}
    return sorted(sizes.union(range(first, least)))


def _overlap(texts: Mapping[str, str], size: int) -> bool:
    """Whether two splits share an example where every split of the data set has one size.

    Args:
      texts: Both splits, by key of the config.
      size: Number of examples.

    Raises:
      UserError: A text is no split.
    """
    named = {name for text in texts.values() for name in names(text)} - {"all"}
    found = []
    for key, text in texts.items():
        try:
            parts = _ranges(text, dict.fromkeys((*SPLITS, *named), size))
        except ValueError:
            raise UserError(
                f"{key} is {text!r}, expected splits such as 'train[:80%]' or 'train+validation'"
            ) from None
        found.append([(name, places[0], places[-1]) for name, places in parts if len(places)])
    return any(
        one == other and first <= end and begin <= last
        for one, first, last in found[0]
        for other, begin, end in found[1]
    )


def interleave(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """Draws an order in which every contiguous slice holds the classes in near equal proportion.

    Each class is shuffled and spread evenly over [0, 1); examples are read in that order. A slice
    holding a fraction f of all examples holds f of each class up to a few examples.

    Args:
      labels: Integers `[n]`.
      seed: Seed of the order.

    Returns:
      A permutation of `range(n)`.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
    return np.argsort(place, kind="stable")


def stratified(
    labels: np.ndarray, *, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits so that each class is divided in the same proportion.

    Args:
      labels: Integers `[n]`.
      test_fraction: Share of each class that goes to the test split, rounded; a class of two or
        more examples has at least one in each.
      seed: Seed of the draw.

    Returns:
      Positions of the training and of the test examples, both interleaved by class.
    """
    rng = np.random.default_rng(seed)
    in_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = round(test_fraction * len(members))
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        in_test[members[:count]] = True
    train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
    return (
        train[interleave(labels[train], seed=seed + 1)],
        test[interleave(labels[test], seed=seed + 2)],
    )
