"""Fixtures for all tests: a data directory of their own, and the launcher as a real process."""

import fcntl
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings
from ml_collections import ConfigDict

from tests.system.forks import Fork

Mapping.register(ConfigDict)  # it has a mapping's methods; the type checker wants it said

ROOT = Path(__file__).parent.parent
USERS_FLAGS = os.environ.get("XLA_FLAGS", "")
# Tests compile more than they run: compiling takes less than half the time like this. What runs for
# long, or tests rounding, is marked `optimised`.
QUICKLY = (
    "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)  # fmt: skip
os.environ["XLA_FLAGS"] = " ".join([USERS_FLAGS, *QUICKLY]).strip()
# Programs are compiled once for all processes that tests start. Those of pytest's own processes are
# kept from the second run on: to write them takes longer than one run saves by what it reads again.
PROGRAMS = ROOT / ".pytest_cache" / "jax"
KEEPS = PROGRAMS.exists() or "JAX_COMPILATION_CACHE_DIR" in os.environ
KEEPS = bool(int(os.environ.setdefault("RML_TESTS_KEEP_PROGRAMS", str(int(KEEPS)))))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Each operation of a program carries its stack, which is deep under pytest and which no test reads.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# A full collection walks all programs traced so far: half a second, or more as they add up.
gc.set_threshold(700, 10, 300)
# No property fails because a machine is busy: neither by a deadline nor while inputs are drawn.
settings.register_profile("rml", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rml")


SHARES: dict[str, float] = {}
"""Seconds by file, of all processes together."""
SHARE = 12.0
"""Seconds of one core that a system's own tests may take."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shares", action="store_true", help="print the seconds of each test file")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = report.nodeid.partition("::")[0]
    SHARES[file] = SHARES.get(file, 0.0) + report.duration


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says what each file takes, most first, and which of a system's own take too long."""
    if not config.getoption("--shares"):
        return
    terminalreporter.section(f"seconds by file, {sum(SHARES.values()):.0f} in all")
    for file, seconds in sorted(SHARES.items(), key=lambda own: -own[1]):
        if seconds >= 1:
            above = f"  above {SHARE:g}" * (file.startswith("tests/claims/") and seconds > SHARE)
            terminalreporter.write_line(f"{seconds:8.1f}  {file}{above}")


def pytest_configure() -> None:
    # They import JAX, which reads the variables above.
    from tests import checking, compiling, threads

    threads.use_one()
    checking.share_checks()
    compiling.share_contexts()
    compiling.share_programs()
    compiling.put_arrays()
    if not KEEPS:
        compiling.keep_nothing()


def pytest_runtest_setup(item: pytest.Item) -> None:
    from tests import compiling  # it imports JAX, as above

    compiling.optimize(1 if item.get_closest_marker("optimised") else 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with long tests first, so that parallel workers end together, on short ones.

    Each takes a file when it has done one: what a file compiles or prepares is done once.
    """
    long = {item.path for item in items if item.get_closest_marker("slow")}
    longest = {path for path in long if path.parent.name in ("claims", "system")}
    items.sort(key=lambda item: (item.path not in longest, item.path not in long))


def pytest_collection_finish() -> None:
    """Leaves what has been imported out of all later collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this run of the tests, one for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def tfds_data_dir(shared: Path) -> Path:
    """TFDS data is prepared for the tests alone, once for all workers of pytest-xdist."""
    directory = shared / "tfds"
    directory.mkdir(exist_ok=True)
    os.environ["TFDS_DATA_DIR"] = str(directory)
    return directory


@pytest.fixture(autouse=True)
def own_draws(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers from its module's `RNG`, whichever tests ran before it."""
    if generator := getattr(request.module, "RNG", None):
        own = type(generator.bit_generator)(zlib.crc32(request.node.nodeid.encode()))
        generator.bit_generator.state = own.state


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: without the shape checks of the tests, so that a function's own are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forgets compiled programs after a file where they have become many.

    Each maps pages of memory, of which Linux gives a process 65,530; beyond that it crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > 25_000:
        import jax  # reads the variables above

        from tests import compiling

        jax.clear_caches()
        compiling.MADE.clear()
        gc.collect()


@pytest.fixture(scope="session")
def launch(forking_python: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python -m experiments.run` with these arguments and waits, in a fork."""

    def run(*args: str, module: str = "experiments.run", timeout: float = 300, **env: str):
        return subprocess.run(
            [forking_python, "-m", module, *args],
            cwd=ROOT,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def forking_python(shared: Path) -> Path:
    """A program that is called as Python is; each call is a fork that has libraries imported.

    One for all workers, which lives until pytest has ended.
    """
    address, python = shared / "forks", shared / "python"
    with (shared / "forks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.access(python, os.X_OK):
            pytest_itself = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            command = ["-m", "tests.system.forks", str(address), str(python), str(pytest_itself)]
            server = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdin=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # as in `tests.threads`
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while not os.access(python, os.X_OK):
                assert server.poll() is None, "the server of forks has ended"
                time.sleep(0.05)
    return python


@pytest.fixture(scope="session")
def fork(forking_python: Path) -> Callable[..., Fork]:
    """Starts Python with these arguments, in a fork that has libraries imported."""
    address = str(forking_python.with_name("forks"))

    def run(*args: str, **env: str) -> Fork:
        return Fork(address, list(args), directory=ROOT, environment={**os.environ, **env})

    return run


PREPARE = """
import sys
from pathlib import Path
from rml.data import builders
builders.prepare("pydocs", Path(sys.argv[1]))
"""


@pytest.fixture(scope="session")
def pydocs(tfds_data_dir: Path, fork: Callable[..., Fork]) -> Path:
    """Where `pydocs` is prepared, by a process that does not check the types of every word."""
    from rml.data import builders  # it is to be imported after the checks are installed

    directory = tfds_data_dir / builders.KNOWN["pydocs"].directory()
    if not directory.exists():
        process = fork("-c", PREPARE, str(tfds_data_dir))
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 0, printed
    return directory


@pytest.fixture(scope="session")
def forked(fork: Callable[..., Fork]) -> Callable[..., Any]:
    """Runs a program on several devices, in a fork that has libraries imported; what it printed.

    The last line is read as JSON. A process of pytest itself has one device. It compiles as a
    user's process does where `quickly` is not set.
    """

    def run(program: str, *args: str, devices: int, quickly: bool = True) -> Any:
        # A fork has JAX imported already, which reads its variables at import.
        before = (
            "import jax; jax.config.update('jax_platforms', 'cpu')\n"
            f"from rml.training.processes import split_cpu; split_cpu({devices})\n"
        )
        env = {} if quickly else {"XLA_FLAGS": USERS_FLAGS}
        process = fork("-c", before + program, *args, **env)
        printed = process.communicate(timeout=600)[0]
        assert process.returncode == 0, printed[-3000:]
        return json.loads(printed.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def compile_for_tpu() -> Callable[[str], str]:
    """Runs a program that compiles for TPUs, where libtpu is (the `tpu` extra); what it printed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the tpu extra")

    def run(program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={
                "JAX_PLATFORMS": "cpu",
                "TPU_SKIP_MDS_QUERY": "1",
                "PYTHONPATH": ":".join(sys.path),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


OBEY = """
import ctypes, os, sys
if os.geteuid() == 0:
    drop_from_bounding_set, capability_to_ignore_permissions = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, capability_to_ignore_permissions, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture(scope="session")
def obedient_python() -> list[str]:
    """A Python that cannot write what permissions forbid, though root runs it."""
    return [sys.executable, "-c", OBEY]


@pytest.fixture
def start(
    fork: Callable[..., Fork], obedient_python: list[str]
) -> Callable[..., Fork | subprocess.Popen]:
    """Starts `python -m experiments.run` with these arguments and does not wait.

    It is a fork that has libraries imported, unless it is to be `fresh` or `obedient`.
    """
    processes = []

    def run(*args: str, fresh: bool = False, obedient: bool = False, **env: str) -> Any:
        command = ["-m", "experiments.run", *args]
        if not (fresh or obedient):
            processes.append(fork(*command, **env))
            return processes[-1]
        python = obedient_python if obedient else [sys.executable]
        process = subprocess.Popen(
            [*python, *command],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
