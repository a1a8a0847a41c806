"""The run directory: one run's config, metrics, checkpoints, figures and summary."""

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

from rml.errors import UserError
from rml.training.processes import is_primary, of_primary, primary_first

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "rml")
MAX_DIFFERENCES = 8
PLACEMENT = ("mesh",)
"""Keys that say where a run computes, not what: they may change when it continues."""


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    os.replace(partial, path)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys in which two configs differ, each with both values."""
    old, new = flatten(old), flatten(new)
    absent = "(absent)"
    return [
        f"{key}: {old.get(key, absent)!r} there, {new.get(key, absent)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


class RunDirectory:
    """One run's directory, held by one run at a time.

    Opening writes `config.json` into a new or empty directory, or checks it against the one that
    is there, but for the mesh. Nothing that exists is overwritten. Of the processes of one run,
    which share the directory, the first one holds it and writes; what the others draw goes to a
    place of their own.

    Attributes:
      path: The directory.
      config: The run's config as plain data.
      resumed: Whether the directory held this run before.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], *, config_name: str = ""):
        """Opens or creates the directory.

        Args:
          path: The directory.
          config: The run's config.
          config_name: The file that the config comes from, for the summary.

        Raises:
          UserError: The path is a file, cannot be written, holds something else or another
            config's run, or is in use by another process.
        """
        self.path = Path(path)
        self.config = json.loads(json.dumps(dict(config)))
        self.config_name = config_name
        self._lock: Any = None
        self.resumed = False
        self._scratch: tempfile.TemporaryDirectory | None = None
        with primary_first(f"opening the work directory {self.path}"):
            self._created = not self.path.exists()
            self._open()
        self.resumed = of_primary(self.resumed)

    def _open(self) -> None:
        try:
            if is_primary():
                self.path.mkdir(parents=True, exist_ok=True)
                self._hold()
            elif not self.path.is_dir():
                raise UserError(
                    f"process {jax.process_index()} does not see the work directory {self.path}; "
                    "expected one that all processes share"
                )
            self.resumed = self._check_config()
            if is_primary():
                tempfile.TemporaryFile(dir=self.path).close()  # better now than after an hour
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"work directory {self.path} is a file, expected a directory") from None
        except OSError as error:
            raise UserError(
                f"work directory {self.path} cannot be used: {error.strerror or error}"
            ) from None

    def _hold(self) -> None:
        self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 - held for the run's length
        for _ in range(20):  # a report that looks at the directory holds the lock for an instant
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.05)
        raise UserError(f"work directory {self.path} is in use by another run")

    def _check_config(self) -> bool:
        file = self.path / "config.json"
        if not file.exists():
            strangers = sorted(p.name for p in self.path.iterdir() if p.name[0] != ".")
            strangers = [n for n in strangers if not n.endswith(".partial")]
            if strangers:
                raise UserError(
                    f"work directory {self.path} holds {strangers[0]!r} and no run, "
                    "expected a new or empty directory, or one of this config's runs"
                )
            write_json(file, self.config)
            return False
        try:
            found = json.loads(file.read_text())
        except ValueError:
            raise UserError(f"{file} is not readable as JSON; the run cannot be resumed") from None
        what = [
            {key: value for key, value in config.items() if key not in PLACEMENT}
            for config in (found, self.config)
        ]
        differing = difference(*what)
        if differing:
            shown = "\n  ".join(differing[:MAX_DIFFERENCES])
            more = len(differing) - MAX_DIFFERENCES
            raise UserError(
                f"work directory {self.path} holds a run of a different config; "
                f"give another --workdir, or the same values:\n  {shown}"
                + (f"\n  and {more} more" if more > 0 else "")
            )
        return True

    def close(self) -> None:
        """Lets another run use the directory."""
        if self._lock is not None:
            self._lock.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def abandon(self) -> None:
        """Takes a directory back that holds nothing yet but its config."""
        if (
            is_primary()
            and not self.resumed
            and {p.name for p in self.path.iterdir()} <= {"config.json", ".lock"}
        ):
            (self.path / "config.json").unlink()
            (self.path / ".lock").unlink()
            if self._created:
                self.path.rmdir()
        self.close()

    def of_method(self, name: str) -> "RunDirectory":
        """The directory of one of the methods that a run compares, `methods/<name>` in it."""
        config = self.config | {"method": name}
        return RunDirectory(self.path / "methods" / name, config, config_name=self.config_name)

    def figure(self, name: str) -> Path:
        """Where a figure of this name is saved."""
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

    def summary(self) -> dict[str, Any] | None:
        """The summary of a complete run, None before it is complete."""
        file = self.path / "summary.json"
        return json.loads(file.read_text()) if file.exists() else None

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
            write_json(self.path / "figures" / "captions.json", dict(captions))
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
        }
        if is_primary():
            write_json(self.path / "summary.json", summary)
        return summary
