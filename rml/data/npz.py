"""Arrays from one `.npz` file, with labels or without."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rml.data.errors import DataError
from rml.data.images import pair, resize_and_center_crop
from rml.data.own import chosen
from rml.data.source import KEPT, NO_LABEL, ArraySource, select, unchanged
from rml.errors import NO_NPZ, why_no_npz

_CHANNELS = (1, 3, 4)  # of grey, RGB and RGBA
_IMAGE_KEYS, _LABEL_KEYS = ("image", "x"), ("label", "y")


def open_npz(
    path: Path, split: str, *, image_size: int | Sequence[int] | None = None
) -> ArraySource:
    """Opens one split of an `.npz` file.

    The file holds `image` (or `x`) and `label` (or `y`); then "train" and "test" are a stratified
    split, 80 to 20, fixed by a seed and interleaved by class, and "all" is the file in its order.
    Or it holds `image_train`, `label_train`, `image_test` and `label_test` (or with `x` and `y`).
    Without any label the images have no classes, and the split is not stratified.

    Args:
      path: The file.
      split: Split in TFDS's syntax.
      image_size: Every image is brought to this size (uint8 images only).

    Returns:
      A source in memory. Images `[n, h, w]` gain a channel axis; vectors `[n, d]` stay so, under
      the key "image". Integers of images are in 0..255 and become uint8. Floats, and integers of
      vectors that are not uint8, become float32. Labels (integers from 0, or strings) become
      0..C-1 in sorted order; their originals are the class names.

    Raises:
      DataError: If the file is missing, unreadable, holds objects (pickle), lacks an array, or
        its arrays do not fit each other or hold NaN or negative labels, or its images have their
        channels first.
    """
    name = f"npz:{path}"
    state = unchanged([path], split, image_size)
    if (found := KEPT.get(state)) is None:
        found = _read(path, split, name, image_size)
        KEPT.put(state, found)
    names = [str(one) for one in found["classes"]]
    return ArraySource(found["image"], found["label"], class_names=names, name=name, split=split)


def _read(
    path: Path, split: str, name: str, image_size: int | Sequence[int] | None
) -> dict[str, np.ndarray]:
    """Images and labels of one split, and the classes."""
    arrays = read_arrays(path)
    keys = {
        part: (_pick(arrays, _IMAGE_KEYS, part), _pick(arrays, _LABEL_KEYS, part))
        for part in ("", "_train", "_test")
    }
    keys = {part: both for part, both in keys.items() if any(both)}
    labelled = any(label for _, label in keys.values())
    whole = all(image and bool(label) == labelled for image, label in keys.values())
    if not keys or not whole or ("" in keys and len(keys) > 1):
        raise DataError(
            f"{name} holds the arrays {sorted(arrays)}; expected 'image' (or 'x') and 'label' (or "
            "'y'), or both with the endings '_train' and '_test'; without labels 'image' (or 'x')"
        )
    images = [_images(arrays[key], f"{name}: {key}") for key, _ in keys.values()]
    sizes = [len(image) for image in images]
    if labelled:
        labels = [_labels(arrays[key], f"{name}: {key}") for _, key in keys.values()]
        if len({label.dtype.kind for label in labels}) > 1:
            raise DataError(f"{name}: labels are integers in one part and strings in the other")
    else:
        labels = [np.full(size, NO_LABEL) for size in sizes]
    for size, label, both in zip(sizes, labels, keys.values(), strict=True):
        if size != len(label):
            raise DataError(f"{name}: {both[0]} has {size} examples, {both[1]} has {len(label)}")
    kinds = {f"{one.dtype}{list(one.shape[1:])}" for one in images}
    if len(kinds) > 1:
        raise DataError(f"{name}: train and test images differ: {' and '.join(sorted(kinds))}")

    # One numbering of the classes for all parts.
    image = np.concatenate(images)
    classes, label = np.unique(np.concatenate(labels), return_inverse=True)
    if not labelled:
        classes, label = classes[:0], label + NO_LABEL
    if "" not in keys:
        ends = np.cumsum(sizes)
        members = {
            part[1:]: np.arange(end - size, end)
            for part, size, end in zip(keys, sizes, ends, strict=True)
        }
        parts = select(split, {key: len(at) for key, at in members.items()}, name=name)
        rows = np.concatenate([members[key][positions] for key, positions in parts])
    else:
        rows = chosen(split, label, name=name)
    image = image[rows]
    if image_size is not None:
        if image.ndim == 2:
            raise DataError(f"{name} holds vectors, which image_size={image_size} cannot resize")
        if image.shape[1:3] != pair(image_size):
            image = np.stack([resize_and_center_crop(one, pair(image_size)) for one in image])
    return {"image": image, "label": label[rows], "classes": classes}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz` file, by name; what else is in it is left out.

    Raises:
      DataError: If the file is missing, unreadable or holds objects (pickle).
    """
    if not path.exists():
        raise DataError(f"there is no file {path}")
    try:
        file = np.load(path, allow_pickle=False)
    except NO_NPZ as error:
        raise DataError(f"{path} is no readable .npz file: {why_no_npz(path, error)}") from error
    if isinstance(file, np.ndarray):
        raise DataError(f"{path} is one array, expected an .npz file of several")
    arrays = {}
    with file:
        for key in file.files:
            try:
                found = file[key]
            except ValueError as error:
                raise DataError(
                    f"{path}: array {key!r} cannot be read ({error}); arrays of objects need "
                    "pickle, which is never loaded: save numbers or strings"
                ) from error
            except NO_NPZ as error:
                raise DataError(f"{path}: array {key!r} is damaged: {error}") from error
            if isinstance(found, np.ndarray):  # of other files the bytes
                arrays[key] = found
    return arrays


def _pick(arrays: dict[str, np.ndarray], keys: tuple[str, ...], part: str) -> str:
    return next((key + part for key in keys if key + part in arrays), "")


def _images(image: np.ndarray, what: str) -> np.ndarray:
    if image.ndim and not len(image):
        raise DataError(f"{what} has shape {image.shape}, which holds no image")
    if image.ndim not in (2, 3, 4) or 0 in image.shape:
        raise DataError(
            f"{what} has shape {image.shape}, expected [n, h, w], [n, h, w, c] or [n, d]"
        )
    _, second, third, last = image.shape if image.ndim == 4 else (0, 0, 0, 0)
    if second in _CHANNELS and second < third and last not in _CHANNELS:
        raise DataError(
            f"{what} has shape {image.shape}, expected [n, h, w, c], got what looks like "
            "[n, c, h, w]; image.transpose(0, 2, 3, 1) has the channels last"
        )
    if image.ndim == 3:
        image = image[..., None]
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind in "iu" and image.ndim == 4:
        if image.min() < 0 or image.max() > 255:
            raise DataError(
                f"{what} holds integers in {image.min()}..{image.max()}, expected 0..255 or floats"
            )
        return image.astype(np.uint8)
    if image.dtype.kind not in "iuf":
        raise DataError(f"{what} has type {image.dtype}, expected uint8 or float")
    with np.errstate(over="ignore"):
        image = image.astype(np.float32)
    if not np.isfinite(image).all():
        bad = ~np.isfinite(image.reshape(len(image), -1)).all(axis=1)
        raise DataError(
            f"{what} has NaN or infinite values in {bad.sum()} of {len(bad)} examples as float32, "
            f"the first at index {bad.argmax()}"
        )
    return image


def _labels(label: np.ndarray, what: str) -> np.ndarray:
    if label.ndim != 1:
        raise DataError(f"{what} has shape {label.shape}, expected one label an example [n]")
    if label.dtype.kind not in "iuU":
        raise DataError(f"{what} has type {label.dtype}, expected integers or strings")
    if label.dtype.kind == "i" and (label < 0).any():
        raise DataError(
            f"{what} holds negative labels ({label.min()}; the first at index "
            f"{(label < 0).argmax()}), expected classes from 0"
        )
    # One type for all parts: NumPy joins int64 and uint64 to floats.
    return label if label.dtype.kind == "U" else label.astype(np.uint64)
