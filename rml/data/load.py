"""`load`: every data set by one name."""

from collections.abc import Sequence
from pathlib import Path

from rml.assets import default_data_dir
from rml.data.errors import DataError
from rml.data.own import path_of
from rml.data.source import Source
from rml.errors import local_path

OTHER_KINDS = {
    "pairs": "load_pairs", "clips": "load_clips", "interactions": "load_interactions",
    "boxes": "load_boxes", "beir": "load_retrieval", "texts": "load_retrieval",
}  # fmt: skip
"""What opens data that is not images with classes."""


def load(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | Sequence[int] | None = None,
    image_key: str = "image",
    label_key: str = "label",
) -> Source:
    """Opens one split of a data set; nothing is downloaded.

    Args:
      name: `digits`, `mnist5k`, `glyphs`, a name in `rml.data.sets`, a TFDS name that is
        prepared in `data_dir` (`cifar10`, `name/config`, `name:version`), `npz:PATH` (see
        `npz.open_npz`), `folder:PATH` (see `folder.open_folder`) or `images:PATH` (all images
        below a folder, without labels).
      split: Split in TFDS's syntax, for every kind of source: `train`, `train[:80%]`,
        `train+test`, or `all`.
      data_dir: TFDS data directory; `TFDS_DATA_DIR` or `~/tensorflow_datasets` if not given.
      image_size: Brings every image to this height and width: shorter side resized, centre kept.
      image_key: Feature of a TFDS data set that holds the image.
      label_key: Feature of a TFDS data set that holds the class.

    Returns:
      A random-access source of `{"image", "label"}`.

    Raises:
      DataError: If the data set or the split is unknown, missing or broken.
    """
    if not isinstance(name, str):
        raise DataError(f"data set name is {name!r}, expected a text such as 'folder:PATH'")
    if name.startswith("npz:"):
        from rml.data.npz import open_npz

        return open_npz(path_of(name, "npz"), split, image_size=image_size)
    if name.startswith(("folder:", "images:")):
        from rml.data.folder import open_folder

        return open_folder(
            path_of(name, name[:6]),
            split,
            image_size=image_size,
            labelled=name.startswith("folder:"),
        )
    _check_name(name)
    kind, colon, _ = name.partition(":")
    if colon and kind in OTHER_KINDS:
        raise DataError(
            f"{name!r} is not images with classes: it is opened by rml.data.{OTHER_KINDS[kind]}"
        )
    # TFDS takes 0.3 s to import, which files need not wait for.
    from rml.data.tfds_source import open_tfds

    directory = default_data_dir() if data_dir is None else local_path(data_dir, "data_dir")
    return open_tfds(
        name,
        split,
        data_dir=directory,
        image_size=image_size,
        image_key=image_key,
        label_key=label_key,
    )


def _check_name(name: str) -> None:
    """Raises `DataError` for what is no name, such as the path of one's own images."""
    if not name or name != name.strip():
        raise DataError(f"data set name {name!r} is empty or has spaces around it")
    if name.endswith(".npz"):
        raise DataError(f"data set name {name!r} is a path, expected 'npz:{name}'")
    if name.startswith(("/", "~", ".", ":")):
        raise DataError(
            f"data set name {name!r} is a path, expected 'folder:{name}', which has a folder for "
            f"each class, 'images:{name}', without classes, or 'npz:PATH'"
        )
