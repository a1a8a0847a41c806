"""Settings of a CPU: which are asked for, and that the programs of this machine have them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cpu

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "mode", "found"),
    [
        ({}, "always [madvise] never", "glibc.malloc.hugetlb=1"),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.check=3"}, "always [madvise] never",
            "glibc.malloc.check=3:glibc.malloc.hugetlb=1",
        ),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "always [madvise] never", None),
        ({}, "[always] madvise never", None),
        ({}, "always madvise [never]", None),
        ({}, "", None),
    ],
)  # fmt: skip
def test_huge_pages_are_asked_for_where_they_are_given_on_request(given, mode, found):
    assert cpu.tunables(given, mode) == found


def run(*command, **environment):
    without = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=without | environment, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.splitlines()


PROGRAM = """
import os, sys
from pathlib import Path
from experiments import cpu
print(os.getpid(), flush=True)
cpu.HUGE_PAGES = Path(sys.argv[1])
cpu.use_huge_pages("program")
print(os.getpid(), sys.argv[2:], os.environ.get("GLIBC_TUNABLES"))
"""


def test_the_program_starts_once_more_with_its_arguments(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    mode = tmp_path / "enabled"
    mode.write_text("always [madvise] never\n")
    paths = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    launched = ("-X", "utf8", "-m", "program", str(mode), "--a=b c", "d")
    first, again, last = run(*launched, **paths)
    assert last == f"{again} ['--a=b c', 'd'] glibc.malloc.hugetlb=1"
    assert first == again  # the same process
    within = "import runpy, sys; sys.argv[1:] = sys.argv[2:]; runpy.run_module('program')"
    assert len(run("-c", within, "other", str(mode), **paths)) == 2
    mode.write_text("always madvise [never]\n")
    assert len(run(*launched, **paths)) == 2
    assert len(run("-m", "program", str(tmp_path / "absent"), **paths)) == 2


COMPILED = """
from experiments import cpu
cpu.cores, cpu.ACCELERATORS = lambda: int(__import__("sys").argv[1]), ()
cpu.convolve_on_all_cores()
import jax, jax.numpy as jnp
x, kernel = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
convolve = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
print("ynn_fusion" in jax.jit(convolve).lower(x, kernel).compile().as_text())
big = jnp.ones((256, 256))
print("ynn_fusion" in jax.jit(lambda a: jnp.exp(a.sum(1))).lower(big).compile().as_text())
"""


@pytest.mark.slow
def test_convolutions_of_several_cores_are_left_to_eigen_and_nothing_else_is():
    environment = {"JAX_PLATFORMS": "cpu"}
    assert run("-c", COMPILED, "2", **environment) == ["False", "True"]
    assert run("-c", COMPILED, "1", **environment) == ["True", "True"]
    flags = f"{cpu.FUSIONS}=INDIVIDUAL_CONVOLUTION"  # the user's own word
    assert run("-c", COMPILED, "2", XLA_FLAGS=flags, **environment)[0] == "True"


def test_flags_are_left_alone_where_an_accelerator_or_another_release_reads_them(monkeypatch):
    monkeypatch.setattr(cpu, "cores", lambda: 2)
    monkeypatch.setattr(cpu, "ACCELERATORS", ("json",))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    cpu.convolve_on_all_cores()
    assert os.environ["XLA_FLAGS"] == ""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(cpu.importlib.metadata, "version", lambda name: "0.11.0")
    cpu.convolve_on_all_cores()
    assert os.environ["XLA_FLAGS"] == ""
    monkeypatch.setattr(cpu.importlib.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    cpu.convolve_on_all_cores()
    assert os.environ["XLA_FLAGS"] == f"--xla_a=1 {cpu.FUSIONS}=-INDIVIDUAL_CONVOLUTION"
