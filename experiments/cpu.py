"""What a program asks of a CPU before its arrays and JAX exist: huge pages, and all of its cores.

Both are settings of libraries that only a variable of the environment reaches. A variable that is
set already has the first word.
"""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"
# A jaxlib that does not know a flag ends the process: the releases that were tried.
KNOWN = "0.10."
ACCELERATORS = ("libtpu", "jax_plugins")  # read the same variable, in releases of their own


def use_huge_pages(module: str) -> None:
    """Starts `python -m module` again with a heap of huge pages, where Linux gives them on request.

    XLA allocates what a step needs anew each time. In pages of 4 KB the system then clears them one
    by one, a quarter of a step of a small convolutional encoder on one core. The C library reads
    `GLIBC_TUNABLES` when a process starts, so the program is started once more in its place, with
    the same arguments; to be called before anything else. The variable is inherited. Nothing is
    done where the module is run by another program.
    """
    if sys.orig_argv[-len(sys.argv) - 1 :] != ["-m", module, *sys.argv[1:]]:
        return
    mode = HUGE_PAGES.read_text() if HUGE_PAGES.exists() else ""
    value = tunables(os.environ, mode)
    if value is not None:
        os.environ["GLIBC_TUNABLES"] = value
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def tunables(environ: Mapping[str, str], mode: str) -> str | None:
    """`GLIBC_TUNABLES` that asks for huge pages; None where there is nothing to ask.

    Args:
      environ: The variables of this process.
      mode: What Linux says of huge pages, such as "always [madvise] never".
    """
    given = environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in given or "[madvise]" not in mode:
        return None
    return ":".join(filter(None, [given, f"{TUNABLE}=1"]))


def convolve_on_all_cores() -> None:
    """Has XLA compute convolutions by Eigen, which shares each out over the cores of a CPU.

    XLA of jaxlib 0.10 gives float32 convolutions to YNNPACK, which computes most of their shapes on
    one core however many there are. To be called before JAX finds its devices.
    """
    elsewhere = os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(
        importlib.util.find_spec(name) for name in ACCELERATORS
    )
    flags = os.environ.get("XLA_FLAGS", "")
    known = importlib.metadata.version("jaxlib").startswith(KNOWN)
    if known and cores() > 1 and FUSIONS not in flags and not elsewhere:
        os.environ["XLA_FLAGS"] = f"{flags} {FUSIONS}=-INDIVIDUAL_CONVOLUTION".strip()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
