"""Data sets that TFDS prepared, read from array_record without TensorFlow."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from rml.data import builders
from rml.data.errors import DataError
from rml.data.source import (
    ArraySource,
    Record,
    RecordSource,
    Source,
    select,
)

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def default_data_dir() -> Path:
    """`TFDS_DATA_DIR`, or TFDS's own default; read anew each time, which TFDS does not."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_tfds(
    name: str,
    split: str,
    *,
    data_dir: Path,
    image_size: int | Sequence[int] | None,
    image_key: str,
    label_key: str,
) -> Source:
    """Opens one split of a prepared TFDS data set.

    Args:
        name: `name`, `name/config`, `name:version` or `name/config:version`.
        split: In TFDS's split syntax.
        data_dir: TFDS data directory.
        image_size: Every image is brought to this size.
        image_key: Feature that holds the image.
        label_key: Feature that holds the class.

    Raises:
        DataError: If the data set is unknown, not prepared, not in array_record, or holds no
            labelled images under those keys.
    """
    base, config, version = _split_name(name)
    ours = builders.OURS.get(base)
    if ours is not None:
        if config or version not in ("", str(ours.VERSION)):
            raise DataError(f"{name!r}: {base!r} has no configs and one version, {ours.VERSION}")
        directory = builders.prepare(base, data_dir)
    else:
        directory = _find(name, data_dir)
    builder = tfds.builder_from_directory(directory)
    features = builder.info.features
    for key in (image_key, label_key):
        if key not in features:
            raise DataError(
                f"{name!r} has no feature {key!r}; it has {sorted(features)}: name the right one "
                "with image_key=... or label_key=..."
            )
    image_feature, label_feature = features[image_key], features[label_key]
    if not isinstance(label_feature, tfds.features.ClassLabel):
        raise DataError(f"{name!r}: feature {label_key!r} is no class label: {label_feature}")
    if len(image_feature.shape) != 3 or image_feature.np_dtype != np.uint8:
        raise DataError(
            f"{name!r}: feature {image_key!r} holds no uint8 images [h, w, c]: {image_feature}"
        )

    sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
    parts = select(split, sizes, name=name)
    encoded = isinstance(image_feature, tfds.features.Image)
    # Only these two features are parsed, and encoded images are left to be decoded here.
    kept = tfds.features.FeaturesDict({image_key: image_feature, label_key: label_feature})
    decoders = {image_key: tfds.decode.SkipDecoding()} if encoded else None
    try:
        stored = [
            builder.as_data_source(key, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
            for key, _ in parts
        ]
    except NotImplementedError as error:
        raise DataError(
            f"{name!r} is prepared in {builder.data_path} as {builder.info.file_format.value}, "
            "which cannot be read at random: convert it with `tfds convert_format "
            f"--dataset_version_dir={builder.data_path} --out_file_format=array_record` in an "
            "environment that has TensorFlow"
        ) from error
    for key, _ in parts:
        for file in builder.info.splits[key].filepaths:
            if not file.exists():
                raise DataError(
                    f"{name!r}, split {key!r}: {file} is missing; remove {builder.data_path} and "
                    "prepare the data set again"
                )
    ends = np.cumsum([len(positions) for _, positions in parts])

    def record(index: int) -> Record:
        part = int(np.searchsorted(ends, index, side="right"))
        positions = parts[part][1]
        raw = stored[part][int(positions[index - ends[part]])]  # counted from the part's end
        example = kept.deserialize_example_np(raw, decoders=decoders)
        return Record(example[image_key], int(example[label_key]))

    source = RecordSource(
        record,
        size=int(ends[-1]),
        image_shape=image_feature.shape,
        image_size=image_size,
        class_names=label_feature.names,
        name=name,
        split=split,
    )
    if ours is not None and image_size is None:
        arrays = source.arrays()
        return ArraySource(
            arrays["image"],
            arrays["label"],
            class_names=source.class_names,
            name=name,
            split=split,
        )
    return source


def _split_name(name: str) -> tuple[str, str, str]:
    """Base, config and version of `base[/config][:version]`; the last two may be empty."""
    path, _, version = name.partition(":")
    base, _, config = path.partition("/")
    return base, config, version


def _find(name: str, data_dir: Path) -> Path:
    """Where the data set is prepared, its highest version unless one is named.

    Looks at files only: TFDS's own search imports the code that generates the data set.
    """
    base, config, version = _split_name(name)
    prepared = {
        str(info.parent.relative_to(data_dir / base)): info.parent
        for pattern in ("*/dataset_info.json", "*/*/dataset_info.json")
        for info in (data_dir / base).glob(pattern)
        if _VERSION.fullmatch(info.parent.name)
    }
    fitting = {
        key: path
        for key, path in prepared.items()
        if version in ("", path.name) and (not config or key.startswith(f"{config}/"))
    }
    configs = {path.parent for path in fitting.values()}
    if len(configs) > 1:
        names = sorted(f"{base}/{path.name}" for path in configs)
        raise DataError(f"{name!r} is prepared in several configs: name one of {names}")
    if fitting:
        return max(fitting.values(), key=lambda path: [int(n) for n in path.name.split(".")])
    raise DataError(_absent(name, data_dir, sorted(prepared)))


def _absent(name: str, data_dir: Path, prepared: list[str]) -> str:
    base = _split_name(name)[0]
    known = [*builders.OURS, *tfds.list_builders(with_community_datasets=False)]
    if base not in known and not prepared:
        near = difflib.get_close_matches(base, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        return (
            f"unknown data set {name!r}: {hint}There are {', '.join(map(repr, builders.OURS))}, "
            "npz:PATH, folder:PATH, and the names of TFDS"
        )
    manual = (
        f" (first put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into {data_dir}"
        "/downloads/manual, see image-net.org)"
        if base == "imagenet2012"
        else ""
    )
    there = f" (there is {', '.join(prepared)} of it)" if prepared else ""
    return (
        f"TFDS data set {name!r} is not prepared in {data_dir}{there}. Nothing is downloaded here: "
        f'in an environment that has TensorFlow{manual} run\n  python -c "import '
        f"tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={str(data_dir)!r}, "
        "file_format='array_record').download_and_prepare()\""
    )
