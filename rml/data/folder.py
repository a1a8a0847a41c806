"""Images in folders: one folder a class, or without labels."""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from rml.data import splits
from rml.data.errors import DataError
from rml.data.own import walk
from rml.data.source import NO_LABEL, Record, RecordSource, select, unchanged

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SEED = 0
"""Fixes the order of examples, and the train/test split of a folder that has none."""
SPLITS = ("dev", "test", "train", "val", "valid", "validation")
"""Names of folders that are splits where images without labels lie in them."""

_SPLIT_LIKE = {*SPLITS, "testing", "training"}
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def open_folder(
    path: Path,
    split: str,
    *,
    image_size: int | Sequence[int] | None = None,
    labelled: bool = True,
) -> RecordSource:
    """Opens one split of a folder of images.

    Classes are subfolders, `path/CLASS/*.png`. Images that lie in `path` itself say that there are
    none; with `labelled=False` all images below `path` are read without labels. "train" and "test"
    are then a split, 80 to 20, fixed by a seed and stratified by class, and "all" is both.

    Or `path/train/CLASS/*.png` and the like, where each folder of `path` is a split. Without labels
    these are `path/train/*.png` and folders beside it, all of which `SPLITS` names.

    Subfolders of a class belong to it, those that links lead to as well; hidden files and files of
    other types are ignored.

    Args:
      path: The folder.
      split: Split in TFDS's syntax.
      image_size: Brings every image to this height and width: shorter side resized, centre kept.
        If not given, images keep their sizes, and only load into arrays if they agree.
      labelled: Whether subfolders may be classes.

    Returns:
      A source of uint8 images, grey if every image is, otherwise RGB; interleaved by class, so
      that slices hold the classes in near equal proportion.

    Raises:
      DataError: If there is no such folder, one cannot be read, no image, a class without images,
        images beside classes, folders that are splits by their names without one named "train", or
        a file that is no image.
    """
    name = f"{'folder' if labelled else 'images'}:{path}"
    if not path.is_dir():
        raise DataError(f"there is no folder {path}")
    roots = _split_folders(path, labelled)
    listed = {key: _classes(root, labelled) for key, root in (roots or {"": path}).items()}
    with_labels = {key: None not in classes for key, classes in listed.items()}
    if len(set(with_labels.values())) > 1:
        bare, full = (next(k for k, v in with_labels.items() if v == one) for one in (False, True))
        raise DataError(
            f"{path / bare} holds images without class folders, {path / full} has class folders; "
            f"expected them in both, or data.name=images:{path} to read all without labels"
        )
    class_names = sorted({label for classes in listed.values() for label in classes if label})
    files, labels = {}, {}
    for key, classes in listed.items():
        numbers = {label: class_names.index(label) if label else NO_LABEL for label in classes}
        flat = [(file, numbers[label]) for label, found in classes.items() for file in found]
        files[key] = [file for file, _ in flat]
        labels[key] = np.array([label for _, label in flat], np.int32)

    if roots:
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
    shape = _shape([file for found in files.values() for file in found])
    # Labels number the folders' classes, which files are named by.
    state = unchanged((files[key][at] for key, at in chosen), shape, image_size, class_names)
    source = RecordSource(
        records.__getitem__,
        size=len(records),
        image_shape=shape,
        image_size=image_size,
        class_names=class_names,
        name=name,
        split=split,
        labels=np.array([record.label for record in records], np.int32),
        key=state,
    )
    source.files = tuple(str(files[key][at].relative_to(path)) for key, at in chosen)
    return source


def _subfolders(path: Path) -> list[Path]:
    return sorted(
        child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
    )


def _split_folders(path: Path, labelled: bool) -> dict[str, Path]:
    """The folders of `path` that are splits, by name; empty where it has none."""
    tops = {top.name: top for top in _subfolders(path)}
    if _images(path, below=False):
        return {}

    def has_classes(top: Path) -> bool:
        return labelled and any(map(_images, _subfolders(top)))

    if "train" in tops:
        return tops if has_classes(tops["train"]) or set(tops) <= set(SPLITS) else {}
    if {name.lower() for name in tops} <= _SPLIT_LIKE and any(map(has_classes, tops.values())):
        raise DataError(
            f"{path} holds {sorted(tops)}, which are names of splits and have class folders, but "
            f"no 'train'; expected 'train' and others such as 'test', or data.name=images:{path} "
            "to read all without labels"
        )
    return {}


def _classes(root: Path, labelled: bool) -> dict[str | None, list[Path]]:
    """Image files by class, sorted; all of them by None where there are no classes."""
    loose = _images(root, below=False) if labelled else []
    folders = _subfolders(root) if labelled else []
    full = [folder.name for folder in folders if _images(folder)] if loose else []
    if full:
        raise DataError(
            f"{root} holds images ({loose[0].name}) beside the folders {full[:3]} of images: move "
            f"them into folders of their class, or read all without labels as images:{root}"
        )
    if loose or not folders:
        files = _images(root)
        if not files:
            raise DataError(
                f"{root} holds no images (of {', '.join(SUFFIXES)}), expected CLASS/IMAGE.png "
                "or IMAGE.png without labels"
            )
        return {None: files}
    found: dict[str | None, list[Path]] = {folder.name: _images(folder) for folder in folders}
    for label, files in found.items():
        if not files:
            raise DataError(
                f"class folder {root / str(label)} holds no images (of {', '.join(SUFFIXES)})"
            )
    return found


def _images(folder: Path, *, below: bool = True) -> list[Path]:
    """Image files of a folder, sorted, those of its subfolders included unless `below` is False."""
    return sorted(
        directory / name
        for directory, names in itertools.islice(walk(folder), None if below else 1)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )


def _shape(files: list[Path]) -> tuple[int | None, int | None, int]:
    """What all images share, from their headers."""

    def header(file: Path) -> tuple[int, int, bool]:
        try:
            with Image.open(file) as image:
                width, height = image.size
                exif = image.getexif()
                if image.format == "TIFF":  # whose size newer versions of Pillow turn themselves
                    width, height = exif.get(0x0100, width), exif.get(0x0101, height)
                turned = exif.get(0x0112) in _TURNED
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
