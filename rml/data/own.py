"""What the readers of your own files share: lines and JSON that say where they are, and splits."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int

from rml.data import splits
from rml.data.errors import DataError
from rml.data.images import pair
from rml.data.source import Example, Source, select
from rml.errors import local_path, unknown

SEED = 0
"""Fixes the train/test split of data that has none."""


class FileSource(Source):
    """A source whose examples are read from files when they are asked for, images as RGB."""

    def __init__(
        self,
        *,
        size: int,
        image_size: int | Sequence[int] | None,
        name: str,
        split: str,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__(name=name, split=split, class_names=class_names, size=size)
        self._image_size = None if image_size is None else pair(image_size)
        self.image_shape = (*(self._image_size or (None, None)), 3)

    def _load(self) -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            examples: list[Example] = list(pool.map(self._read, range(len(self))))
        arrays = {key: np.stack([one[key] for one in examples]) for key in examples[0]}
        if "label" in arrays:
            arrays["label"] = arrays["label"].astype(np.int32)
        return arrays


def path_of(name: str, kind: str) -> Path:
    """Reads the path in `KIND:PATH`.

    Raises:
      UserError: If the name is of another kind, or has no path.
    """
    found, _, path = name.partition(":")
    if found != kind or not path:
        raise unknown("data set", name, (f"{kind}:PATH",))
    return local_path(path, f"the path of {name!r}")


def chosen(split: str, labels: Int[np.ndarray, " n"], *, name: str) -> Int[np.ndarray, " k"]:
    """Finds positions that a split string names, where the data has no splits of its own.

    "train" and "test" are 80% and 20% of each class, fixed by a seed and interleaved by class;
    "all" is the data in its order.

    Args:
      split: Split in TFDS's syntax.
      labels: Class of each example; all equal where there are none.
      name: Name of the data set, for messages.

    Raises:
      DataError: If the split does not parse, does not exist or selects nothing.
    """
    if split == "all":
        return np.arange(len(labels))
    train, test = splits.stratified(labels, test_fraction=0.2, seed=SEED)
    members = {key: at for key, at in (("train", train), ("test", test)) if len(at)}
    parts = select(split, {key: len(at) for key, at in members.items()}, name=name)
    return np.concatenate([members[key][positions] for key, positions in parts])


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder below one, itself first, with the names of its files.

    What is hidden is left out. Links to folders are followed, but for those to a folder that they
    lie in, which would never end.

    Raises:
      DataError: If a folder cannot be read.
    """
    # By folder, itself and those that it lies in.
    above: dict[str, tuple[str, ...]] = {str(folder): (os.path.realpath(folder),)}
    for directory, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        inner = {}
        for name in folders:
            real = os.path.realpath(os.path.join(directory, name))
            back = any(Path(one).is_relative_to(real) for one in above[directory])
            if not name.startswith(".") and not back:
                inner[name] = real
        folders[:] = inner
        for name, real in inner.items():
            above[os.path.join(directory, name)] = (*above[directory], real)
        yield Path(directory), [name for name in names if not name.startswith(".")]


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"folder {error.filename} cannot be read: {error.strerror}") from error


def lines(file: Path) -> Iterator[tuple[str, str]]:
    """Reads lines of a text file, compressed or not, that are not empty, and where each is.

    Raises:
      DataError: If the file is missing, cannot be read or is not UTF-8.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        try:
            for number, raw in enumerate(opened, start=1):
                where = f"{file}, line {number}"
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(f"{where} is not UTF-8: {error}") from error
                if line.strip():
                    yield where, line
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} cannot be read: {error}") from error


def json_lines(file: Path, *, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads objects of a file that has one a line, and where each is.

    Args:
      file: The file.
      expected: Content of a line, for messages.

    Raises:
      DataError: As `lines`, or if a line is no JSON object.
    """
    for where, line in lines(file):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:  # also of a number or nesting beyond Python's
            raise DataError(f"{where} is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {line:.80}, expected {expected}")
        yield where, entry


def read_json(file: Path) -> Any:
    """Reads what a JSON file holds.

    Raises:
      DataError: If it is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {file}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # JSON's errors, Unicode's and Python's limits
        raise DataError(f"{file} is not JSON: {error}") from error


def field(where: str, entry: dict[str, Any], key: str, kind: Any, expected: str) -> Any:
    """Returns a field of an object, its type checked.

    Args:
      where: Place of the object, for messages.
      entry: The object.
      key: Name of the field.
      kind: Type that it must have, or several; true and false are no numbers.
      expected: Value that it must have, for messages.

    Raises:
      DataError: If the field is missing or of another type.
    """
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {key!r} is {value!r:.80}, expected {expected}")
    return value
