"""Data sets that TFDS prepared, read from array_record without TensorFlow."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from rml.data import builders
from rml.data.errors import DataError
from rml.data.source import (
    KEPT,
    ArraySource,
    Record,
    RecordSource,
    Source,
    select,
    unchanged,
)

_VERSION = re.compile(r"\d+\.\d+\.\d+")


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
      split: Split in TFDS's syntax.
      data_dir: TFDS data directory.
      image_size: Every image is brought to this size.
      image_key: Feature that holds the image.
      label_key: Feature that holds the class.

    Raises:
      DataError: If the data set is unknown, not prepared, not in array_record, or holds no
        labelled images under those keys.
    """
    ours = _split_name(name)[0] in builders.KNOWN
    builder = open_builder(name, data_dir)
    features = builder.info.features
    if ours and "image" not in features:
        raise DataError(f"{name!r} holds texts, not images: open it with rml.data.load_text")
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

    encoded = isinstance(image_feature, tfds.features.Image)
    # Only these two features are parsed, and encoded images are left to be decoded here.
    kept = tfds.features.FeaturesDict({image_key: image_feature, label_key: label_feature})
    decoders = {image_key: tfds.decode.SkipDecoding()} if encoded else None
    parts = _stored(builder, name, split)
    ends = np.cumsum([len(positions) for _, positions in parts])

    def record(index: int) -> Record:
        part = int(np.searchsorted(ends, index, side="right"))
        stored, positions = parts[part]
        with _undamaged(name, builder.data_path):
            raw = stored[int(positions[index - ends[part]])]  # counted from the part's end
            example = kept.deserialize_example_np(raw, decoders=decoders)
        return Record(example[image_key], int(example[label_key]))

    files = [str(file) for info in builder.info.splits.values() for file in info.filepaths]
    same = unchanged(files, split, image_size, image_key, label_key)
    source = RecordSource(
        record,
        key=same,
        size=int(ends[-1]),
        image_shape=image_feature.shape,
        image_size=image_size,
        class_names=label_feature.names,
        name=name,
        split=split,
    )
    if not ours or image_size is not None:
        return source
    if (arrays := KEPT.get(same)) is None:
        with _undamaged(name, builder.data_path):
            examples = [
                kept.deserialize_example_np(raw)
                for stored, positions in parts
                for raw in stored.__getitems__(positions.tolist())
            ]
        arrays = {
            "image": np.stack([example[image_key] for example in examples]),
            "label": np.array([example[label_key] for example in examples], np.int32),
        }
        KEPT.put(same, arrays)
    return ArraySource(
        arrays["image"],
        arrays["label"],
        class_names=source.class_names,
        name=name,
        split=split,
    )


def read_texts(
    name: str, split: str, *, data_dir: Path, keys: Sequence[str]
) -> tuple[dict[str, list[Any] | np.ndarray], tfds.features.FeaturesDict]:
    """Reads features of one split of a prepared TFDS data set into memory.

    Args:
      name: Name as for `open_tfds`.
      split: Split in TFDS's syntax.
      data_dir: TFDS data directory.
      keys: Features to read: strings, sequences of strings, or class labels.

    Returns:
      By key a list of strings or of lists of them, or int32 classes `[n]`; and all features of
      the data set.

    Raises:
      DataError: If the data set is unknown, not prepared, or has no such feature.
    """
    builder = open_builder(name, data_dir)
    features = builder.info.features
    for key in keys:
        if key not in features:
            raise DataError(
                f"{name!r} has no feature {key!r}; it has {sorted(features)}, expected one "
                "of them as the feature of texts or of labels"
            )
        text = isinstance(getattr(features[key], "feature", features[key]), tfds.features.Text)
        if not text and not isinstance(features[key], tfds.features.ClassLabel):
            raise DataError(f"{name!r}: feature {key!r} is no text and no class: {features[key]}")
    kept = tfds.features.FeaturesDict({key: features[key] for key in keys})
    found: dict[str, list] = {key: [] for key in keys}
    parts = _stored(builder, name, split)
    with _undamaged(name, builder.data_path):
        for stored, positions in parts:
            for raw in stored.__getitems__(positions.tolist()):
                for key, value in kept.deserialize_example_np(raw).items():
                    found[key].append(value)
    return {
        key: np.array(values, np.int32)
        if isinstance(features[key], tfds.features.ClassLabel)
        else [_decoded(value) for value in values]
        for key, values in found.items()
    }, features


def _decoded(value: Any) -> Any:
    """A text from its bytes, and texts from theirs."""
    return value.decode() if isinstance(value, bytes) else [one.decode() for one in value]


def open_builder(name: str, data_dir: Path) -> Any:
    """Opens the TFDS builder of a prepared data set; ours are prepared where they are not.

    Args:
      name: Name as for `open_tfds`.
      data_dir: TFDS data directory.

    Raises:
      DataError: If the data set is unknown, not prepared or damaged.
    """
    base, config, version = _split_name(name)
    ours = builders.KNOWN.get(base)
    if ours is not None and not config and version in ("", str(ours.VERSION)):
        return _opened(name, builders.prepare(base, data_dir))
    if base in builders.OURS:
        only = builders.OURS[base].VERSION
        raise DataError(f"{name!r}: {base!r} has no configs and one version, {only}")
    return _opened(name, _find(name, data_dir))


def _opened(name: str, path: Path) -> Any:
    with _undamaged(name, path):
        return tfds.builder_from_directory(path)


@contextlib.contextmanager
def _undamaged(name: str, path: os.PathLike) -> Iterator[None]:
    """Says what to do where files of a prepared data set turn out to be damaged."""
    try:
        yield
    except (RuntimeError, ValueError, ParseError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name!r} is damaged ({reason:.200}): remove {path} and prepare the data set again"
        ) from error


def _stored(builder: Any, name: str, split: str) -> list[tuple[Any, np.ndarray]]:
    """Encoded examples of each part of a split, and which of them are meant."""
    sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
    parts = select(split, sizes, name=name)
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
    return [(one, positions) for one, (_, positions) in zip(stored, parts, strict=True)]


def _split_name(name: str) -> tuple[str, str, str]:
    """Base, config and version of `base[/config][:version]`; the last two may be empty."""
    path, _, version = name.partition(":")
    base, _, config = path.partition("/")
    return base, config, version


def _find(name: str, data_dir: Path) -> Path:
    """Finds where the data set is prepared, its highest version unless one is named.

    It looks at files only: TFDS's own search imports the code that generates the data set.
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
    known = list(
        dict.fromkeys([*builders.KNOWN, *tfds.list_builders(with_community_datasets=False)])
    )
    if base not in known and not prepared:
        near = difflib.get_close_matches(base, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        if Path(name).exists():
            hint = f"it is a path, did you mean 'folder:{name}' or 'images:{name}'? "
        ours = ", ".join(map(repr, builders.KNOWN))
        return (
            f"unknown data set {name!r}: {hint}There are {ours}, "
            "npz:PATH, folder:PATH, images:PATH, and the names of TFDS"
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
