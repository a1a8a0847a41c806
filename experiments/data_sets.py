"""The data sets that have a name here, and what of them is on this machine."""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.registry import ROOT, read_config, texts_of
from experiments.results import DATA_SETS
from experiments.systems import System
from rml import assets
from rml.assets import default_data_dir
from rml.data import builders
from rml.data.packaged import Fetched


class DataSet(NamedTuple):
    """What is known of a data set without preparing it.

    Attributes:
      name: What configs call it.
      what: First paragraph of its builder's docstring.
      text: The rest of the docstring.
      archives: Assets that it is made from; none where a package carries it.
      licence: Licences of these archives.
      bytes: Their size.
    """

    name: str
    what: str
    text: str
    archives: tuple[str, ...]
    licence: str
    bytes: int


def data_sets() -> list[DataSet]:
    """All data sets that are prepared here, those that packages carry first."""
    found = []
    for name, builder in builders.KNOWN.items():
        what, _, text = inspect.cleandoc(builder.__doc__ or "").partition("\n\n")
        archives = builder.ASSETS if issubclass(builder, Fetched) else ()
        found.append(
            DataSet(
                name=name,
                what=" ".join(what.split()),
                text=text,
                archives=archives,
                licence=builder.licence() if issubclass(builder, Fetched) else "",
                bytes=sum(assets.listed()[archive].bytes for archive in archives),
            )
        )
    return found


def read_cards(root: Path = ROOT / "results" / DATA_SETS) -> dict[str, dict[str, Any]]:
    """What was measured of data sets by name, see `experiments.cards`."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(root.glob("*.json"))}


def named(config: ConfigDict) -> list[str]:
    """Names of the data sets that values of a config name: what is trained on, transferred to."""
    texts = dict.fromkeys(texts_of(config.to_dict()))
    return [text for text in texts if text in builders.KNOWN]


def users(systems: Iterable[System]) -> Mapping[str, list[str]]:
    """Keys of the systems that are built whose configs name a data set, by its name."""
    found: dict[str, dict[str, None]] = {}
    for system in systems:
        for config in system.configs if system.built else ():
            for name in named(read_config(str(ROOT / config))):
                found.setdefault(name, {})[system.key] = None
    return {name: list(keys) for name, keys in found.items()}


def state(data_set: DataSet, data_dir: Path | None = None) -> str:
    """What of a data set is on this machine: its splits, or what is missing.

    Args:
      data_set: The data set.
      data_dir: TFDS data directory; the default one if not given.
    """
    prepared = sorted(
        (data_dir or default_data_dir()).joinpath(data_set.name).glob("**/dataset_info.json")
    )
    if prepared:
        splits = json.loads(prepared[-1].read_text())["splits"]
        sizes = (f"{one['name']} {sum(map(int, one['shardLengths'])):,}" for one in splits)
        return ", ".join(sizes)
    if archives := missing(data_set.name, data_dir):
        return f"python -m rml.assets {' '.join(archives)}"
    return "prepared on first use"


def missing(name: str, data_dir: Path | None = None) -> list[str]:
    """Names the archives that a data set is still to be made from and that are not here.

    Args:
      name: Key of `builders.KNOWN`.
      data_dir: TFDS data directory; the default one if not given.

    Returns:
      Names of assets; none where the data set is prepared or a package carries it.
    """
    builder = builders.KNOWN[name]
    archives = absent(builder.ASSETS if issubclass(builder, Fetched) else ())
    if not archives or builder.DATED:  # the date stands in an archive, prepared or not
        return archives
    prepared = (data_dir or default_data_dir()) / builder.directory() / "dataset_info.json"
    return [] if prepared.is_file() else archives


def absent(archives: Sequence[str]) -> list[str]:
    """Names those of some archives that are not on this machine."""
    root = assets.directory()
    return [name for name in archives if not (root / assets.listed()[name].file).is_file()]
