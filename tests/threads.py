"""How many threads the tests' own processes compute with: one each.

Several of them share the cores already. Threads beyond that wait for work by spinning, those of
BLAS and of XLA alike: they take up to a third of the processors' time.
"""

import contextlib
import os
from pathlib import Path

from threadpoolctl import threadpool_limits


def use_one() -> None:
    """Lets JAX and BLAS compute with one thread in this process, none that it starts."""
    import jax
    import scipy.linalg  # noqa: F401 - its BLAS is limited once it is loaded

    threadpool_limits(1, user_api="blas")
    if not hasattr(os, "sched_setaffinity"):
        return
    given = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(given)})
    jax.devices()  # it makes as many threads as there are cores to use
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), given)
