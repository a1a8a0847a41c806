"""What a program does to its process before it computes: compiled programs kept, heaps limited."""

import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from experiments import registry, startup
from experiments import run as launcher

ROOT = Path(__file__).parents[2]
COMPILE = """
from experiments.startup import keep_compiled
keep_compiled()
import jax
jax.jit(lambda x: x @ x.T + 1)(jax.numpy.ones((3, 5))).block_until_ready()
"""


@pytest.fixture
def compile_once(tmp_path, obedient_python):
    """Compiles a program in a process of its own; the entries below the user's cache directory."""

    def run(**environment):
        given = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        given |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), **environment}
        done = subprocess.run(
            [*obedient_python, "-c", COMPILE],
            cwd=ROOT, env=given, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stderr == done.stdout == ""
        return {path.name for path in (tmp_path / "cache").rglob("*-cache")}

    return run


@pytest.mark.slow
def test_torch_is_not_imported_where_it_is_installed_and_can_be_afterwards(tmp_path):
    (tmp_path / "torch.py").write_text("print('torch')\nTensor = int\n")
    code = "import rml.training\nprint('rml')\nimport torch"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["rml", "torch"]


@pytest.mark.slow
def test_compiled_programs_are_kept_for_the_next_process(compile_once, tmp_path):
    assert compile_once(JAX_ENABLE_COMPILATION_CACHE="false") == set()
    assert compile_once(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other")) == set()
    assert list((tmp_path / "other").glob("*-cache"))
    first = compile_once()
    assert first
    kept = tmp_path / "cache/rml/jax"
    before = {path: path.stat().st_mtime_ns for path in kept.glob("*-cache")}
    assert compile_once() == first
    assert {path: path.stat().st_mtime_ns for path in kept.glob("*-cache")} == before
    kept.chmod(0o555)
    (kept / ".lockfile").chmod(0o444)
    assert compile_once() == first  # read-only: it runs and says nothing


def test_a_half_written_entry_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = startup.cache_directory()
    assert folder == tmp_path / "rml" / "jax"
    for name in ("whole-cache", "whole-atime", "old-cache", "new-cache"):
        (folder / name).write_bytes(b"x")
    os.utime(folder / "old-cache", (0, 0))
    assert startup.cache_directory() == folder
    left = {path.name for path in folder.glob("*-*")}
    assert left == {"whole-cache", "whole-atime", "new-cache"}  # the last one may be in writing


def test_there_is_no_home(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert startup.cache_directory() is None


def test_the_launcher_keeps_compiled_programs(tmp_path, monkeypatch):
    class Kept(Exception):
        pass

    def keep():
        raise Kept

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(launcher, "keep_compiled", keep)
    monkeypatch.setattr(launcher, "quiet_libraries", lambda: None)
    config = registry.read_config("configs/contrastive/simclr_digits.py")
    with pytest.raises(Kept):
        launcher.launch(config, tmp_path / "run", "simclr_digits.py")
    assert not (tmp_path / "run").exists()


def test_a_warning_is_told_once_after_two_launches_in_one_process(monkeypatch, capsys):
    logger, others = logging.getLogger("rml"), logging.NullHandler()
    for name, value in {"handlers": [others], "propagate": True, "level": logger.level}.items():
        monkeypatch.setattr(logger, name, value)
    monkeypatch.setattr(logging.getLogger("asyncio"), "level", logging.getLogger("asyncio").level)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr("absl.logging.set_verbosity", lambda level: None)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    for _ in range(2):
        startup.quiet_libraries()
    logger.warning("batches are short")
    assert capsys.readouterr().err == "warning: batches are short\n"
    assert others in logger.handlers


HEAPS = """
import ctypes, sys, threading
from experiments.startup import limit_arenas
if sys.argv[1] == "limited":
    limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(40)
def work():
    together.wait()
    libc.malloc(ctypes.c_size_t(1000))
    together.wait()
threads = [threading.Thread(target=work) for _ in range(40)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
out = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps are glibc's")
def test_threads_share_one_heap_a_core(tmp_path):
    def heaps(how, **environment):
        path = tmp_path / f"{how}{len(environment)}.xml"
        without = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
        subprocess.run(
            [sys.executable, "-c", HEAPS, how, str(path)],
            cwd=ROOT, env=without | environment, check=True,
        )  # fmt: skip
        return path.read_text().count("<heap nr=")

    cores = len(os.sched_getaffinity(0))
    assert heaps("unlimited") > cores
    assert heaps("limited") <= cores
    assert heaps("limited", MALLOC_ARENA_MAX=str(cores + 3)) == cores + 3  # the user's own word
