"""Examples split by who made them: the parts share classes and no designer, style or author."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rml.assets import default_data_dir
from rml.data.errors import DataError
from rml.data.load import load
from rml.data.source import ArraySource
from rml.errors import local_path, unknown


class Classes(NamedTuple):
    """A class feature of a data set.

    Attributes:
      values: Class of each example.
      names: Names of all classes.
    """

    values: np.ndarray
    names: Sequence[str]


def widespread_classes(
    labels: Int[np.ndarray, " n"], domains: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, " k"]:
    """Chooses the classes that are found in the most domains.

    Args:
      labels: Class of each example; negative ones are of no class.
      domains: Domain of each example, such as its designer; negative ones are of none.
      count: Number of classes to take; ties are broken by a fixed shuffle.

    Returns:
      Class numbers in ascending order.

    Raises:
      DataError: There are fewer classes.
    """
    seen = np.zeros((labels.max() + 1, domains.max() + 1), bool)
    known = (labels >= 0) & (domains >= 0)
    seen[labels[known], domains[known]] = True
    breadth = seen.sum(1)
    if not 0 < count <= np.count_nonzero(breadth):
        raise DataError(f"{count} classes are asked for, {np.count_nonzero(breadth)} have examples")
    shuffled = np.random.default_rng(0).permutation(len(breadth))
    return np.sort(shuffled[np.argsort(-breadth[shuffled], kind="stable")[:count]])


def open_domains(
    name: str,
    split: str,
    wanted: Sequence[str],
    *,
    domain_key: str,
    label_key: str,
    classes: int,
    image_size: Sequence[int],
    data_dir: str | Path | None = None,
) -> ArraySource:
    """Opens the images of some domains of a prepared data set.

    Args:
      name: Name of the data set.
      split: Split in TFDS's syntax, the same for all parts, such as "all".
      wanted: Names of the domains to read.
      domain_key: Feature that is the domain.
      label_key: Feature that is the class.
      classes: Number of classes, see `widespread_classes`: the same ones whatever is `wanted`.
      image_size: Height and width that every image is brought to.
      data_dir: TFDS data directory, as for `load`.

    Returns:
      The images, their classes numbered from 0 in the order of the data set's.

    Raises:
      DataError: The data set cannot be read, or a domain has no image of these classes.
      UserError: A domain that the data set does not name.
    """
    return _open(
        name, split, tuple(wanted), domain_key, label_key, classes, tuple(image_size), data_dir
    )


@functools.lru_cache(maxsize=8)  # a comparison opens the same parts for each of its methods
def _open(
    name: str,
    split: str,
    wanted: tuple[str, ...],
    domain_key: str,
    label_key: str,
    classes: int,
    image_size: tuple[int, ...],
    data_dir: str | Path | None,
) -> ArraySource:
    labels, domains = read_classes(name, split, (label_key, domain_key), data_dir).values()
    for domain in wanted:
        if domain not in domains.names:
            raise unknown(f"{domain_key} of {name}", domain, domains.names)
    chosen = widespread_classes(labels.values, domains.values, classes)
    number = np.full(len(labels.names), -1)
    number[chosen] = np.arange(classes)
    drawn = np.isin(domains.values, [domains.names.index(domain) for domain in wanted])
    rows = np.flatnonzero(drawn & (labels.values >= 0) & (number[labels.values] >= 0))
    if not len(rows):
        raise DataError(f"{name!r} has no image of {classes} classes by {', '.join(wanted)}")
    source = load(name, split, data_dir=data_dir, image_size=image_size, label_key=label_key)
    return ArraySource(
        np.stack([source[int(row)]["image"] for row in rows]),
        number[labels.values[rows]],
        class_names=[labels.names[one] for one in chosen],
        name=name,
        split=f"{split} by {', '.join(wanted)}",
    )


def read_classes(
    name: str, split: str, keys: Sequence[str], data_dir: str | Path | None = None
) -> dict[str, Classes]:
    """Reads class features of a prepared data set without its images.

    Raises:
      DataError: The data set cannot be read, or a feature is missing or no class.
    """
    from rml.data.tfds_source import read_texts

    directory = default_data_dir() if data_dir is None else local_path(data_dir, "data_dir")
    found, features = read_texts(name, split, data_dir=directory, keys=keys)
    read: dict[str, Classes] = {}
    for key in keys:
        values: Any = found[key]
        if not isinstance(values, np.ndarray):
            raise DataError(f"{name!r}: feature {key!r} is no class")
        read[key] = Classes(values, features[key].names)
    return read


def groups_of_classes(
    name: str, split: str, *, label_key: str, group_key: str, data_dir: str | Path | None = None
) -> Mapping[str, str]:
    """Reads the group of each class: that of its first example which names both.

    Raises:
      DataError: As `read_classes`.
    """
    read = read_classes(name, split, (label_key, group_key), data_dir)
    labels, groups = read[label_key], read[group_key]
    rows = np.flatnonzero((labels.values >= 0) & (groups.values >= 0))
    classes, first = np.unique(labels.values[rows], return_index=True)
    return {
        labels.names[label]: groups.names[groups.values[row]]
        for label, row in zip(classes, rows[first], strict=True)
    }
