"""Seconds that a call takes."""

import time
from collections.abc import Callable
from typing import Any

import jax


def least_seconds(call: Callable[[], Any], *, repeats: int) -> float:
    """Times a call until its arrays are there; the first, which compiles, does not count.

    Args:
      call: What to time.
      repeats: Number of timed calls.

    Returns:
      The least seconds of one.
    """
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)
