"""Many runs of the launcher: started, continued where they stopped, followed to their ends."""

import collections
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from rich.console import Console

from experiments import interrupts, registry
from experiments.report.markup import duration
from experiments.results import config_hash
from experiments.spawn import bind, complaint, shares_of_cores, spawn
from rml.errors import UserError
from rml.nested import flatten
from rml.training.config_file import extended_from, newest_step, read_config, read_summary


class Run(NamedTuple):
    """One config with one seed in its directory.

    Attributes:
      name: What is printed of it.
      of: What it shares with runs that take about as long.
      config: Path of the config's file.
      config_hash: See `experiments.results.config_hash`.
      seed: Its seed.
      directory: Its run directory.
      flags: Further flags of the launcher.
      needs: Directories of runs that it reads, which must be complete before it starts.
    """

    name: str
    of: tuple[str, ...]
    config: str
    config_hash: str
    seed: int
    directory: Path
    flags: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()

    @property
    def command(self) -> list[str]:
        """The launch, as the system is told it."""
        return [
            sys.executable, "-m", "experiments.run", f"--config={self.config}", *self.flags,
            f"--config.seed={self.seed}", f"--workdir={self.directory}",
        ]  # fmt: skip

    @property
    def log(self) -> Path:
        """Where what it prints is kept, beside its directory."""
        return self.directory.with_suffix(".log")

    def summary(self) -> dict[str, Any] | None:
        """Its summary, None before it is complete."""
        return read_summary(self.directory)

    def is_of_config(self) -> bool:
        """Whether what its directory holds is a run of its config."""
        saved = read_config(self.directory)
        return saved is not None and config_hash(saved) == self.config_hash

    def is_of_other_length(self) -> bool:
        """Tells whether its directory holds a run that began to train for other `train.steps`."""
        if not newest_step(self.directory):
            return False
        overrides = [flag for flag in self.flags if flag.startswith("--config.")]
        config = registry.read_config(self.config, overrides).to_dict()
        try:
            saved = read_config(self.directory) or {}
        except UserError:  # the launcher says what is wrong
            return False
        return (
            flatten(saved).get("train.steps") != flatten(config).get("train.steps")
            or extended_from(self.directory, config) is not None
        )

    def missing(self) -> list[Path]:
        """What it needs and is not complete yet."""
        return [directory for directory in self.needs if read_summary(directory) is None]


def catch_signals() -> None:
    """Treats SIGTERM as Ctrl-C, and the end of the terminal too unless it is ignored, as by nohup.

    Runs have sessions of their own: nobody but this program tells them that it ends.
    """
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


def interrupt(signum: int, _: FrameType | None) -> NoReturn:
    """Raises `KeyboardInterrupt`, of SIGHUP once: a shell and the system may both send it."""
    if signum == signal.SIGHUP:
        signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def launch_all(
    runs: Sequence[Run],
    jobs: int,
    console: Console,
    ended: Callable[[Run, str], str] = lambda run, problem: problem,
    note: Callable[[Run], str] = lambda run: "",
) -> int:
    """Makes runs complete and prints how it goes; where it is interrupted they save their state.

    Args:
      runs: Runs, in the order in which they start.
      jobs: Number of runs at once, among which the cores are shared out.
      console: Where progress is printed.
      ended: Function of a run that has ended and of what went wrong, empty if nothing; it returns
        what is reported as wrong.
      note: Function that returns what is printed beside the time of a run that has ended well.

    Returns:
      The exit code, 1 where something went wrong.
    """
    times: dict[tuple[str, ...], list[float]] = collections.defaultdict(list)
    waiting = collections.deque(run for run in runs if run.summary() is None)
    total = len(waiting)
    if total < len(runs):
        console.print(f"{len(runs) - total} of {len(runs)} runs are complete already")
    problems: dict[Run, str] = {}

    def end(run: Run, problem: str) -> None:
        problems[run] = ended(run, problem)
        if problems[run]:
            console.print(f"FAILED {run.name}: {problems[run]}")

    for run in runs:
        if summary := run.summary():
            times[run.of].append(summary["seconds"])
            end(run, "" if run.is_of_config() else other_config(run))
        elif run.is_of_other_length():  # no result is made of it once it is extended
            waiting.remove(run)
            end(run, f"{run.directory} was begun with other train.steps; remove it to measure it")
    running: dict[Run, tuple[subprocess.Popen, float, tuple[int, ...]]] = {}
    shares = shares_of_cores(jobs)

    def left() -> str:
        now = time.monotonic()
        rest = [(times[run.of], 0.0) for run in waiting]
        rest += [(times[run.of], now - began) for run, (_, began, _) in running.items()]
        known = [max(0.0, statistics.fmean(took) - since) for took, since in rest if took]
        if rest and not known:
            return "time left not known yet"
        some = "about" if len(known) == len(rest) else "at least"
        return f"{some} {duration(sum(known) / jobs)} left"

    try:
        # Raised anywhere, an interruption could be lost, or meet a run that is not noted yet.
        with console.status("") as status, interrupts.deferred() as heard:
            while (waiting or running) and not heard:
                for run in list(waiting):
                    if len(running) == jobs:
                        break
                    if not (missing := run.missing()):
                        running[run] = start(run), time.monotonic(), shares.pop()
                        bind(running[run][0], running[run][2])
                        console.print(f"started {run.name}")
                    elif not set(missing) & {one.directory for one in (*waiting, *running)}:
                        end(run, f"it reads {missing[0]}, which is not complete")
                    else:
                        continue
                    waiting.remove(run)
                done = total - len(waiting) - len(running)
                names = "; ".join(run.name for run in running)
                status.update(f"{done} of {total} done; {left()}; running {names}")
                time.sleep(0.1)
                for run in [
                    run for run, (process, *_) in running.items() if process.poll() is not None
                ]:
                    process, began, cores = running.pop(run)
                    shares.append(cores)
                    problem = outcome(run, process.returncode)
                    if not problem:
                        took = time.monotonic() - began
                        times[run.of].append(took)
                        number = total - len(waiting) - len(running)
                        known = [f"{number} of {total}", left(), *filter(None, [note(run)])]
                        console.print(f"done {run.name} in {duration(took)}; {'; '.join(known)}")
                    end(run, problem)
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.wait()
    failed = [f"{run.name}: {problem}" for run, problem in problems.items() if problem]
    if failed:
        console.print(f"{len(failed)} of {len(runs)} runs failed:", *failed, sep="\n  ")
    return int(bool(failed))


def start(run: Run) -> subprocess.Popen:
    """Starts the launcher on a run; what it prints goes to a file beside the run."""
    return spawn(run.command, run.log)


def outcome(run: Run, code: int) -> str:
    """What went wrong in a run that has ended, empty if nothing."""
    if code == 0 and run.summary() is not None:
        return ""
    line = complaint(run.log)
    return (
        other_config(run)
        if "of a different config" in line
        else f"exit code {code}: {line} ({run.log})"
    )


def other_config(run: Run) -> str:
    """What is wrong where a config was changed since its runs began."""
    return f"{run.directory} holds a run of another config; remove it to measure this one"
