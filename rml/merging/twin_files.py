"""Twin-merged experts in a directory of safetensors: shared, exclusive and router, apart."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from rml.errors import UserError
from rml.merging.twin import Own, Twin
from rml.models.pretrained.extra import require
from rml.ops.trees import LowRank

SHARED, EXCLUSIVE, ROUTER = (f"{name}.safetensors" for name in ("shared", "exclusive", "router"))
BETWEEN = ":"
"""What stands between a leaf's dotted name and the name of a part of it."""


class SavedTwin(NamedTuple):
    """What a directory holds.

    Attributes:
      twin: Shared expert and exclusive vectors.
      router: Variables of the router, None where there is none.
      names: Names of the experts, in the order of vectors and of the router's logits.
    """

    twin: Twin
    router: PyTree
    names: tuple[str, ...]


def save_twin(
    directory: str | Path, twin: Twin, *, router: PyTree = None, names: Sequence[str] = ()
) -> None:
    """Writes experts in parts, and their router, into a new directory.

    The vectors of all experts lie in one file, in the order of the router's logits.

    Args:
      directory: Directory to make.
      twin: As `rml.merging.modularise` returns it.
      router: Variables of a router, nested dictionaries.
      names: Names of the experts, in their order.

    Raises:
      UserError: The directory exists, or there is not one name for each expert. Nothing is written
        then.
    """
    path = Path(directory)
    if path.exists():
        raise UserError(f"{path} exists, expected a new directory")
    tensors: dict[str, Any] = {}
    for name, part in _flat(twin.exclusive).items():
        if isinstance(part, LowRank | Own):
            tensors |= {f"{name}{BETWEEN}{key}": x for key, x in part._asdict().items()}
        else:
            tensors[name] = part
    count = next(iter(tensors.values())).shape[0]
    if names and len(names) != count:
        raise UserError(f"names are {list(names)}, expected {count}: one for each expert")
    files = {SHARED: _flat(twin.shared), EXCLUSIVE: tensors}
    if router is not None:
        files[ROUTER] = _flat(router)
    save = require("safetensors.numpy").save_file
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for file, own in files.items():
        arrays = {name: np.asarray(x) for name, x in own.items()}
        save(arrays, str(partial / file), metadata={"experts": json.dumps(list(names))})
    partial.rename(path)


def load_twin(directory: str | Path) -> SavedTwin:
    """Reads what `save_twin` wrote.

    Raises:
      UserError: The directory lacks a file of the shared expert or of vectors, or one is damaged.
    """
    path = Path(directory)
    shared, _ = _read(path / SHARED)
    tensors, names = _read(path / EXCLUSIVE)
    parts: dict[str, dict[str, Any]] = {}
    for name, x in tensors.items():
        leaf, _, key = name.partition(BETWEEN)
        parts.setdefault(leaf, {})[key] = x
    exclusive = {
        name: own[""] if "" in own else LowRank(**own) if "left" in own else Own(**own)
        for name, own in parts.items()
    }
    router = _nested(_read(path / ROUTER)[0]) if (path / ROUTER).exists() else None
    return SavedTwin(Twin(_nested(shared), _nested(exclusive)), router, names)


def _flat(tree: PyTree) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="."))


def _nested(flat: dict[str, Any]) -> PyTree:
    return unflatten_dict(flat, sep=".")


def _read(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors of a file, and the names of the experts."""
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(str(file), framework="numpy") as opened:
            names = tuple(json.loads((opened.metadata() or {}).get("experts", "[]")))
            return {name: jnp.asarray(opened.get_tensor(name)) for name in opened.keys()}, names  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file} cannot be read as a part of twin-merged experts: {error}"
        ) from None
