"""The commit of the code that measures."""

import subprocess

from experiments.registry import ROOT

UNKNOWN = "unknown"
"""What stands for the commit where there is no repository."""
ARCHIVED = "$Format:%H$"
"""The commit of an archive, which `git archive` writes here, see `.gitattributes`."""
MEASURED = ("rml", "experiments", "configs", "pyproject.toml", "constraints.txt")
"""What a measurement depends on: other files may change without a trace in `commit`."""


def current_commit() -> str:
    """The commit of what measurements depend on, with `-dirty` where it was changed since.

    Without a repository it is that of the archive which the code comes from, or `UNKNOWN`.
    """
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    try:
        head, changed = (
            subprocess.run([*git, *arguments], check=True, capture_output=True, text=True).stdout
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *MEASURED))
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return UNKNOWN if ARCHIVED.startswith("$") else ARCHIVED
    return head.strip() + ("-dirty" if changed.strip() else "")
