"""Seconds that a call takes, and how many times longer one takes than another."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def least_seconds(call: Callable[[], Any], *, repeats: int) -> float:
    """Times a call until its arrays are there; the first, which compiles, does not count.

    Args:
      call: What to time.
      repeats: Number of timed calls.

    Returns:
      The least seconds of one.
    """
    jax.block_until_ready(call())
    return min(_seconds(call) for _ in range(repeats))


def median_ratio(first: Callable[[], Any], second: Callable[[], Any], *, repeats: int) -> float:
    """Times two calls in turn, each after one that compiles.

    Which of a pair comes first alternates, so that neither is always the one after the other.

    Args:
      first: What to time.
      second: What it is compared with.
      repeats: Number of pairs.

    Returns:
      The median over pairs of the first's seconds over the second's.
    """
    calls = (first, second)
    for call in calls:
        jax.block_until_ready(call())
    ratios = []
    for turn in range(repeats):
        seconds = {i: _seconds(calls[i]) for i in ((0, 1) if turn % 2 == 0 else (1, 0))}
        ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
