"""Files of weights: safetensors, PyTorch's pickles of nothing but tensors, npz without pickles."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rml.errors import NO_NPZ, UserError, why_no_npz
from rml.models.pretrained.extra import require
from rml.models.pretrained.pickles import read_pickle
from rml.models.pretrained.tensors import Tensor

NAMES = {"f": "F", "i": "I", "u": "U"}


def read_file(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file by their names.

    Args:
      file: The file; its ending is a key of `READERS`.

    Raises:
      UserError: The file is missing, damaged, of another kind, or holds more than tensors.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    if file.suffix not in READERS:
        raise UserError(
            f"{file} does not end as files of weights do; expected one of: {', '.join(READERS)}"
        )
    return READERS[file.suffix](file)


def tensors_of(arrays: dict[str, np.ndarray], file: Path) -> dict[str, Tensor]:
    """Makes the tensors of a file from arrays."""
    return {
        name: Tensor(name, file, array.shape, _dtype(array), functools.partial(_itself, array))
        for name, array in arrays.items()
    }


def _itself(array: np.ndarray) -> np.ndarray:
    return array


def _dtype(array: np.ndarray) -> str:
    """The name of a dtype as safetensors writes it."""
    if array.dtype.name == "bfloat16":
        return "BF16"
    return f"{NAMES.get(array.dtype.kind, array.dtype.kind)}{8 * array.itemsize}"


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file in that format, whatever its ending.

    Raises:
      UserError: The file is missing or damaged.
    """
    safetensors = require("safetensors")
    try:
        opened = safetensors.safe_open(str(file), framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    with file.open("rb") as plain:  # which `safe_open` has found to be whole
        size = int.from_bytes(plain.read(8), "little")
        header = json.loads(plain.read(size))
    found = {}
    for name in opened.keys():  # noqa: SIM118 - no dict
        own, read = header[name], functools.partial(opened.get_tensor, name)
        start = 8 + size + own["data_offsets"][0]
        found[name] = Tensor(name, file, tuple(own["shape"]), own["dtype"], read, start)
    return found


def _pickle(file: Path) -> dict[str, Tensor]:
    return tensors_of(read_pickle(file.read_bytes(), str(file)), file)


def _npz(file: Path) -> dict[str, Tensor]:
    try:
        opened = np.load(file, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise ValueError("it is one array")
        with opened:
            arrays = dict(opened)
    except NO_NPZ as error:
        raise UserError(f"{file} cannot be read as npz: {why_no_npz(file, error)}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(f"{file} cannot be read as npz: its {name!r} is no array")
    return tensors_of(arrays, file)


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": read_safetensors,
    ".pt": _pickle,
    ".pth": _pickle,
    ".bin": _pickle,
    ".npz": _npz,
}
