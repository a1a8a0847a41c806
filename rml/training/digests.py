"""What the files of a checkpoint were when they were written.

Orbax finds a file that is missing or cut short. A bit that has changed in the values of an array
it reads as another value.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

DIGESTS = "digests.json"


def _files(checkpoint: Path) -> Iterator[Path]:
    """The files of its items; what lies beside the items is Orbax's own note of the commit."""
    items = (path for path in checkpoint.iterdir() if path.is_dir())
    return (file for item in items for file in item.rglob("*") if file.is_file())


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_digests(checkpoint: Path) -> None:
    """Writes `digests.json` into the directory of a checkpoint whose items are complete."""
    found = {str(file.relative_to(checkpoint)): _digest(file) for file in _files(checkpoint)}
    (checkpoint / DIGESTS).write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")


def damage(checkpoint: Path, *, part: int = 0, parts: int = 1) -> str:
    """What is wrong with the files of a checkpoint.

    Args:
      checkpoint: Its directory.
      part: Which part of the files to look at.
      parts: Of how many.

    Returns:
      One line; empty where they are as they were written, or where no digests were written.
    """
    try:
        expected = json.loads((checkpoint / DIGESTS).read_text())
        for name in sorted(expected)[part::parts]:
            if _digest(checkpoint / name) != expected[name]:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        lost = Path(error.filename)
        return "" if lost.name == DIGESTS else f"{lost.relative_to(checkpoint)} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
