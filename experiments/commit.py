"""The commit of the code that measures."""

import subprocess

from experiments.registry import ROOT

MEASURED = ("rml", "experiments", "configs", "pyproject.toml", "constraints.txt")
"""What a measurement depends on: other files may change without a trace in `commit`."""


def current_commit() -> str:
    """The commit of what measurements depend on, with `-dirty` where it was changed since."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    try:
        head, changed = (
            subprocess.run([*git, *arguments], check=True, capture_output=True, text=True).stdout
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *MEASURED))
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"
    return head.strip() + ("-dirty" if changed.strip() else "")
