"""Images with texts, from a file of lines: `pairs:PATH`."""

import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rml.data import own
from rml.data.errors import DataError
from rml.data.images import decode, resize_and_center_crop
from rml.data.source import Example


class Pairs(own.FileSource):
    """Images with their texts, of one split, read by position.

    `pairs[i]` is `{"image": uint8 [h, w, 3], "row": i}`. In a batch, `row` leads to the texts of
    each image, or to tokens that were made of them.

    Attributes:
      texts: Texts of each image, at least one.
      files: Paths of the images by position, relative to the file of lines.
    """

    files: tuple[str, ...]

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        texts: Sequence[tuple[str, ...]],
        *,
        image_size: int | Sequence[int] | None,
        name: str,
        split: str,
    ) -> None:
        super().__init__(size=len(files), image_size=image_size, name=name, split=split)
        self.files = tuple(files)
        self.texts = tuple(texts)
        self._folder = folder

    def _read(self, index: int) -> Example:
        image = decode(self._folder / self.files[index], channels=3)
        if self._image_size is not None:
            image = resize_and_center_crop(image, self._image_size)
        return {"image": image, "row": index}


def load_pairs(name: str, split: str, *, image_size: int | Sequence[int] | None = None) -> Pairs:
    """Opens images with texts; the images are read when they are asked for.

    Args:
      name: `pairs:PATH`. Each line of the file is a JSON object with `image`, a path relative to
        the file, and `text`, a string or a list of strings.
      split: Split in TFDS's syntax. "train" and "test" are 80% and 20%, fixed by a seed; "all"
        is the file in its order. An image has one line, so splits share none.
      image_size: Brings every image to this height and width: shorter side resized, centre kept.

    Returns:
      The pairs of the split.

    Raises:
      DataError: If the file is missing or empty, a line is not as above, an image is missing or
        has two lines, or the split does not exist.
    """
    path = own.path_of(name, "pairs")
    texts: dict[str, tuple[str, ...]] = {}
    for where, entry in own.json_lines(path, expected="an object with 'image' and 'text'"):
        given = own.field(where, entry, "image", str, "a path relative to this file")
        image = posixpath.normpath(given)
        found = own.field(where, entry, "text", (str, list), "a string or a list of strings")
        found = [found] if isinstance(found, str) else found
        if not found or not all(isinstance(text, str) and text.strip() for text in found):
            raise DataError(f"{where}: 'text' is {found!r:.80}, expected one or more texts")
        if image in texts:
            raise DataError(
                f"{where}: the image {image!r} is there already, expected one line with a list of "
                "its texts"
            )
        if not (path.parent / image).is_file():
            raise DataError(f"{where}: there is no image file {path.parent / image}")
        texts[image] = tuple(found)
    if not texts:
        raise DataError(f"{path} is empty, expected lines with 'image' and 'text'")
    files = list(texts)
    rows = own.chosen(split, np.zeros(len(files), int), name=name)
    return Pairs(
        path.parent,
        [files[row] for row in rows],
        [texts[files[row]] for row in rows],
        image_size=image_size,
        name=name,
        split=split,
    )
