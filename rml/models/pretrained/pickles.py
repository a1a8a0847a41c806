"""PyTorch's files of weights, read without PyTorch and without running what is in them.

The older form is five pickles and the bytes of the tensors; the newer one a zip archive of one
pickle and a file of bytes for each storage. Of what a pickle may name only tensors, parameters,
their storages and ordered dictionaries are known here; everything else is refused.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from rml.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
ZIP = b"PK\x03\x04"
DTYPES: dict[str, Any] = {
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
BYTE_ARRAY = pickle.BYTEARRAY8[0]  # operation that makes a bytearray
# Under these a checkpoint of a training program keeps its weights.
NESTED = ("state_dict", "model_state_dict", "model")
DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    AttributeError,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    MemoryError,
    RuntimeError,  # what is nested too deep, encrypted, or compressed by an unknown method
    struct.error,
)


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


def read_pickle(content: bytes, name: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dictionary, which may be that of a checkpoint.

    Args:
      content: The file.
      name: What it is called in messages.

    Raises:
      UserError: It is no such file, is cut short, or names what is not a tensor.
    """
    try:
        return _read_zip(content) if content.startswith(ZIP) else _read_older(content)
    except DAMAGE as error:
        what = str(error) or "it ends early"
        raise UserError(f"{name} cannot be read as weights of PyTorch: {what}") from error


def _read_older(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    if _Unpickler(file).load() != MAGIC:
        raise ValueError("it does not begin as they do")
    for _ in range(2):  # versions and sizes of numbers
        _Unpickler(file).load()
    reader = _Unpickler(file)
    views = _views(reader.load())
    stored = {}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        dtype = np.dtype(DTYPES[reader.kinds[key]])
        stored[key] = _elements(file.read(count * dtype.itemsize), dtype, count)
    return {name: _tensor(view, stored[view.storage.key]) for name, view in views.items()}


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        top = pickled.removesuffix("data.pkl")
        if f"{top}byteorder" in names and _part(archive, f"{top}byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")
        views = _views(_Unpickler(io.BytesIO(_part(archive, pickled))).load())
        stored = {}
        for key, kind in {view.storage[::-1] for view in views.values()}:
            content, dtype = _part(archive, f"{top}data/{key}"), np.dtype(DTYPES[kind])
            stored[key] = _elements(content, dtype, len(content) // dtype.itemsize)
    return {name: _tensor(view, stored[view.storage.key]) for name, view in views.items()}


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a file, which PyTorch does not compress: a small one might fill the memory."""
    file = archive.getinfo(name)
    if file.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its part {file.filename} is compressed")
    return archive.read(file)


def _views(state: Any) -> dict[str, View]:
    """The tensors of what was pickled."""
    for key in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, expected tensors by name")
    views = {}
    for name, view in state.items():
        if not isinstance(view, View):
            raise ValueError(f"its {name!r} is a {type(view).__name__}, expected a tensor")
        views[str(name)] = view
    return views


class _Ordered(dict[str, Any]):
    """An ordered dictionary, which PyTorch gives attributes."""


class _Unpickler(pickle._Unpickler):
    """Knows tensors and ordered dictionaries, and nothing that could run.

    The unpickler written in C makes room for as many objects as a pickle says, whatever follows;
    so would this one for a bytearray. What a name stands for is made anew, since a pickle may
    change it.

    Attributes:
      kinds: Name of the type of each storage by its key.
    """

    dispatch: ClassVar = {o: f for o, f in pickle._Unpickler.dispatch.items() if o != BYTE_ARRAY}

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.kinds: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return lambda *items: _Ordered(*items)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: View(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda view, *_: view
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> Storage:
        if pid[0] != "storage":
            raise pickle.UnpicklingError(f"it refers to a {pid[0]}, which is no storage")
        self.kinds[pid[2]] = pid[1]
        return Storage(pid[1], pid[2])


def _elements(content: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    if len(content) < count * dtype.itemsize:
        raise ValueError(f"it ends {count * dtype.itemsize - len(content)} bytes early")
    return np.frombuffer(content, dtype, count)


def _tensor(view: View, stored: np.ndarray) -> np.ndarray:
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    lowest = min((view.offset, *view.shape, *view.strides))
    # More elements than are stored would be one repeated, of any number.
    if lowest < 0 or last >= len(stored) or math.prod(view.shape) > len(stored):
        raise ValueError(f"a tensor {view.shape} lies outside its storage of {len(stored)}")
    strides = [stride * stored.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(stored[view.offset :], view.shape, strides).copy()
