"""Features of frozen encoders, computed once and kept in files."""

import contextlib
import hashlib
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from rml.assets import default_data_dir
from rml.data.given import in_slices

log = logging.getLogger(__name__)

LIMIT_BYTES = 20 * 2**30
"""Features that are kept in one directory."""

NO_FILE_NAME = re.compile(r"[^\w.-]+")
LONGEST_NAME = 100  # characters

ROWS = 1024
"""Images that are read at a time for their digest."""

KEY_BYTES = 16
CHECK_BYTES = 32
"""Length of the digest that ends a file, after what NumPy reads."""


@runtime_checkable
class Frozen(Protocol):
    """An encoder that is not trained any more, such as `rml.ImageEmbedder`."""

    @property
    def function(self) -> Callable[..., Array]:
        """Pure `function(variables, images) -> [b, d]`."""

    @property
    def variables(self) -> PyTree:
        """The variables of `function`."""

    def __call__(self, images: Any, /) -> Float[np.ndarray, "n d"]:
        """Features of images that are sliced as `images[a:b]`."""


def cached_features(
    encoder: Frozen,
    images: Any,
    *,
    name: str,
    directory: str | Path | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Float[np.ndarray, "n d"]:
    """Computes features of images by a frozen encoder, or reads those computed before.

        features = cached_features(encoder, rml.data.load("glyphs", "train"), name="lite0")

    A file is named by a digest of all that features depend on: the images themselves, the values of
    the weights, and the program that the function is lowered to, with its layer and preprocessing.
    So nothing that is out of date is read, and the name is for people. Images are decoded for their
    digest each time; only the encoder's work is saved.

    Any number of programs may use a directory at once: a file appears whole or not at all. Where
    one is damaged or cannot be written, a warning says so and the features are computed. Files may
    be removed at any time. Where several processes share a program nothing is read or written.

    Args:
      encoder: The encoder.
      images: A source, or images that are sliced as `images[a:b]`.
      name: Name of encoder, layer and data in the file's name.
      directory: Directory of the files; by default `features` in `RML_CACHE`, or in TFDS's data
        directory where that is not set.
      limit_bytes: Size of all files in the directory above which the one that was not read for
        longest is removed.

    Returns:
      One row an image, mapped into memory and not to be written to where it is read from a file.

    Raises:
      DataError: Images of the source have several sizes.
    """
    # An encoder of a run has preprocessing of its own, on which features depend.
    rows = getattr(encoder, "read", in_slices)(images)
    if jax.process_count() > 1:  # one that finds its file would leave the others waiting
        return encoder(rows)
    if directory is None:
        directory = _default()
    key = _key(encoder, rows, name)
    path = Path(directory).expanduser() / f"{NO_FILE_NAME.sub('_', name)[-LONGEST_NAME:]}-{key}.npy"
    found = _read(path)
    if found is None:
        found = encoder(rows)
        if found.dtype.kind == "V":  # such as bfloat16, which a file of NumPy's cannot name
            return found
        try:
            _write(path, found)
            _trim(path.parent, limit_bytes)
        except OSError as error:
            log.warning("features of %s are not kept: %s", name, error)
    return found


def _default() -> Path:
    return Path(os.environ.get("RML_CACHE") or default_data_dir()) / "features"


def _key(encoder: Frozen, rows: Any, name: str) -> str:
    """Digest of what features depend on, in hexadecimal."""
    first = np.asarray(rows[:1])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), encoder.variables
    )
    example = jax.ShapeDtypeStruct((1, *first.shape[1:]), first.dtype)
    program = jax.jit(encoder.function).lower(shapes, example)
    digest = hashlib.blake2b(digest_size=KEY_BYTES)

    def add(what: object, array: Any = ()) -> None:
        values = np.ascontiguousarray(array)
        digest.update(f"{what} {values.dtype}{values.shape}\n".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)

    add((name, jax.default_backend(), program.as_text()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(encoder.variables):
        add(jax.tree_util.keystr(path), leaf)
    for start in range(0, len(rows), ROWS):
        add("images", rows[start : start + ROWS])
    return digest.hexdigest()


def _read(path: Path) -> np.ndarray | None:
    """The features of a file; None if it is not there or not whole."""
    try:
        content = np.memmap(path, np.uint8, "r")
        if _check(content[:-CHECK_BYTES]) != content[-CHECK_BYTES:].tobytes():
            raise ValueError("its digest is another")
        found: np.ndarray = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s): features are computed again", path, error)
        return None
    with contextlib.suppress(OSError):  # the file may be another user's, or gone
        os.utime(path, ns=(time.time_ns(),) * 2)  # it was read now, see `_trim`
    return found


def _write(path: Path, features: np.ndarray) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, scratch = tempfile.mkstemp(
        f"-{path.name[-2 * KEY_BYTES - 4 :]}", "incomplete", path.parent
    )
    try:
        with open(number, "wb") as file:
            np.save(file, features, allow_pickle=False)
            file.flush()
            file.write(_check(np.memmap(scratch, np.uint8, "r")))
            os.fchmod(number, _mode(path.parent))
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _mode(directory: Path) -> int:
    """Permissions of a file: whoever may read its directory may read it, and its owner write."""
    return stat.S_IMODE(directory.stat().st_mode) & 0o644


def _check(content: np.ndarray) -> bytes:
    return hashlib.blake2b(content.data, digest_size=CHECK_BYTES).digest()


def _trim(directory: Path, limit_bytes: int) -> None:
    """Removes files that were not read for longest, and no file that was not written here."""
    pattern = re.compile(rf".*-[0-9a-f]{{{2 * KEY_BYTES}}}\.npy")
    known = []
    for path in directory.iterdir():
        if pattern.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # another program removed it
                own = path.stat()
                known.append((own.st_mtime_ns, own.st_size, path))
    known.sort()
    total = sum(size for _, size, _ in known)
    for _, size, path in known:
        if total <= limit_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
