"""What the files of a checkpoint were when they were written.

Orbax finds a file that is missing or cut short. A bit that has changed in the values of an array
it reads as another value.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rml.training.durable import sync, write_text

log = logging.getLogger(__name__)

DIGESTS = "digests.json"


def _files(checkpoint: Path) -> Iterator[Path]:
    """The files of its items; what lies beside the items is Orbax's own note of the commit."""
    items = (path for path in checkpoint.iterdir() if path.is_dir())
    return (file for item in items for file in item.rglob("*") if file.is_file())


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Names the file in an error, which that of a failing disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise


def _digest(file: Path) -> str:
    with _named(file), open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_digests(checkpoint: Path) -> None:
    """Writes `digests.json` into the directory of a checkpoint whose items are complete.

    When it returns, the items and their digests are on the disk.
    """
    found = {str(file.relative_to(checkpoint)): _digest(file) for file in _files(checkpoint)}
    for path in checkpoint.rglob("*"):
        sync(path)
    write_text(checkpoint / DIGESTS, json.dumps(found, indent=0, sort_keys=True) + "\n")


def damage(checkpoint: Path, *, item: str = "", part: int = 0, parts: int = 1) -> str:
    """Finds what is wrong with the files of a checkpoint.

    Args:
      checkpoint: Its directory.
      item: The one item that is looked at, such as "config"; all of them if empty.
      part: Number of the part of the files that is looked at.
      parts: Number of parts the files are split into.

    Returns:
      One line; empty where they are as they were written, or where no digests were written.

    Raises:
      OSError: A file is there and cannot be read now, which is no sign of damage.
    """
    try:
        with _named(checkpoint / DIGESTS):
            expected = json.loads((checkpoint / DIGESTS).read_bytes())
    except FileNotFoundError:
        log.warning("checkpoint %s has no %s; damage to it may go unseen", checkpoint, DIGESTS)
        return ""
    except ValueError as error:
        return f"{DIGESTS} has changed since it was written: {error}"
    if not isinstance(expected, dict):
        return f"{DIGESTS} has changed since it was written: expected names with digests"
    names = sorted(name for name in expected if name.startswith(f"{item}/" if item else ""))
    for name in names[part::parts]:
        try:
            if _digest(checkpoint / name) != expected[name]:
                return f"{name} has changed since it was written"
        except FileNotFoundError:
            return f"{name} is missing"
    return ""
