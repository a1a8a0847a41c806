"""What our TFDS builders share: examples from installed packages, or from fetched archives."""

import abc
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rml import assets
from rml.data import vector

SEED = 0
"""Fixes which examples are in which split, and their order. Changing it needs a new VERSION."""

MOST: int | None = None
"""How many examples are made of fetched archives, all if None; tests make a part."""


class Packaged(tfds.core.GeneratorBasedBuilder):
    """Examples that come inside installed packages."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks beside a builder's code for checksums of its downloads. There are none, and the
    # search needs importlib_resources, which TFDS does not install.
    code_path = None
    DATED = False
    """Whether its one config names what was read, such as versions; others may be prepared too."""

    @classmethod
    def directory(cls) -> Path:
        """Returns where it is prepared below the data directory."""
        return Path(cls.name, str(cls.VERSION))


class Fetched(Packaged):
    """Examples that are made from assets, once and in an order that the seed fixes.

    A data set names its assets, its features and, by split, its examples.
    """

    ASSETS: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Leaves TFDS's list of names as it is: some of ours are there already."""
        super().__init_subclass__(skip_registration=True, **options)

    @classmethod
    def licence(cls) -> str:
        """Lists the licences of the archives that it is made from."""
        found = dict.fromkeys(assets.listed()[name].licence for name in cls.ASSETS)
        return "; ".join(found)

    @abc.abstractmethod
    def _features(self) -> dict[str, Any]:
        """TFDS features by name."""

    def _keyed(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """Each example with the key of its group, which stays in one split, see `by_split`."""
        raise NotImplementedError

    def _examples(self) -> Mapping[str, Iterable[dict[str, Any]]]:
        """Examples of each split, in the order in which they are kept."""
        return by_split(self._keyed())

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(self._features()),
            license=self.licence(),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        for name in self.ASSETS:
            assets.find(name)  # what is missing or damaged is said before any work
        return {split: self._generate_examples(found) for split, found in self._examples().items()}

    def _generate_examples(self, examples: Iterable[dict[str, Any]]) -> Iterator:
        yield from enumerate(examples)


class Drawn(Fetched):
    """Drawings without those that show nothing and near copies across splits, which are counted.

    The counts are the metadata of its info: `blank`, and by split `near_copies`.
    """

    @abc.abstractmethod
    def _drawings(self) -> Iterable[tuple[str, dict[str, Any] | None]]:
        """Each drawing with the key of its group; None for one that shows nothing."""

    def _keyed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self._blank = 0
        for key, example in self._drawings():
            if example is None:
                self._blank += 1
            else:
                yield key, example

    def _examples(self) -> Mapping[str, Iterable[dict[str, Any]]]:
        splits = by_split(self._keyed())
        sizes = {split: len(part) for split, part in splits.items()}
        splits = without_near_copies(splits)
        near = {split: size - len(splits[split]) for split, size in sizes.items()}
        assert isinstance(self.info.metadata, dict)
        self.info.metadata.update(blank=self._blank, near_copies=near)
        return splits


def image(side: int, channels: int = 3) -> tfds.features.Tensor:
    """Makes an image's feature, uint8 `[side, side, channels]`, kept as bytes: read at once."""
    return tfds.features.Tensor(
        shape=(side, side, channels), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
    )


def share(key: str) -> float:
    """Hashes a key alone to a number in [0, 1), for splits that keep a group together."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32


def split_of(key: str) -> str:
    """Chooses the split of examples by key: 80% train, 10% validation, 10% test of the keys."""
    place = share(key)
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"


def without_near_copies(
    splits: dict[str, list[dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """Drops validation and test images that are near copies of a training image.

    Args:
      splits: Examples of train, validation and test, each with an `image`.

    Returns:
      The splits; validation images may be near copies of test images.
    """
    train = [example["image"] for example in splits["train"]]
    for split in ("validation", "test"):
        near = vector.near_copies([example["image"] for example in splits[split]], train)
        splits[split] = [x for x, copy in zip(splits[split], near, strict=True) if not copy]
    return splits


def by_split(
    examples: Iterable[tuple[str, dict[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """Sorts examples into splits by their keys, and each split into an order that looks random.

    Args:
      examples: Pairs of the key of a group that must stay together, and an example.

    Returns:
      Examples of train, validation and test. Every slice of a split is a sample of it.
    """
    found: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for key, example in itertools.islice(examples, MOST):
        found[split_of(key)].append(example)
    for part in found.values():
        order = np.random.default_rng(SEED).permutation(len(part))
        part[:] = [part[at] for at in order]
    return found
