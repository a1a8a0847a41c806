"""Several methods in one run, each in a directory of its own, where a stopped run continues."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from rml.training import RunDirectory

Result = TypeVar("Result")


def for_each(
    run: RunDirectory,
    methods: Iterable[str],
    measure: Callable[[str, RunDirectory], tuple[Mapping[str, float], Result]],
) -> dict[str, tuple[Mapping[str, float], Result]]:
    """Measures every method in `methods/<name>` of the run directory.

    Args:
      run: The run's directory.
      methods: Names.
      measure: `measure(name, directory) -> (metrics, result)`; it trains in the directory.

    Returns:
      By name, what `measure` returned. Each directory has the summary of a complete run.
    """
    found: dict[str, tuple[Mapping[str, float], Any]] = {}
    for name in methods:
        started = time.perf_counter()
        inner = run.of_method(name)
        before = inner.seconds()
        found[name] = measure(name, inner)
        if inner.summary() is None:
            seconds = before + time.perf_counter() - started
            inner.write_summary(metrics=found[name][0], claims=[], seconds=seconds)
        inner.close()
    return found
