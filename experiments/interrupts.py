"""Ctrl-C while a program imports its libraries, when nothing is to be saved."""

import os
import signal
import sys
from typing import NoReturn


def stop_at_once() -> None:
    """Ends the program in one line on Ctrl-C, until `raise_interrupts` is called."""
    signal.signal(signal.SIGINT, _stop)


def raise_interrupts() -> None:
    """Raises `KeyboardInterrupt` on Ctrl-C again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(*_: object) -> NoReturn:
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(128 + signal.SIGINT)
