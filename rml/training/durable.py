"""Files that survive a power cut: written whole, and on the disk before anything relies on them."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Waits until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not offered by this file system
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; when it returns, the file is on the disk."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all, see `write_text`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lends a new name beside a path; what is written there takes the path's place at the end.

    A file is replaced in one step, and stays as it was where writing fails. A directory is removed
    before the new one gets its name.
    """
    partial = path.with_name(path.name + ".partial")
    _remove(partial)  # of a write that was stopped
    yield partial
    for part in (partial, *partial.rglob("*")):
        sync(part)
    if path.is_dir():
        _remove(path)
    os.replace(partial, path)
    sync(path.parent)


def _remove(path: Path) -> None:
    """Removes a file or a directory, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Makes a directory and its parents where they are missing, on the disk when it returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)
