"""Processes of the launcher, from a module that imports next to nothing."""

import subprocess
from collections.abc import Sequence
from pathlib import Path


def spawn(command: Sequence[str], log: Path) -> subprocess.Popen:
    """Starts a command whose output goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        # In a session of its own it is told once of an interruption, not by the terminal as well.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def complaint(log: Path) -> str:
    """The line that says why a command failed: its error, or else the last one it printed."""
    text = log.read_text() if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "")
