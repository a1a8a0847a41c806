"""The work of one task of a SLURM array; imported on the node, so it imports little."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from experiments.spawn import complaint, spawn


class Launch:
    """Runs the launcher in a process of its own.

    SLURM tells submitit of a time limit or of preemption; `checkpoint` then lets the run save its
    state, and submitit puts the same task in the queue again, where it continues.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def __call__(self, command: Sequence[str], log: Path) -> None:
        """Runs a command to its end.

        Raises:
          RuntimeError: It failed.
        """
        # The launcher does not know this signal and would die of it unsaved.
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self._process = spawn(command, log)
        signal.signal(signal.SIGUSR2, handler)
        code = self._process.wait()
        if code:
            raise RuntimeError(f"exit code {code}: {complaint(log)} ({log})")

    def checkpoint(self, *task: Any) -> DelayedSubmission:
        """Stops the run, which saves its state, and asks for the rest in a new job."""
        if self._process is not None:
            self._process.terminate()
            # A signal's handler calls this while `__call__` waits, with the lock of `wait`.
            with contextlib.suppress(ChildProcessError):  # it has ended and was waited for
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Launch(), *task)
