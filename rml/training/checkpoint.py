"""Checkpoints: state, data iterator and config, by Orbax, asynchronous."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.path import atomicity

from rml.errors import UserError
from rml.training.digests import damage, write_digests
from rml.training.durable import sync
from rml.training.processes import all_agree, is_primary, lost_process, primary_first

log = logging.getLogger(__name__)

EMPTY = "empty"


class _DurablePath(atomicity.AtomicRenameTemporaryPath):
    """A checkpoint's directory, whose new name is on the disk before an older one is removed."""

    async def finalize(self) -> None:
        await super().finalize()
        sync(Path(self.get_final()).parent)


class Checkpoints:
    """The checkpoints of a run, newest last."""

    def __init__(self, directory: Path, *, keep: int = 2):
        """Opens the directory; what an interrupted save left there is removed.

        Args:
          directory: Directory of the checkpoints; made where it is missing.
          keep: Number of checkpoints that are kept.

        Raises:
          UserError: `keep` is below 1.
        """
        if keep < 1:
            raise UserError(f"keep_checkpoints is {keep}, expected at least 1")
        self.directory = directory.absolute()
        self._saving = 0
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True, create=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                temporary_path_class=_DurablePath,
            ),
            item_names=("state", "data", "config"),
        )  # fmt: skip
        if is_primary():
            sync(self.directory.parent)

    def _seal(self) -> None:
        """Called by the first process when all files are written, before the commit's rename."""
        step = str(self._saving)
        partial = (p for p in self.directory.iterdir() if p.name.startswith(f"{step}.orbax"))
        write_digests(next(partial, self.directory / step))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Says which save failed and what is left; Orbax raises its errors at the next call."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, UserError) or lost_process(error):
                raise
            left = steps_saved(self.directory)
            raise UserError(
                f"checkpoint of step {self._saving} cannot be written to {self.directory}: "
                f"{_reason(error)}; "
                + (f"the newest whole one is of step {left[0]}" if left else "there is no other")
            ) from error

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None if there is none."""
        self.wait()
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: Any, config: dict[str, Any]) -> None:
        """Starts a save; the arrays are copied before it returns, the files are written after.

        Args:
          step: Step of the state.
          state: State to save.
          iterator: Data iterator, whose position is saved.
          config: The run's config.

        Raises:
          UserError: This save or the one before it cannot be written.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._saving = step
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave({"iterator": iterator.get_state()}),
                    config=ocp.args.JsonSave(config),
                ),
            )

    def restore(self, abstract_state: Any, iterator: Any) -> tuple[int, Any]:
        """Reads the newest checkpoint whose files are what was written; sets aside those after it.

        Nothing but damage moves a checkpoint: whatever else fails can be mended and tried again.

        Args:
          abstract_state: Shapes, types and shardings that the state must have.
          iterator: Data iterator, moved to where it was. Its position is the number of a batch, the
            same in every process and for any number of them.

        Returns:
          The step and the state; (0, None) where there never was a checkpoint.

        Raises:
          UserError: The state has another structure, a file cannot be read now, or every checkpoint
            is damaged.
        """
        part, parts = jax.process_index(), jax.process_count()
        for step in sorted(self._manager.all_steps(), reverse=True):
            checkpoint = self.directory / str(step)
            reason = _in_all(checkpoint, lambda at: damage(at, part=part, parts=parts))
            if all_agree(not reason):
                state, position = _in_all(
                    checkpoint, lambda at: (_read_state(at, abstract_state), _read_position(at))
                )
                iterator.set_state(position)
                return step, state
            log.warning(
                "checkpoint of step %d in %s cannot be read (%s); trying the one before",
                step, self.directory, reason or "by another process",
            )  # fmt: skip
            self._set_aside(step)
        damaged = sorted(p.name for p in self.directory.parent.glob("damaged-checkpoint-*"))
        if damaged:
            raise UserError(
                f"none of the checkpoints of {self.directory.parent} can be read (damaged: "
                f"{', '.join(damaged)}); start again in another --workdir, or remove the "
                "whole directory to train from the beginning"
            )
        return 0, None

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that this step can be saved again."""
        with primary_first("setting a damaged checkpoint aside"):
            if is_primary():
                source = self.directory / str(step)
                target = self.directory.parent / f"damaged-checkpoint-{step}"
                number = 1
                while target.exists():
                    number += 1
                    target = self.directory.parent / f"damaged-checkpoint-{step}-{number}"
                source.rename(target)
        self._manager.reload()

    def wait(self) -> None:
        """Blocks until every save is on disk.

        Raises:
          UserError: One cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes the saves under way."""
        with self._writing():
            self._manager.close()


def _reason(error: Exception) -> str:
    """What an error of Orbax or of the operating system says, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = re.search(r'(?:"[^"]+": )?[^:"]+?(?= \[)', str(error)) if _of_system(error) else None
    lines = [found[0].strip()] if found else str(error).strip().splitlines()
    return (lines or [type(error).__name__])[0][:200]


def _of_system(error: Exception) -> bool:
    """Whether the operating system failed; tensorstore says so in the text of a `ValueError`."""
    return isinstance(error, OSError) or "[os_error_code" in str(error)


def _name(checkpoint: Path) -> str:
    return f"checkpoint of step {checkpoint.name} in {checkpoint.parent}"


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    """Says which file the operating system could not read."""
    try:
        yield
    except Exception as error:
        if not _of_system(error):
            raise
        file = getattr(error, "filename", None)
        raise UserError(
            f"{_name(checkpoint)} cannot be read now: {f'{file}: ' if file else ''}"
            f"{_reason(error)}; it stays where it is, and the same command can be tried again"
        ) from error


def _in_all(checkpoint: Path, read: Callable[[Path], Any]) -> Any:
    """Calls `read` on a checkpoint; if it fails in one process, it fails in all.

    It must not wait for other processes.
    """
    failed = None
    try:
        with _reading(checkpoint):
            found = read(checkpoint)
    except Exception as error:
        failed = error
    if not all_agree(failed is None):
        raise failed or UserError(
            f"{_name(checkpoint)} cannot be read by another process, whose message says why"
        )
    return found


def _read_json(item: Path) -> Any:
    with closing(ocp.JsonCheckpointHandler()) as handler:
        return handler.restore(item, args=ocp.args.JsonRestore())


def _read_position(checkpoint: Path) -> Any:
    return _read_json(checkpoint / "data")["iterator"]


def _read_state(checkpoint: Path, abstract_state: Any) -> Any:
    """Reads the state, which must have the structure, shapes and types of `abstract_state`.

    Orbax's handler reads in this process alone; its manager would wait for the others.
    """
    with closing(ocp.StandardCheckpointHandler()) as handler:
        there = _leaves(handler.metadata(checkpoint / "state").tree)
        now = _leaves(abstract_state)
        differing = [path for path in now | there if there.get(path) != now.get(path)]
        # An empty node gives way to leaves below it: they say it better.
        leaves = [path for path in differing if {there.get(path), now.get(path)} != {EMPTY, None}]
        if differing:
            path, *others = leaves or differing
            more = (
                f" (and {len(others)} more {'leaves' if others[1:] else 'leaf'})" if others else ""
            )
            raise UserError(
                f"{_name(checkpoint)} does not fit this config: {'.'.join(path)} is "
                f"{there.get(path, 'absent')} there, {now.get(path, 'absent')} now{more}; use the "
                "config that wrote it, or another run directory"
            )
        return handler.restore(checkpoint / "state", args=ocp.args.StandardRestore(abstract_state))


def _leaves(tree: Any) -> dict[tuple[str, ...], str]:
    """Type and shape of every leaf by its path, empty nodes included, as they are saved."""

    def described(leaf: Any) -> str:
        if not hasattr(leaf, "shape"):
            return EMPTY
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return f"{leaf.dtype}{list(leaf.shape)}"

    flat = ocp.tree.to_flat_dict(tree, keep_empty_nodes=True)
    return {path: described(leaf) for path, leaf in flat.items()}


def steps_saved(directory: Path) -> list[int]:
    """Lists steps of the complete checkpoints, newest first; the directory may be missing."""
    return sorted((int(p.name) for p in directory.glob("*") if p.name.isdigit()), reverse=True)


def saved_config(directory: Path) -> tuple[int, dict[str, Any]] | None:
    """Reads step and config of the newest checkpoint whose config is readable, None without one."""
    for step in steps_saved(directory):
        checkpoint = directory.absolute() / str(step)
        with suppress(OSError, ValueError):
            if not damage(checkpoint, item="config"):
                return step, dict(_read_json(checkpoint / "config"))
    return None


def restore_state(directory: Path, abstract_state: Any, *, step: int | None = None) -> Any:
    """Reads the state in a checkpoint of a directory, where nothing is changed.

    Args:
      directory: Directory of the checkpoints.
      abstract_state: Shapes, types and shardings that the state must have.
      step: Step of the checkpoint; the newest if not given.

    Returns:
      The state.

    Raises:
      UserError: There is no such checkpoint, its files are not what was written or cannot be read
        now, or its state has another structure.
    """
    saved = steps_saved(directory)
    if not saved:
        raise UserError(f"run {directory.parent} has no checkpoint; train it first")
    if step is not None and step not in saved:
        raise UserError(
            f"run {directory.parent} has no checkpoint of step {step!r}, expected "
            f"{' or '.join(map(str, saved))}"
        )
    checkpoint = directory.absolute() / str(saved[0] if step is None else step)
    with _reading(checkpoint):
        if reason := damage(checkpoint):
            raise UserError(
                f"{_name(checkpoint)} cannot be read ({reason}); remove "
                f"{directory.parent / 'summary.json'} and start that run again: it "
                "continues from the checkpoint before"
            )
        return _read_state(checkpoint, abstract_state)


def abstract_with_shardings(abstract: Any, shardings: Any) -> Any:
    """Makes `jax.ShapeDtypeStruct`s that say where each array lives."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
