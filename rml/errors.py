"""Errors that a user can mend: one sentence each, shown without a traceback by the launcher."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a name, a value, a file, a directory."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a name that does not exist: names the thing, the value and what was expected.

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
