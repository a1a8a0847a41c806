"""What every program does to its process: its errors, warnings, heaps and compiled programs."""

import argparse
import ctypes
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags

from experiments import registry
from experiments.cpu import cores
from rml.errors import UserError, local_path

HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
M_ARENA_MAX = -8  # of glibc's malloc.h
CACHE_BYTES = 2 * 2**30
HALF_WRITTEN_SECONDS = 60.0
HANDLER = "warnings of rml"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are the user's mistakes in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises the mistake instead of printing the usage."""
        raise UserError(f"{message}; see --help")


class LocalPath(argparse.Action):
    """Keeps paths of this machine, see `rml.errors.local_path`; a URL is the user's mistake."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option_string: str | None = None,
    ) -> None:  # fmt: skip
        """Keeps the path that a flag or an argument gives, or all of them."""
        what = option_string or self.dest
        given = [local_path(x, what) for x in ([values] if isinstance(values, str) else values)]
        setattr(namespace, self.dest, given[0] if isinstance(values, str) else given)


def check_writable(folder: Path, what: str) -> None:
    """Raises `UserError` where no file can be made in a folder, or in the one that it is to be in.

    Args:
      folder: The folder.
      what: The flag and its value, for the message.
    """
    folder = folder.absolute()
    try:
        there = next(one for one in (folder, *folder.parents) if one.exists())
        tempfile.TemporaryFile(dir=there).close()  # better now than after an hour
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror or error}") from None


def parse_flags(argv: Sequence[str], show_help: Callable[..., None] | None = None) -> list[str]:
    """Parses a command line; a mistake ends the program with one line, help with status 0.

    Args:
      argv: The program and its arguments.
      show_help: `show_help(shorthelp=...)`, called after the flags are read; absl's by default.

    Returns:
      The program and the arguments that are no flags.
    """
    asked = HELP & set(argv)
    try:
        rest = registry.parse_flags([arg for arg in argv if arg not in HELP], flags.FLAGS)
    except UserError as error:
        fail(error)
    if asked:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `head` may leave early
        show = show_help or partial(app.usage, writeto_stdout=True)
        show(shorthelp="--helpfull" not in asked)
        raise SystemExit(0)
    return rest


def fail(message: object) -> NoReturn:
    """Ends the program with a user's mistake in one line."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def quiet_libraries() -> None:
    """Silences what libraries log about themselves, not warnings about the run."""
    from absl import logging as absl_logging

    # Their errors are raised as well, and told in one line.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = show_unraisable
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(HANDLER)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logger = logging.getLogger("rml")
    for earlier in [one for one in logger.handlers if one.name == HANDLER]:
        logger.removeHandler(earlier)  # of an earlier launch in this process
    logger.setLevel(logging.WARNING)  # absl's verbosity is that of the root
    logger.addHandler(handler)
    logger.propagate = False


def show_unraisable(unraisable: Any) -> None:
    """Leaves out what the other writes of a checkpoint complain of after one of them failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def limit_arenas() -> None:
    """Holds glibc to one heap a core, unless MALLOC_ARENA_MAX says how many.

    By default there are up to eight a core, and what evaluations and checkpoints free in one is not
    used from another: a long run's memory creeps up (tests/system/soak.py).
    """
    if "MALLOC_ARENA_MAX" in os.environ or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_ARENA_MAX, cores())


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache directory, where the next process finds them.

    JAX's own variables have the first word: JAX_COMPILATION_CACHE_DIR names another directory,
    JAX_ENABLE_COMPILATION_CACHE=false switches the cache off, JAX_COMPILATION_CACHE_MAX_SIZE is its
    size in bytes. Without a directory that can be written nothing is kept.
    """
    import jax

    warnings.filterwarnings("ignore", message=".*persistent compilation cache", module="jax")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_directory()
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in {
        "jax_compilation_cache_max_size": CACHE_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def cache_directory() -> Path | None:
    """The folder of compiled programs, whole entries alone in it; None if it cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base, "rml", "jax")
    if not folder.is_absolute():  # there is no home
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lockfile", "a"):  # the one that JAX takes
            pass
        drop_half_written(folder)
    except OSError:
        return None
    return folder


def drop_half_written(folder: Path) -> None:
    """Removes entries that a killed process left: the time of an entry is written after it.

    JAX would read such an entry in vain each time, and could no longer make room.
    """
    for entry in folder.glob("*-cache"):
        written = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
        if not written.exists() and time.time() - entry.stat().st_mtime > HALF_WRITTEN_SECONDS:
            entry.unlink(missing_ok=True)
