"""Masks and Fishers beside a checkpoint: trees of arrays in files of safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from rml.errors import UserError
from rml.models.pretrained.extra import require
from rml.ops.trees import check_finite

KIND, SHAPES = "kind", "shapes"
"""What is written beside tensors: what they are, and the shapes of those that are packed."""
MASK, FISHER = "mask", "fisher"


def save_mask(file: str | Path, mask: PyTree) -> None:
    """Writes a mask of zeros and ones as bits, 1/32 of a checkpoint in float32.

    Args:
      file: File to write, which must not exist.
      mask: Tree of zeros and ones, as `hard_mask` makes it, or of booleans.

    Raises:
      UserError: The file exists, or a leaf has a value between 0 and 1. Nothing is written then.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in flat(mask).items()}
    for name, leaf in leaves.items():
        if not np.isin(leaf, (0, 1)).all():
            raise UserError(
                f"leaf {name!r} of the mask has values beside 0 and 1, expected a mask that "
                "`hard_mask` made"
            )
    packed = {name: np.packbits(leaf.astype(bool)) for name, leaf in leaves.items()}
    shapes = json.dumps({name: leaf.shape for name, leaf in leaves.items()})
    _save_new(Path(file), packed, {KIND: MASK, SHAPES: shapes})


def load_mask(file: str | Path) -> PyTree:
    """Reads what `save_mask` wrote.

    Returns:
      Zeros and ones in float32, as `mask_vectors` takes them.

    Raises:
      UserError: The file is missing, damaged, or holds no mask.
    """
    tensors, notes = _load(Path(file), MASK)
    leaves = {}
    for name, shape in json.loads(notes[SHAPES]).items():
        bits = np.unpackbits(tensors[name], count=int(np.prod(shape)))
        leaves[name] = jnp.asarray(bits.reshape(shape), jnp.float32)
    return nested(leaves)


def save_fisher(file: str | Path, fisher: PyTree) -> None:
    """Writes a model's Fisher information, so that it is estimated once and merged many times.

    Args:
      file: File to write, which must not exist.
      fisher: Fisher information as `diagonal_fisher` returns it.

    Raises:
      UserError: The file exists, or a leaf has NaN, infinite or negative values. Nothing is written
        then.
    """
    check_finite({"the Fisher": fisher})
    leaves = {name: np.asarray(leaf) for name, leaf in flat(fisher).items()}
    for name, leaf in leaves.items():
        if (leaf < 0).any():
            raise UserError(f"leaf {name!r} of the Fisher has values below 0, expected squares")
    _save_new(Path(file), leaves, {KIND: FISHER})


def load_fisher(file: str | Path) -> PyTree:
    """Reads what `save_fisher` wrote.

    Raises:
      UserError: The file is missing, damaged, or holds no Fisher information.
    """
    return nested(_load(Path(file), FISHER)[0])


def flat(tree: PyTree) -> dict[str, Any]:
    """Flattens nested dictionaries to leaves by their dotted names."""
    return dict(flatten_dict(tree, sep="."))


def nested(leaves: Mapping[str, Any]) -> PyTree:
    """Nests leaves by their dotted names in dictionaries, on JAX's device."""
    return jax.tree.map(jnp.asarray, unflatten_dict(dict(leaves), sep="."))


def write_tensors(file: Path, tensors: Mapping[str, Any], notes: dict[str, str]) -> None:
    """Writes arrays by their names, and notes beside them."""
    # The format keeps bytes as they lie in memory.
    arrays = {name: np.ascontiguousarray(x).reshape(np.shape(x)) for name, x in tensors.items()}
    require("safetensors.numpy").save_file(arrays, str(file), metadata=notes)


def read_tensors(file: Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays of a file by their names, and its notes.

    Args:
      file: The file.
      what: What messages say it should be.

    Raises:
      UserError: It is missing or damaged.
    """
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(str(file), framework="numpy") as opened:
            notes = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, notes  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as {what}: {error}") from None


def _save_new(file: Path, tensors: Mapping[str, Any], notes: dict[str, str]) -> None:
    """Writes a file that is there whole or not at all."""
    if file.exists():
        raise UserError(f"{file} exists, expected a new file")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    write_tensors(partial, tensors, notes)
    partial.rename(file)


def _load(file: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    tensors, notes = read_tensors(file, f"a {kind}")
    if notes.get(KIND) != kind:
        raise UserError(f"{file} holds no {kind}, expected what `save_{kind}` wrote")
    return tensors, notes
