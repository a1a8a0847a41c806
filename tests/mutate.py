"""Changes one line at a time in a copy of the tree and says which changes no test notices.

python -m tests.mutate [--only=TEXT] [--jobs=2] [--timeout=300]

`tests/mutants.toml` lists the changes: a file, its line, the line in its place, the tests that must
then fail, and why one would make the change. The tests are run without any change first. Exit code
1 where a mutant survives, its line is not found or its tests cannot be run.
"""

import argparse
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "mutants.toml"
LIBRARIES = (
    "pytest", "hypothesis", "jaxtyping", "beartype.beartype", "flax.linen", "optax", "grain",
    "orbax.checkpoint", "scipy.stats", "sklearn.linear_model", "ml_collections.config_flags",
    "tensorflow_datasets", "matplotlib.figure", "tensorboardX", "PIL.Image",
)  # fmt: skip
FAILED = 1  # exit code of pytest where tests failed


class Mutant(NamedTuple):
    """A change that tests must notice.

    Attributes:
      file: The file, from the root of the tree.
      line: The old text, which stands in the file once; enough of a line, or several lines.
      change: The new text.
      tests: What pytest is to run.
      why: What the change breaks.
    """

    file: str
    line: str
    change: str
    tests: list[str]
    why: str

    def place(self, root: Path = ROOT) -> str:
        """File and number of the line.

        Raises:
          ValueError: The text does not stand in the file exactly once.
        """
        path = root / self.file
        text = path.read_text() if path.is_file() else ""
        if text.count(self.line) != 1:
            found = f"{text.count(self.line)} times" if text else "no such file"
            raise ValueError(f"{self.file}: expected once, found {found}: {self.line!r}")
        return f"{self.file}:{text[: text.index(self.line)].count(chr(10)) + 1}"

    def apply(self, root: Path) -> None:
        """Changes the file, and its time, by which compiled code is known to be old."""
        path = root / self.file
        times = path.stat()
        path.write_text(path.read_text().replace(self.line, self.change))
        os.utime(path, (times.st_atime, times.st_mtime + 60))


def load(path: Path = LIST) -> list[Mutant]:
    """All mutants of the list."""
    return [Mutant(**entry) for entry in tomllib.loads(path.read_text())["mutant"]]


def copy_tree(target: Path) -> None:
    """Copies what git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(tree: str, arguments: list[str], log: str, write_bytecode: bool) -> None:
    """Runs pytest in a tree, in a process of its own that never returns."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    sys.path.insert(0, tree)
    os.environ["PYTHONPATH"] = tree
    sys.dont_write_bytecode = not write_bytecode
    if write_bytecode:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    else:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]  # of the tree that was copied
    import pytest

    code = pytest.main(["--no-header", "-p", "no:cacheprovider", *arguments])
    sys.stdout.flush()
    os._exit(int(code))


class Runner:
    """Runs tests in forks of one process that has libraries imported, each in a tree of its own."""

    def __init__(self, folder: Path, timeout: float):
        """Starts nothing yet.

        Args:
          folder: Where trees and outputs are.
          timeout: Seconds after which tests have hung.
        """
        self.folder, self.timeout = folder, timeout
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(LIBRARIES))
        self.trees: queue.Queue[Path] = queue.Queue()
        self.processes: set[Any] = set()

    def pytest(self, tree: Path, arguments: Sequence[str], *, first: bool = False) -> int | None:
        """Exit code of pytest; None where it hung."""
        log = str(tree.with_suffix(".log"))
        process = self.context.Process(
            target=run_tests, args=(str(tree), list(arguments), log, first)
        )
        process.start()
        self.processes.add(process)
        process.join(None if first else self.timeout)
        code = process.exitcode
        self.stop(process)
        return code

    def stop(self, process: Any) -> None:
        """Ends a process and those that it started."""
        if process.exitcode is None:
            with suppress(ProcessLookupError):  # it may have no group of its own yet
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        self.processes.discard(process)

    def baseline(self, mutants: Sequence[Mutant], jobs: int) -> bool:
        """Whether all tests pass without a change; makes the trees."""
        tree = self.folder / "0"
        copy_tree(tree)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        workers = [f"--numprocesses={jobs}", "--dist=worksteal"] if jobs > 1 else []
        if code := self.pytest(tree, [*workers, *tests], first=True):
            print(tree.with_suffix(".log").read_text()[-4000:])
            print(f"the tests fail without a change (exit code {code} of pytest)")
            return False
        for number in range(jobs):
            if number:
                shutil.copytree(tree, self.folder / str(number))
            self.trees.put(self.folder / str(number))
        return True

    def verdict(self, mutant: Mutant) -> str:
        """What became of a mutant: "killed", "survived" or what else happened."""
        tree = self.trees.get()
        path = tree / mutant.file
        kept, times = path.read_text(), path.stat()
        try:
            mutant.apply(tree)
            code = self.pytest(tree, ["-x", *mutant.tests])
        finally:
            path.write_text(kept)
            os.utime(path, (times.st_atime, times.st_mtime))
            output = tree.with_suffix(".log").read_text()
            self.trees.put(tree)
        if code == FAILED:
            return "killed"
        if code == 0:
            return "survived"
        if code is None:  # for ever by the change, or only for long on a busy machine
            return f"no verdict, its tests ran longer than {self.timeout:g} s"
        return f"no verdict, pytest ended with {code}:\n{output[-1500:]}"


def chosen(mutants: Sequence[Mutant], only: str) -> list[Mutant]:
    """Mutants whose place or reason has one of these texts, separated by commas; all by default."""
    texts = [text for text in only.split(",") if text]
    return [
        mutant
        for mutant in mutants
        if not texts or any(text in f"{mutant.place()} {mutant.why}" for text in texts)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Judges the mutants; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tests.mutate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", default="", help="part of a file's name or of the reason")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at the same time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds until tests have hung")
    options = parser.parse_args(argv)
    try:
        mutants = chosen(load(), options.only)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not mutants:
        print(f"error: no mutant has {options.only!r} in its place or reason", file=sys.stderr)
        return 1
    # JAX reads these at import. Programs that no mutant changes are compiled once.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    with tempfile.TemporaryDirectory(prefix="rml-mutants-") as folder:
        runner = Runner(Path(folder), options.timeout)
        try:
            return judge(runner, mutants, options.jobs)
        except KeyboardInterrupt:
            print("interrupted")
            return 130
        finally:
            for process in list(runner.processes):
                runner.stop(process)


def judge(runner: Runner, mutants: Sequence[Mutant], jobs: int) -> int:
    """Runs all mutants, tells of each, then of the survivors."""
    print(f"{len(mutants)} mutants; their tests without a change first", flush=True)
    began = time.perf_counter()
    if not runner.baseline(mutants, jobs):
        return 1
    print(f"all tests pass ({time.perf_counter() - began:.0f} s)", flush=True)

    def run(mutant: Mutant) -> tuple[str, float]:
        began = time.perf_counter()
        return runner.verdict(mutant), time.perf_counter() - began

    left: list[tuple[Mutant, str]] = []
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run, mutant): mutant for mutant in mutants}
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                mutant, (verdict, seconds) = waiting[future], future.result()
                word = verdict.partition("\n")[0]
                print(
                    f"{done:3}/{len(mutants)}  {seconds:5.1f} s  {word:8}  {mutant.place()}: "
                    f"{mutant.why}",
                    flush=True,
                )
                if verdict != "killed":
                    left.append((mutant, verdict))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(runner.processes):
                runner.stop(process)
    for mutant, verdict in left:
        print(f"\n{mutant.place()}: {verdict}")
        print(f"- {mutant.line.strip()}\n+ {mutant.change.strip()}")
        print(f"  {' '.join(mutant.tests)}")
    seconds = time.perf_counter() - began
    print(f"\n{len(mutants) - len(left)} of {len(mutants)} mutants killed in {seconds:.0f} s")
    return int(bool(left))


if __name__ == "__main__":
    # A process that ends early takes its tests with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
