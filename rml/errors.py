"""Errors that a user can mend: one sentence each, shown without a traceback by the launcher."""

import difflib
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

NO_NPZ = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,  # of what is encrypted, or compressed by an unknown method
    MemoryError,  # as of a header that says a huge shape, or the next
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What NumPy raises of an `.npz` file that is none, is damaged, or is not one of arrays alone."""


class UserError(ValueError):
    """A mistake in what the user gave: a name, a value, a file, a directory."""


class MissingError(UserError):
    """An archive or a package that is known and not on this machine: the message says the cure."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Makes the error for a name that does not exist, with thing, value and what was expected.

    Args:
      kind: What the name should have named, for example "model".
      name: The name that was given.
      valid: The names that exist.

    Returns:
      A `UserError` that gives the nearest valid name, or all of them where none is near.
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    expected = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(valid)}"
    return UserError(f"unknown {kind} {name!r}; {expected}")


def install(extra: str) -> str:
    """Writes the command that installs an extra as it is pinned, and where it is to be typed.

    Args:
      extra: Name of the extra in `pyproject.toml`, for example "transport".
    """
    return f"pip install --constraint constraints.txt -e '.[{extra}]' in the root of the repository"


def local_path(given: str | Path, what: str) -> Path:
    """Makes a path of this machine, a leading `~` expanded.

    Args:
      given: The path.
      what: What it is the path of, for the message.

    Raises:
      UserError: It is empty, a URL, such as gs://BUCKET/PATH, which nothing here writes to or
        reads, or it is in the home of an unknown user.
    """
    if not str(given):
        raise UserError(f"{what} is empty, expected a path")
    path = Path(given)
    if path.parts and path.parts[0].endswith(":"):
        raise a_url(str(given), what)
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{what} is {str(given)!r}, but {path.parts[0]} is no user here") from None


def a_url(given: str, what: str) -> UserError:
    """Makes the error for a URL in the place of a path."""
    return UserError(
        f"{what} is {given!r}, a URL; expected a path of this machine: mount a bucket first, such "
        "as with gcsfuse"
    )


def why_no_npz(file: Path, error: Exception) -> str:
    """Says why NumPy could not read an `.npz` file.

    Of any file that is no archive it says itself that the file is pickled.
    """
    if isinstance(error, ValueError) and not zipfile.is_zipfile(file):
        return "it is no archive, as numpy.savez writes it"
    return str(error)
