"""Fixtures for all tests: a data directory of their own, and the launcher as a real process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Programs are compiled once for all tests and all processes that they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session", autouse=True)
def tfds_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TFDS data is prepared for the tests alone, not in the user's directory."""
    directory = tmp_path_factory.mktemp("tfds")
    os.environ["TFDS_DATA_DIR"] = str(directory)
    return directory


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python -m experiments.run` with these arguments and waits."""

    def run(*args: str, module: str = "experiments.run", timeout: float = 300, **env: str):
        return subprocess.run(
            [sys.executable, "-m", module, *args],
            cwd=ROOT,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen]:
    """Starts `python -m experiments.run` with these arguments and does not wait."""
    processes = []

    def run(*args: str, **env: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.run", *args],
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
