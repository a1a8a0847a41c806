"""The config and the summary of a run directory: read, compared, replaced, recovered."""

import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rml.errors import UserError
from rml.nested import flatten
from rml.training.checkpoint import saved_config, steps_saved
from rml.training.durable import write_json, write_text
from rml.training.processes import is_primary
from rml.training.writers import MetricsWriter

log = logging.getLogger(__name__)

CONFIG, SUMMARY = "config.json", "summary.json"
METRICS, FAILURE = "metrics.jsonl", "failure.json"
HISTORY = "config.history.jsonl"
"""Configs that a run had before its present one, each with its newest step and its summary."""
FREE = ("mesh", "evaluation")
"""Parts of a config that say where a run computes and how it is judged, not how it trains."""
NEUTRAL = ("evaluation.batch_size", "evaluation.batch_tokens", "evaluation.test_queries")
"""Keys of an evaluation by which no stage of a run chooses what a later one begins from."""
LATER = {"precision": "default"}
"""Keys that configs have had from some day on, with the values that runs without them had."""
TRACES = ("checkpoints", "methods", "metrics.jsonl", SUMMARY)
"""What tells a run that has lost its config from something else."""
SUMMARY_KEYS = (
    "experiment", "config_name", "seed", "seconds", "metrics", "claims", "versions", "devices",
    "finished",
)  # fmt: skip
MAX_DIFFERENCES = 8


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Finds both values of every key in which configs differ; `old` may lack those of `LATER`."""
    old, new = flatten(old), flatten(new)
    old = {key: value for key, value in LATER.items() if key in new} | old
    absent = "(absent)"
    pairs = {k: (old.get(k, absent), new.get(k, absent)) for k in sorted({*old, *new})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def told(differing: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Puts differences into words, one line a key."""
    return [f"{key}: {old!r} there, {new!r} now" for key, (old, new) in differing.items()]


def list_differences(differing: Mapping[str, tuple[Any, Any]], *, between: str = "; ") -> str:
    """Joins differences in words, the first `MAX_DIFFERENCES` of them, and counts the others.

    Args:
      differing: Both values by key.
      between: What stands between two differences.

    Returns:
      The words; empty where nothing differs.
    """
    lines = told(differing)
    more = len(lines) - MAX_DIFFERENCES
    return between.join([*lines[:MAX_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])])


def as_written(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as its file in a run directory has it: tuples are lists."""
    return dict(json.loads(json.dumps(config)))


def may_differ(key: str, old: Any, new: Any) -> bool:
    """Tells whether a run may continue with another value of a key of its config."""
    if key == "train.steps":
        return isinstance(old, int) and isinstance(new, int) and new > old
    return key.partition(".")[0] in FREE


def check_same(
    directory: Path, differing: Mapping[str, tuple[Any, Any]], *, staged: bool = False
) -> None:
    """Refuses differences with which the run of a directory cannot continue.

    Args:
      directory: The run directory.
      differing: Both values of the keys that differ.
      staged: Whether one stage of the run begins from what another has learned.

    Raises:
      UserError: A key may not differ; where the run is staged, `train.steps` neither, and once it
        has a checkpoint no key of `evaluation` but those of `NEUTRAL`.
    """
    refused = {key: pair for key, pair in differing.items() if not may_differ(key, *pair)}
    if refused:
        shown = list_differences(refused, between="\n  ")
        raise UserError(
            f"work directory {directory} holds a run of a different config; give another "
            "--workdir, or the same values (only mesh, evaluation.* and, upwards, train.steps may "
            f"differ):\n  {shown}"
        )
    if staged and "train.steps" in differing:
        before, now = differing["train.steps"]
        raise UserError(
            f"work directory {directory} holds a run of {before} train.steps, expected as many and "
            f"not {now}: a stage that begins from what another has learned would keep what it had "
            "of the shorter one; give another --workdir"
        )
    judged = {
        key: pair for key, pair in differing.items()
        if key.partition(".")[0] == "evaluation" and key not in NEUTRAL
    }  # fmt: skip
    if staged and judged and newest_step(directory):
        raise UserError(
            f"work directory {directory} holds a run of another evaluation "
            f"({list_differences(judged)}): a stage that begins from what another has chosen by it "
            "would keep what it had of the earlier one; give the same values, or another --workdir"
        )


def checkpoint_folders(directory: Path) -> list[Path]:
    """Lists folders of a run's checkpoints: its own, and those of the methods that it compares."""
    return [directory / "checkpoints", *sorted(directory.glob("methods/*/checkpoints"))]


def newest_step(directory: Path) -> int:
    """Finds the step of the newest checkpoint of a run, 0 if there is none."""
    return max((step for f in checkpoint_folders(directory) for step in steps_saved(f)), default=0)


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Reads the summary of a complete run; None before it is complete, or where it is damaged."""
    file = directory / SUMMARY
    try:
        found = dict(json.loads(file.read_bytes()))
        reason = next((f"has no {key!r}" for key in SUMMARY_KEYS if key not in found), "")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        reason = "is not readable as JSON"
    if reason:
        _warn(f"{file} {reason}; the run counts as not complete until it is written again")
        return None
    return found


@functools.cache  # a run looks for its summary several times
def _warn(line: str) -> None:
    log.warning("%s", line)


def check_complete(directory: Path, key: str) -> None:
    """Refuses a run that is not complete, since its newest checkpoint is of a model half trained.

    A run that was extended and stopped again is not: `replace_config` has removed its summary.

    Args:
      directory: The run directory.
      key: What named the directory, such as a key of a config, for messages.

    Raises:
      UserError: There is no summary, or a damaged one.
    """
    if read_summary(directory) is None:
        raise UserError(
            f"{key} is {str(directory)!r}, a run that has not ended; let it end first (the same "
            "command continues it)"
        )


def read_config(directory: Path, *, repair: bool = False) -> dict[str, Any] | None:
    """Reads the config of the run in a directory; None where nothing is there.

    One that is missing or damaged is recovered from the newest checkpoint, with a warning.

    Args:
      directory: The run directory.
      repair: Whether a config that was recovered is written, by who holds the directory.

    Raises:
      UserError: Something else is there, or a run whose config is lost.
    """
    file = directory / CONFIG
    try:
        found = json.loads(file.read_bytes())
        if isinstance(found, dict):
            return found
        reason = "is not a JSON object"
    except FileNotFoundError:
        reason = "is missing"
    except ValueError:
        reason = "is not readable as JSON"
    names = sorted(path.name for path in directory.iterdir() if path.name[0] != ".")
    names = [name for name in names if not name.endswith(".partial")]
    if not names:
        return None
    if not {CONFIG, *TRACES} & set(names):
        raise UserError(
            f"work directory {directory} holds {names[0]!r} and no run, "
            "expected a new or empty directory, or one of this config's runs"
        )
    folders = checkpoint_folders(directory)
    saved = next(filter(None, map(saved_config, folders)), None)
    if saved is None:
        raise UserError(
            f"{file} {reason} and no checkpoint holds the config; the run cannot be resumed: put "
            f"its {CONFIG} back, or give another --workdir"
        )
    step, config = saved
    if not folders[0].exists():
        config.pop("method")  # which `RunDirectory.of_method` added
    log.warning("%s %s; it is recovered from the checkpoint of step %d", file, reason, step)
    if repair and is_primary():
        write_json(file, config)
    return config


def replace_config(
    directory: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    differing: Mapping[str, tuple[Any, Any]],
) -> None:
    """Gives a run another config and keeps the one before with its summary in the history.

    Args:
      directory: The run directory.
      old: The config that is there.
      new: The config with which it continues.
      differing: Both values of the keys in which they differ.
    """
    step, summary = newest_step(directory), read_summary(directory)
    _write_history(
        directory, [*read_history(directory), dict(step=step, config=old, summary=summary)]
    )
    (directory / SUMMARY).unlink(missing_ok=True)
    write_json(directory / CONFIG, new)
    if not step or "method" in new:  # of several methods, the run that compares them says it
        return
    schedules = [
        f"{key} ({value})"
        for key, value in flatten(new).items()
        if key.endswith("schedule") and value != "constant"
    ]
    if "train.steps" in differing:
        before, now = differing["train.steps"]
        log.warning(
            "train.steps rises from %d to %d%s: this run differs from one of %d steps from the "
            "beginning%s",
            before, now, f", on which {' and '.join(schedules)} depends" if schedules else "", now,
            "" if schedules else " wherever its recipe reads train.steps",
        )  # fmt: skip
    judged = told({key: pair for key, pair in differing.items() if key.startswith("evaluation")})
    if judged:
        log.warning(
            "%s keeps what was measured before the evaluation changed (%s)",
            directory / "metrics.jsonl", "; ".join(judged),
        )  # fmt: skip


def restore_config(directory: Path) -> None:
    """Undoes the last `replace_config`, unless the run has saved a checkpoint since.

    A run that was complete is so again, without what it wrote after its end.
    """
    *earlier, last = read_history(directory)
    if last["step"] != newest_step(directory):
        return
    write_json(directory / CONFIG, last["config"])
    if last["summary"] is not None:
        if last["step"] and (directory / METRICS).exists():  # or its checkpoints were gone
            MetricsWriter(directory, step=last["step"]).close()  # it forgets what came later
        (directory / FAILURE).unlink(missing_ok=True)
        write_json(directory / SUMMARY, last["summary"])
    _write_history(directory, earlier)


def extended_from(directory: Path, config: Mapping[str, Any]) -> int | None:
    """Finds the number of steps that a run of this config was to have when it began to train.

    Args:
      directory: The run directory.
      config: The config that is there.

    Returns:
      The number; None where the run was never extended.
    """
    now = flatten(config).get("train.steps")
    for kept in read_history(directory):
        before = flatten(kept["config"]).get("train.steps")
        if kept["step"] and before != now:
            return before
    return None


def read_history(directory: Path) -> list[dict[str, Any]]:
    """Reads what `replace_config` kept, oldest first: `step`, `config` and `summary` of each."""
    file = directory / HISTORY
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _write_history(directory: Path, history: list[dict[str, Any]]) -> None:
    """Writes the history, or removes it where it is empty."""
    if history:
        lines = (json.dumps(kept, sort_keys=True) + "\n" for kept in history)
        write_text(directory / HISTORY, "".join(lines))
    else:
        (directory / HISTORY).unlink()
