"""Images in folders, one folder a class."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from rml.data import splits
from rml.data.errors import DataError
from rml.data.source import Record, RecordSource, select

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SEED = 0
"""Fixes the order of examples, and the train/test split of a folder that has none."""

_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def open_folder(
    path: Path, split: str, *, image_size: int | Sequence[int] | None = None
) -> RecordSource:
    """Opens one split of a folder of images.

    Either `path/CLASS/*.png` (then "train" and "test" are a stratified split, 80 to 20, fixed by a
    seed), or `path/train/CLASS/*.png` and the like, where each folder of `path` is a split.
    Subfolders of a class belong to it; hidden files and files of other types are ignored.

    Args:
        path: The folder.
        split: In TFDS's split syntax.
        image_size: Brings every image to this height and width: shorter side resized, centre kept.
            If not given, images keep their sizes, and only load into arrays if they agree.

    Returns:
        A source of uint8 images, grey if every image is, otherwise RGB; interleaved by class, so
        that slices hold the classes in near equal proportion.

    Raises:
        DataError: If there is no such folder, no image, a class without images, or a file that is
            no image.
    """
    name = f"folder:{path}"
    if not path.is_dir():
        raise DataError(f"there is no folder {path}")
    tops = _subfolders(path)
    split_dirs = "train" in {top.name for top in tops} and bool(_subfolders(path / "train"))
    roots = {top.name: top for top in tops} if split_dirs else {"": path}
    listed = {key: _classes(root) for key, root in roots.items()}
    class_names = sorted({label for classes in listed.values() for label in classes})
    files, labels = {}, {}
    for key, classes in listed.items():
        flat = [
            (file, class_names.index(label)) for label, found in classes.items() for file in found
        ]
        files[key] = [file for file, _ in flat]
        labels[key] = np.array([label for _, label in flat], np.int32)

    if split_dirs:
        members = {
            key: [(key, at) for at in splits.interleave(labels[key], seed=SEED)] for key in files
        }
    else:
        train, test = splits.stratified(labels[""], test_fraction=0.2, seed=SEED)
        members = {"train": [("", at) for at in train], "test": [("", at) for at in test]}
    members = {key: where for key, where in members.items() if where}
    parts = select(split, {key: len(where) for key, where in members.items()}, name=name)
    chosen = [members[key][at] for key, positions in parts for at in positions]
    records = [Record(files[key][at], int(labels[key][at])) for key, at in chosen]
    return RecordSource(
        records.__getitem__,
        size=len(records),
        image_shape=_shape([file for found in files.values() for file in found]),
        image_size=image_size,
        class_names=class_names,
        name=name,
        split=split,
        labels=np.array([record.label for record in records], np.int32),
    )


def _subfolders(path: Path) -> list[Path]:
    return sorted(
        child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
    )


def _classes(root: Path) -> dict[str, list[Path]]:
    """Image files by class, sorted."""
    folders = _subfolders(root)
    if not folders:
        raise DataError(f"{root} holds no class folders; expected {root}/CLASS/IMAGE.png")
    found = {folder.name: _images(folder) for folder in folders}
    for label, files in found.items():
        if not files:
            raise DataError(
                f"class folder {root / label} holds no images (of {', '.join(SUFFIXES)})"
            )
    return found


def _images(folder: Path) -> list[Path]:
    files = []
    for directory, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [
            Path(directory, name)
            for name in names
            if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return sorted(files)


def _shape(files: list[Path]) -> tuple[int | None, int | None, int]:
    """What all images share, from their headers."""

    def header(file: Path) -> tuple[int, int, bool]:
        try:
            with Image.open(file) as image:
                width, height = image.size
                turned = image.getexif().get(0x0112) in _TURNED
                grey = image.mode in _GREY
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"image file {file} cannot be decoded: {error}") from error
        return (width, height, grey) if turned else (height, width, grey)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        heights, widths, greys = zip(*pool.map(header, files), strict=True)
    return (
        heights[0] if len(set(heights)) == 1 else None,
        widths[0] if len(set(widths)) == 1 else None,
        1 if all(greys) else 3,
    )
