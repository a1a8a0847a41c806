"""PyTorch's older files of weights, read without PyTorch and without running what is in them.

Such a file is five pickles and the bytes of the tensors. Of what a pickle may name only tensors,
their storages and ordered dictionaries are known here; everything else is refused.
"""

import io
import pickle
from typing import Any, NamedTuple

import numpy as np

from rml.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "HalfStorage": np.float16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
}


class Storage(NamedTuple):
    """Name of the type of a storage, and its key."""

    kind: str
    key: str


class View(NamedTuple):
    """A tensor as a view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_legacy(content: bytes, name: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dictionary.

    Args:
      content: The file.
      name: What it is called in messages.

    Raises:
      UserError: It is no such file, is cut short, or names what is not a tensor.
    """
    file = io.BytesIO(content)
    try:
        magic, _, _, state, keys = (_Unpickler(file).load() for _ in range(5))
        if magic != MAGIC:
            raise UserError(f"{name} is no older file of PyTorch's")
        kinds = {view.storage.key: view.storage.kind for view in state.values()}
        stored = {key: _storage(file, kinds[key]) for key in keys}
        return {tensor: _tensor(view, stored[view.storage.key]) for tensor, view in state.items()}
    except UserError:
        raise
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{name} cannot be read as weights: {error}") from error


class _Ordered(dict[str, Any]):
    """An ordered dictionary, which PyTorch gives attributes."""


class _Unpickler(pickle.Unpickler):
    """Knows tensors and ordered dictionaries, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Ordered
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: View(storage, offset, shape, strides)
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> Storage:
        if pid[0] != "storage":
            raise pickle.UnpicklingError(f"it refers to a {pid[0]}, which is no storage")
        return Storage(pid[1], pid[2])


def _storage(file: io.BytesIO, kind: str) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    wanted = count * np.dtype(DTYPES[kind]).itemsize
    content = file.read(wanted)
    if len(content) < wanted:
        raise ValueError(f"it ends {wanted - len(content)} bytes early")
    return np.frombuffer(content, DTYPES[kind])


def _tensor(view: View, stored: np.ndarray) -> np.ndarray:
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    if view.offset < 0 or min((*view.strides, 0)) < 0 or last >= len(stored):
        raise ValueError(f"a tensor {view.shape} lies outside its storage of {len(stored)}")
    strides = [stride * stored.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(stored[view.offset :], view.shape, strides).copy()
