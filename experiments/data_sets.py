"""The data sets that have a name here, and what of them is on this machine."""

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.registry import ROOT, read_config
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


def users(systems: Iterable[System]) -> Mapping[str, list[str]]:
    """Keys of the systems that are built whose configs name a data set, by its name."""
    found: dict[str, dict[str, None]] = {}
    for system in systems:
        for config in system.configs if system.built else ():
            data = read_config(str(ROOT / config)).get("data") or {}
            found.setdefault(data.get("name", ""), {})[system.key] = None
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
    root = assets.directory()
    missing = [
        name for name in data_set.archives if not (root / assets.listed()[name].file).is_file()
    ]
    if missing:
        return f"python -m rml.assets {' '.join(missing)}"
    return "prepared on first use"
