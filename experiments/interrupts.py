"""When an interruption is heard: at once while libraries load, later where it would harm."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a program that Ctrl-C ended."""


def stop_at_once() -> None:
    """Ends the program in one line on Ctrl-C, until `raise_interrupts` is called."""
    signal.signal(signal.SIGINT, _stop)


def raise_interrupts() -> None:
    """Raises `KeyboardInterrupt` on Ctrl-C again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end_at_once(code: int) -> NoReturn:
    """Ends the process after its threads, in the place of the interpreter's own end.

    That takes memory from computations that XLA is still at, and crashes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave(status: int) -> NoReturn:
    """Ends the program with the status of its work, at once where that was interrupted."""
    if status == INTERRUPTED:
        end_at_once(status)
    sys.exit(status)


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Lets an interruption take effect at the block's end only, so that the block is done whole.

    Signals that are ignored or left to the system stay so, here and in processes that are started.

    Yields:
      The signals heard so far, for a block that is to end early.
    """
    handlers = {
        signum: handler
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if callable(handler := signal.getsignal(signum))
    }
    heard: list[int] = []
    for signum in handlers:
        signal.signal(signum, lambda signum, _: heard.append(signum))
    try:
        yield heard
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    for first in heard[:1]:
        handlers[signal.Signals(first)](first, None)


def _stop(*_: object) -> NoReturn:
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(INTERRUPTED)
