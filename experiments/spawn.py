"""Processes of the launcher, from a module that imports next to nothing."""

import os
import shlex
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

PROMPT = "$ "
"""What the line begins with that names a command in its log, before what the command prints."""


def spawn(command: Sequence[str], log: Path) -> subprocess.Popen:
    """Starts a command whose output goes to a file, behind that of earlier starts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        print(f"{PROMPT}{shlex.join(command)}", file=file, flush=True)
        # In a session of its own it is told once of an interruption, not by the terminal as well.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def bind(process: subprocess.Popen, cores: Collection[int]) -> None:
    """Binds a process that was just started to cores; none leaves the choice to the system."""
    if cores:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)


def shares_of_cores(jobs: int) -> list[tuple[int, ...]]:
    """Shares this process's cores out over jobs that run side by side.

    A job starts a thread for each core that it sees, so that unbound jobs contend for all of them.

    Args:
      jobs: Number of jobs.

    Returns:
      The cores of each job, disjoint; all empty where one job may have them all, where jobs are
      more than cores, or where the system binds no process.
    """
    bound = hasattr(os, "sched_setaffinity") and jobs > 1
    cores = sorted(os.sched_getaffinity(0)) if bound else []
    return [tuple(cores[job::jobs]) if len(cores) >= jobs else () for job in range(jobs)]


def complaint(log: Path) -> str:
    """The line that says why the last start failed: its error, or else the last one it printed."""
    # A process that is killed may leave half a character.
    whole = log.read_text(errors="replace").splitlines() if log.exists() else []
    started = [place for place, line in enumerate(whole, 1) if line.startswith(PROMPT)]
    lines = [line.strip() for line in whole[max(started, default=0) :] if line.strip()]
    return next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "")
