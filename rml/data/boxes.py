"""Images with boxes of several categories, in the format of COCO: `boxes:PATH`.

Source:
    T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014,
    https://arxiv.org/abs/1405.0312
"""

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rml.data import own
from rml.data.errors import DataError
from rml.data.images import decode, resize
from rml.data.source import NO_LABEL, Example

SLACK = 1.0
"""Pixels by which a box may pass the border of its image, as rounded ones do; it is cut there."""


class Boxes(own.FileSource):
    """Images with boxes, of one split, read by position.

    `boxes[i]` is `{"image": uint8 [h, w, 3], "boxes": float32 [m, 4], "box_labels": int32 [m]}`:
    left, top, right and bottom in pixels of that image. m is the most that an image of the file
    has; rows beyond an image's own are 0 with `NO_LABEL`.

    Attributes:
      boxes: float32 `[n, m, 4]`, in pixels of the files.
      box_labels: int32 `[n, m]`, positions in `class_names`, or `NO_LABEL`.
      files: Paths of the images by position, relative to the annotations.
    """

    files: tuple[str, ...]

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        sizes: Int[np.ndarray, "n 2"],
        boxes: Float[np.ndarray, "n m 4"],
        box_labels: Int[np.ndarray, "n m"],
        *,
        class_names: Sequence[str],
        image_size: int | Sequence[int] | None,
        name: str,
        split: str,
    ) -> None:
        super().__init__(
            size=len(files), image_size=image_size, name=name, split=split, class_names=class_names
        )
        self.files = tuple(files)
        self.boxes = boxes
        self.box_labels = box_labels
        self._folder = folder
        self._sizes = sizes

    def _read(self, index: int) -> Example:
        file, boxes = self._folder / self.files[index], self.boxes[index]
        image = decode(file, channels=3)
        height, width = self._sizes[index].tolist()
        if image.shape[:2] != (height, width):
            raise DataError(
                f"image file {file} has {image.shape[1]}x{image.shape[0]} pixels, its annotation "
                f"says {width}x{height}"
            )
        if self._image_size is not None:
            image, scale = _fit(image, self._image_size)
            boxes = boxes * scale
        return {"image": image, "boxes": boxes, "box_labels": self.box_labels[index]}


def load_boxes(name: str, split: str, *, image_size: int | Sequence[int] | None = None) -> Boxes:
    """Opens images with boxes; the images are read when they are asked for.

    Args:
      name: `boxes:PATH` of a JSON file in COCO's format, which has `images`, `categories` and
        `annotations`; `file_name` of an image is relative to the file. Annotations with
        `iscrowd` 1 are left out, images without boxes are kept.
      split: Split in TFDS's syntax. "train" and "test" are 80% and 20% of the images, fixed by a
        seed; "all" is the file in its order.
      image_size: Brings every image, whole, to this height and width: it is scaled to fit and
        lies at the top left, the rest is black. Boxes are scaled with it.

    Returns:
      The images of the split. Categories are numbered in the order of their ids.

    Raises:
      DataError: If the file is missing or not in that format, an id or a name is there twice, an
        image is missing, an annotation names an image or a category that there is not, a box is
        outside its image or has no area, or the split does not exist.
    """
    path = own.path_of(name, "boxes")
    content = own.read_json(path)
    keys = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise DataError(f"{path} is not in COCO's format: expected an object with lists {keys}")
    images = _read_images(path, content)
    categories = _read_categories(path, content)
    found: dict[int, list[tuple[int, np.ndarray]]] = {key: [] for key in images}
    label_of = {key: label for label, key in enumerate(categories)}
    for where, entry in _entries(path, content, "annotations"):
        image = own.field(where, entry, "image_id", int, "the id of an image")
        if image not in images:
            raise DataError(f"{where}: there is no image with the id {image}")
        category = own.field(where, entry, "category_id", int, "the id of a category")
        if category not in categories:
            raise DataError(
                f"{where}: unknown category {category}, expected one of {list(categories)}"
            )
        if not entry.get("iscrowd"):
            found[image].append((label_of[category], _box(where, entry, images[image])))

    rows = own.chosen(split, np.zeros(len(images), int), name=name)
    most = max(map(len, found.values()))
    boxes = np.zeros((len(images), most, 4), np.float32)
    labels = np.full((len(images), most), NO_LABEL, np.int32)
    for row, annotated in enumerate(found.values()):
        for column, (label, box) in enumerate(annotated):
            boxes[row, column], labels[row, column] = box, label
    entries = list(images.values())
    return Boxes(
        path.parent,
        [entries[row].file for row in rows],
        np.array([entries[row].size for row in rows]),
        boxes[rows],
        labels[rows],
        class_names=list(categories.values()),
        image_size=image_size,
        name=name,
        split=split,
    )


class _Image(NamedTuple):
    """An image file and its height and width."""

    file: str
    size: tuple[int, int]


def _entries(path: Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a list, and where each is; no two have the same id."""
    seen = set()
    for number, entry in enumerate(content[key], start=1):
        where = f"{path}, {key}, entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {entry!r:.80}, expected an object")
        if key != "annotations" or "id" in entry:
            one = own.field(where, entry, "id", int, "an integer")
            if one in seen:
                raise DataError(f"{where}: the id {one} is there already")
            seen.add(one)
        yield where, entry


def _read_images(path: Path, content: dict[str, Any]) -> dict[int, _Image]:
    """Images by id."""
    images: dict[int, _Image] = {}
    files = set()
    for where, entry in _entries(path, content, "images"):
        given = own.field(where, entry, "file_name", str, "a path relative to this file")
        file = posixpath.normpath(given)
        height, width = (
            own.field(where, entry, key, int, "a number of pixels") for key in ("height", "width")
        )
        if not (path.parent / file).is_file():
            raise DataError(f"{where}: there is no image file {path.parent / file}")
        if file in files:
            raise DataError(f"{where}: the image file {file!r} is there already")
        files.add(file)
        images[entry["id"]] = _Image(file, (height, width))
    if not images:
        raise DataError(f"{path} holds no images")
    return images


def _read_categories(path: Path, content: dict[str, Any]) -> dict[int, str]:
    """Names of categories by id, in the order of ids."""
    names: dict[int, str] = {}
    for where, entry in _entries(path, content, "categories"):
        name = own.field(where, entry, "name", str, "a string")
        if name in names.values():
            raise DataError(f"{where}: the category {name!r} is there already")
        names[entry["id"]] = name
    return dict(sorted(names.items()))


def _box(where: str, entry: dict[str, Any], image: _Image) -> Float[np.ndarray, "4"]:
    """The corners of an annotation's box, within its image."""
    box = own.field(where, entry, "bbox", list, "[x, y, width, height]")
    if len(box) != 4 or not all(isinstance(one, int | float) for one in box):
        raise DataError(f"{where}: 'bbox' is {box!r:.80}, expected [x, y, width, height]")
    left, top, width, height = box
    if not (width > 0 and height > 0):
        raise DataError(f"{where}: the box {box} has no area, expected width and height above 0")
    corners = np.array([left, top, left + width, top + height], float)
    border = np.array(image.size[::-1] * 2)
    inside = np.clip(corners, 0, border)
    within = np.abs(corners - inside).max() <= SLACK and (inside[2:] > inside[:2]).all()
    if not within:
        raise DataError(
            f"{where}: the box {box} is outside its image {image.file!r} of "
            f"{image.size[1]}x{image.size[0]} pixels"
        )
    return inside


def _fit(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Float[np.ndarray, "4"]]:
    """An image scaled to fit at the top left of a black one, and what its boxes are scaled by."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    whole = np.zeros((*size, image.shape[2]), np.uint8)
    whole[: inner[0], : inner[1]] = resize(image, inner)
    factors = (inner[1] / width, inner[0] / height)
    return whole, np.array(factors * 2, np.float32)
