"""Checkpoints: state, data iterator and config, by Orbax, asynchronous."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rml.errors import UserError
from rml.training.digests import damage, write_digests
from rml.training.processes import all_agree, is_primary, lost_process, primary_first

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run, newest last."""

    def __init__(self, directory: Path, *, keep: int = 2):
        """Opens the directory; what an interrupted save left there is removed.

        Args:
          directory: Where checkpoints are; made where it is missing.
          keep: How many are kept.
        """
        self.directory = directory.absolute()
        self._keep = keep
        self._saving = 0
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, cleanup_tmp_directories=True, create=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_names=("state", "data", "config"),
        )  # fmt: skip

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
            left = [int(p.name) for p in self.directory.iterdir() if p.name.isdigit()]
            raise UserError(
                f"checkpoint of step {self._saving} cannot be written to {self.directory}: "
                f"{_reason(error)}; "
                + (f"the newest whole one is of step {max(left)}" if left else "there is no other")
            ) from error

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        self.wait()
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: Any, config: dict[str, Any]) -> None:
        """Starts a save; the arrays are copied before it returns, the files are written after.

        Args:
          step: Of the state.
          state: What to save.
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
        """The newest checkpoint that can be read.

        Args:
          abstract_state: Shapes, types and shardings that the state must have.
          iterator: Data iterator, moved to where it was. Its position is the number of a batch, the
            same in every process and for any number of them.

        Returns:
          The step and the state; (0, None) where there is no checkpoint.

        Raises:
          UserError: There are checkpoints and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            reason = damage(
                self.directory / str(step), part=jax.process_index(), parts=jax.process_count()
            )
            if all_agree(not reason):
                try:
                    restored = self._manager.restore(
                        step,
                        args=ocp.args.Composite(
                            state=ocp.args.StandardRestore(abstract_state),
                            data=ocp.args.JsonRestore(),
                        ),
                    )
                    iterator.set_state(restored["data"]["iterator"])
                except Exception as error:  # whatever a damaged file makes of it
                    reason = _reason(error)
                if all_agree(not reason):
                    return step, restored["state"]
            log.warning(
                "checkpoint of step %d in %s cannot be read (%s); trying the one before",
                step, self.directory, reason or "by another process",
            )  # fmt: skip
            self._set_aside(step)
        if steps:
            raise UserError(
                f"none of the checkpoints in {self.directory} (steps {sorted(steps)}) can be read; "
                "start again in another --workdir"
            )
        return 0, None

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that this step can be saved again."""
        self._manager.close()
        with primary_first("setting a damaged checkpoint aside"):
            if is_primary():
                source = self.directory / str(step)
                target = self.directory.parent / f"damaged-checkpoint-{step}"
                number = 1
                while target.exists():
                    number += 1
                    target = self.directory.parent / f"damaged-checkpoint-{step}-{number}"
                source.rename(target)
        self._manager = self._open()

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
    found = re.search(r"([^:]+) \[os_error_code", str(error))
    lines = [found[1].strip()] if found else str(error).strip().splitlines()
    return (lines or [type(error).__name__])[0][:200]


def restore_state(directory: Path, abstract_state: Any) -> Any:
    """The state in the newest checkpoint of a directory, which is only read.

    Args:
      directory: Where checkpoints are.
      abstract_state: Shapes, types and shardings that the state must have.

    Returns:
      The state.

    Raises:
      UserError: There is no checkpoint, or its files are not what was written.
    """
    options = ocp.CheckpointManagerOptions(read_only=True)
    if directory.is_dir():
        with ocp.CheckpointManager(
            directory.absolute(), options=options, item_names=("state",)
        ) as manager:
            step = manager.latest_step()
            if step is not None:
                if reason := damage(directory / str(step)):
                    raise UserError(
                        f"checkpoint of step {step} in {directory} cannot be read ({reason}); "
                        f"remove {directory.parent / 'summary.json'} and start that run again: it "
                        "continues from the checkpoint before"
                    )
                return manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
                )["state"]
    raise UserError(f"run {directory.parent} has no checkpoint; train it first")


def abstract_with_shardings(abstract: Any, shardings: Any) -> Any:
    """`jax.ShapeDtypeStruct`s that say where each array lives."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
