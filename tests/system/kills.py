"""Kills a run at random moments, lets it end and compares it with one that nothing disturbed.

python -m tests.system.kills [--kills=50] [--processes=1] [--seed=0]

Bit for bit: the state, the metrics, the summary. Where two processes train together, half of the
kills hit process 0, which holds the coordination service; the other must end by itself with one
line. Exit code 1 where anything differs. 50 kills take some ten minutes.
"""

import argparse
import atexit
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import chex
import jax
import matplotlib.pyplot  # noqa: F401 - once for all that are forked
import numpy as np
import orbax.checkpoint as ocp

from experiments import run
from experiments.contrastive import simclr  # noqa: F401 - once for all that are forked
from rml.training import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 100
ARGS = (
    "--config=tests/system/tiny_digits.py", "--config.data.train=train[:256]",
    "--config.data.test=test[:64]",
)  # fmt: skip
WAIT = 300  # seconds after which a run has hung
LOSS_SECONDS = (20, 60)
"""Within this time after process 0, or after another one, the others must end."""
VICTIMS = (1, 0, 0, 1)
NOISE = re.compile(r"^[EF]\d{4} |terminate called|Traceback|Fatal Python error", re.MULTILINE)


def lines(directory: Path) -> list[dict]:
    """Metrics without times."""
    return [
        {k: v for k, v in line.items() if k != "time"}
        for line in read_metrics(directory / "metrics.jsonl")
    ]


def final_state(directory: Path):
    """The arrays of the last checkpoint, whatever devices they were on."""
    path = (directory / "checkpoints" / str(steps_saved(directory)[-1]) / "state").absolute()
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(path).item_metadata.tree
    arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=arrays))


def summary_metrics(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text())["metrics"]


def assert_same(parts: Path, whole: Path) -> None:
    chex.assert_trees_all_equal(final_state(parts), final_state(whole))
    assert lines(parts) == lines(whole)
    assert summary_metrics(parts) == summary_metrics(whole)


def wait_until(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    """Waits until a condition holds of a run that has not ended."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_step(process: subprocess.Popen, directory: Path, step: int, *, file: int = 0) -> None:
    """Waits until a step was logged to another metrics file than the one with this number."""
    path = directory / "metrics.jsonl"

    def logged() -> bool:
        found = read_metrics(path) if number(path) != file else []
        return bool(found) and found[-1]["step"] >= step

    wait_until(process, logged)


def number(path: Path) -> int:
    """Of a file's inode: each start of a run writes a new one."""
    return path.stat().st_ino if path.exists() else 0


def steps_saved(directory: Path) -> list[int]:
    folder = directory / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def being_saved(directory: Path) -> set[str]:
    return {p.name for p in (directory / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


def together(start: Callable[..., subprocess.Popen], count: int, *args: str) -> list:
    """Starts the processes of one run."""
    if count == 1:
        return [start(*args)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"--coordinator_address=127.0.0.1:{free.getsockname()[1]}"
    return [
        start(*args, address, f"--num_processes={count}", f"--process_id={i}")
        for i in range(count)
    ]  # fmt: skip


def compiling(process: subprocess.Popen) -> None:
    """Waits until a run compiles; its processes have found each other."""
    while "compiling" not in (line := process.stdout.readline()):
        assert line, "the run was over before it compiled"


def assert_ended_by_a_loss(process: subprocess.Popen, victim: int) -> float:
    """Waits for the end of a process after another was killed; the seconds that it took."""
    began = time.monotonic()
    output = process.communicate(timeout=WAIT)[0]
    took = time.monotonic() - began
    assert process.returncode == 1, output
    assert output.count("error: another process of this run has ended") == 1, output
    assert (
        "start all processes again to continue from the last checkpoint, if any:\n  python"
        in output
    )
    assert not NOISE.search(output), output
    assert took < LOSS_SECONDS[victim], output
    return took


def kill_at_random(
    start: Callable[..., subprocess.Popen], parts: Path, *, kills: int, last: int, count: int = 1,
    seed: int = 0, args: tuple[str, ...] = ARGS,
) -> tuple[int, list[float]]:  # fmt: skip
    """Starts a run and kills it, again and again.

    Args:
      start: Starts the launcher with these arguments.
      parts: The run directory.
      kills: Number of kills.
      last: The latest step at which one is wanted.
      count: Number of processes of the run, of which one is killed.
      seed: Of the moments.
      args: Arguments of the launcher.

    Returns:
      How many kills left half a checkpoint, and the longest time, in seconds, in which the other
      process ended after process 0 and after process 1.
    """
    draw = random.Random(seed)
    halves, longest = 0, [0.0, 0.0]
    for kill, step in enumerate(sorted(draw.sample(range(1, last + 1), kills))):
        before = number(parts / "metrics.jsonl")
        processes = together(start, count, *args, f"--workdir={parts}")
        first, chosen = processes[0], VICTIMS[kill % len(VICTIMS)] % count
        victim = processes.pop(chosen)
        if kill % 2:  # while it saves
            leftover = being_saved(parts)
            wait_for_step(victim, parts, step, file=before)
            wait_until(victim, lambda seen=leftover: being_saved(parts) - seen)
        elif draw.random() < 0.8:  # in a step, an evaluation or a save
            wait_for_step(victim, parts, step, file=before)
            time.sleep(draw.random() * 0.3)
        elif count > 1 or draw.random() < 0.5:
            compiling(first)
        else:  # before it compiles; a fork has imported its libraries already
            time.sleep(draw.random())
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL, "the run was over before it could be killed"
        for other in processes:
            longest[chosen] = max(longest[chosen], assert_ended_by_a_loss(other, chosen))
        halves += number(parts / "metrics.jsonl") != before and bool(being_saved(parts))
    return halves, longest


class Forked:
    """The launcher as a process that need not import anew, with what is used here of a `Popen`."""

    def __init__(self, *args: str):
        reading, writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.closerange(3, max(reading, writing) + 1)
            launch(*args)
        os.close(writing)
        self.stdout = os.fdopen(reading)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int | None:
        return self.poll(0)

    def communicate(self, timeout: float) -> tuple[str, None]:
        return self.stdout.read(), self.wait() and None

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)


def launch(*args: str) -> NoReturn:
    """Is the launcher, as `python -m experiments.run` with these arguments."""
    sys.argv = [run.__file__, *args]
    code: Any = 1
    try:
        run.app.run(run.main, flags_parser=run.parse_flags)
    except SystemExit as end:
        code = end.code
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code or 0)


def complete(directory: Path, count: int, args: tuple[str, ...]) -> str:
    """Runs to the end; what the first process prints."""
    processes = together(Forked, count, *args, f"--workdir={directory}")
    outputs = [process.communicate(timeout=WAIT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    return outputs[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="rml-kills-"))  # forks would clean up a managed one
    parts, whole = scratch / "parts", scratch / "whole"
    last = 6 * given.kills  # every second kill lets the run go on by a checkpoint
    args = (*ARGS, f"--config.train.steps={last + STEPS}")
    complete(whole, given.processes, args)
    halves, longest = kill_at_random(
        Forked, parts, kills=given.kills, last=last, count=given.processes, seed=given.seed,
        args=args,
    )  # fmt: skip
    assert not (parts / "summary.json").exists()
    assert "continuing after step" in complete(parts, given.processes, args)
    assert_same(parts, whole)
    shutil.rmtree(scratch)
    print(f"{given.kills} kills, {halves} of them left half a checkpoint: bit for bit")
    if given.processes > 1:
        print(
            "the other ended within {:.1f} s of process 0, {:.1f} s of process 1".format(*longest)
        )


if __name__ == "__main__":
    main()
