"""The run directory: one run's config, metrics, checkpoints, figures and summary."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from rml.errors import UserError, local_path
from rml.training.config_file import (
    CONFIG,
    FAILURE,
    SUMMARY,
    check_same,
    differences,
    read_config,
    read_summary,
    replace_config,
    restore_config,
)
from rml.training.durable import make_directory, write_json, write_text
from rml.training.processes import is_primary, of_primary, primary_first
from rml.training.writers import read_metrics

PREPARED = ("tokenizer.json",)
"""Files that are made of a config's data before the training."""
COMMITS = ".commits"
"""File of the commits whose code has trained a run up to its newest checkpoint, one a line."""
VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "rml")


class RunDirectory:
    """One run's directory, held by one run at a time.

    Opening writes `config.json` into a new or empty directory, or checks it against the one that
    is there. `mesh`, `evaluation.*` and, upwards, `train.steps` may differ, but of a run of stages
    not all of them: the config that was there is then kept in `config.history.jsonl`, with the
    summary. A config that is lost is taken from a checkpoint. Of the processes of one run, which
    share the directory, the first one holds it and writes; what the others draw goes to a place of
    their own.

    Attributes:
      path: The directory.
      config: The run's config as plain data.
      resumed: Whether the directory held this run before.
      tracker: Tracker that metrics are logged to beside the directory, None if to none; see
        `rml.training.tracking`.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        config_name: str = "",
        commit: str = "",
        staged: bool = False,
    ):
        """Opens or creates the directory.

        Args:
          path: The directory.
          config: The run's config.
          config_name: The file that the config comes from, for the summary.
          commit: The commit of the code that runs, for the summary, which names those of earlier
            starts too.
          staged: Whether one stage of the run begins from what another has learned or chosen, so
            that neither `train.steps` nor what it chooses by may differ, see `check_same`.

        Raises:
          UserError: The path is a URL or a file, cannot be written, holds something else or another
            config's run, or is in use by another process.
        """
        self.path = local_path(path, "the work directory")
        self.config = json.loads(json.dumps(dict(config)))
        self.config_name, self.commit, self._staged = config_name, commit, staged
        self.tracker: Any = None
        self._lock: Any = None
        self._made_lock = False
        self.resumed = False
        self._replaced = False
        self._methods: list[RunDirectory] = []
        self._scratch: tempfile.TemporaryDirectory | None = None
        with primary_first(f"opening the work directory {self.path}"):
            self._created = not self.path.exists()
            try:
                self._open()
            except BaseException:
                if self._made_lock:  # while it is held: afterwards it may be another run's
                    with contextlib.suppress(OSError):
                        (self.path / ".lock").unlink(missing_ok=True)
                self.close()
                raise
        self.resumed = of_primary(self.resumed)

    def _open(self) -> None:
        try:
            if is_primary():
                make_directory(self.path)
                self._hold()
            elif not self.path.is_dir():
                raise UserError(
                    f"process {jax.process_index()} does not see the work directory {self.path}; "
                    "expected one that all processes share"
                )
            self.resumed = self._check_config()
            if is_primary():
                (self.path / FAILURE).unlink(missing_ok=True)
                tempfile.TemporaryFile(dir=self.path).close()  # better now than after an hour
        except (FileExistsError, NotADirectoryError):
            places = (self.path, *self.path.parents)
            file = next((one for one in places if one.is_file()), self.path)
            within = "" if file == self.path else f" cannot be made: {file}"
            raise UserError(
                f"work directory {self.path}{within} is a file, expected a directory"
            ) from None
        except OSError as error:
            raise UserError(
                f"work directory {self.path} cannot be used: {error.strerror or error}"
            ) from None

    def _hold(self) -> None:
        absent = not (self.path / ".lock").exists()
        for _ in range(20):  # a report that looks at the directory holds the lock for an instant
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 - held for the run's length
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A run that gave the directory up has removed its file: the next one makes another.
                if os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / ".lock")):
                    self._made_lock = absent
                    return
            except (BlockingIOError, FileNotFoundError):
                time.sleep(0.05)
            self._lock.close()
        raise UserError(f"work directory {self.path} is in use by another run")

    def _check_config(self) -> bool:
        found = read_config(self.path, repair=True)
        if found is None:
            if is_primary():
                write_json(self.path / CONFIG, self.config)
            return False
        differing = differences(found, self.config)
        check_same(self.path, differing, staged=self._staged)
        if is_primary() and any(key.partition(".")[0] != "mesh" for key in differing):
            replace_config(self.path, found, self.config, differing)
            self._replaced = True
        return True

    def close(self) -> None:
        """Lets another run use the directory, and those of its methods; it may be closed again."""
        for inner in self._methods:  # one whose measurement was interrupted is still held
            inner.close()
        if self._lock is not None:
            self._lock.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def abandon(self) -> None:
        """Takes back a directory that was not trained in, or a config not trained with yet.

        Beside its config such a directory may hold what is made before the training, `PREPARED`.
        Hidden files of others stay and say nothing, as they do where a directory is opened.
        """
        for inner in self._methods:
            inner.abandon()
        if self._methods and is_primary():
            with contextlib.suppress(OSError):  # where another method is complete
                (self.path / "methods").rmdir()
        self.take_back_config()
        if is_primary() and not self.resumed and self._names() <= {CONFIG, *PREPARED}:
            for name in (*PREPARED, CONFIG, ".lock"):
                (self.path / name).unlink(missing_ok=True)
            if self._created:
                with contextlib.suppress(OSError):  # where a hidden file has come since
                    self.path.rmdir()
        self.close()

    def _names(self) -> set[str]:
        """Lists what the directory holds, but for the lock and hidden files of others."""
        names = {path.name for path in self.path.iterdir()}
        return {name for name in names if name[0] != "." or name == COMMITS}

    def take_back_config(self) -> None:
        """Undoes the change of a config that nothing was trained or judged with, methods' too."""
        for inner in self._methods:
            inner.take_back_config()
        if self._replaced:
            restore_config(self.path)
            self._replaced = False

    def of_method(self, name: str) -> "RunDirectory":
        """Opens the directory of one of the methods that a run compares, `methods/<name>` in it."""
        config = self.config | {"method": name}
        inner = RunDirectory(
            self.path / "methods" / name, config, config_name=self.config_name, commit=self.commit,
            staged=self._staged,
        )  # fmt: skip
        self._methods.append(inner)
        return inner

    def figure(self, name: str) -> Path:
        """Returns where a figure of this name is saved."""
        if not is_primary():
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="rml-figures-")
            return Path(self._scratch.name) / name
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder / name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are saved."""
        return self.path / "checkpoints"

    def note_commit(self) -> None:
        """Notes that this start's code has trained what a checkpoint keeps."""
        if is_primary() and self.commit and self.commit not in self._noted():
            write_text(self.path / COMMITS, "\n".join([*self._noted(), self.commit]))

    def _noted(self) -> list[str]:
        """Reads the commits that `note_commit` has noted, in the order of their starts."""
        file = self.path / COMMITS
        return file.read_text().splitlines() if file.exists() else []

    def _commits(self) -> str:
        """Joins the commits of all code that has trained or judged this run or its methods."""
        told = [*self._noted(), self.commit]
        for method in self._methods:
            told[-1:-1] = ((method.summary() or {}).get("commit") or "").split(", ")
        return ", ".join(dict.fromkeys(filter(None, told)))

    def summary(self) -> dict[str, Any] | None:
        """Reads the summary of a complete run, None before it is complete."""
        return read_summary(self.path)

    def seconds(self) -> float:
        """Counts seconds of all earlier starts, up to the last metrics that each method wrote."""
        return _seconds(self.path)

    def write_summary(
        self,
        *,
        metrics: Mapping[str, float],
        claims: list[dict[str, Any]],
        seconds: float,
        captions: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Marks the run complete.

        Args:
          metrics: Final metrics.
          claims: Measured claims, see `rml.training.claims`.
          seconds: Wall-clock time of the run, over all its processes.
          captions: A caption for each figure.

        Returns:
          The summary as written.
        """
        if captions and is_primary():
            write_json(self.figure("captions.json"), dict(captions))
        summary = {
            "status": "complete",
            "experiment": self.config.get("experiment"),
            "config_name": self.config_name,
            "seed": self.config.get("seed"),
            "steps": self.config.get("train", {}).get("steps"),
            "seconds": round(seconds, 2),
            "metrics": {k: float(v) for k, v in metrics.items()},
            "claims": claims,
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in VERSIONED},
            "devices": [device.device_kind for device in jax.devices()],
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        } | ({"commit": commits} if (commits := self._commits()) else {})
        if is_primary():
            write_json(self.path / SUMMARY, summary)
        self._replaced = False
        return summary

    def write_failure(self, step: int, message: str) -> None:
        """Says why the run ended, until it is opened again.

        Args:
          step: The step at which it failed.
          message: Account of what went wrong.
        """
        if is_primary():
            failure = {"step": step, "message": message, "commit": self.commit or "unknown"}
            write_json(self.path / FAILURE, failure)


def _seconds(path: Path) -> float:
    """The time that a run directory tells of: its own and that of its methods."""
    if summary := read_summary(path):
        return float(summary["seconds"])
    lines = read_metrics(path / "metrics.jsonl")
    own = max((float(line["time"]) for line in lines), default=0.0)
    return own + sum(_seconds(method) for method in path.glob("methods/*"))
