"""Runs of one config, which differ in the seed alone, and means over them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from experiments.report.runs import Run
from experiments.results import config_hash, measured, tells_apart
from rml.nested import flatten

SHOWN_KEYS = 4
"""Keys by which a group's name tells it from others of its config file."""
HIGHER = ("accuracy", "knn", "probe", "recall", "precision", "ndcg", "mrr", "auroc", "f1", "top")
LOWER = ("loss", "error", "nll", "perplexity", "seconds")


ABSENT = object()


@dataclass(frozen=True)
class Group:
    """Runs whose configs are equal but for the seed and the mesh.

    Attributes:
      name: Config file and what differs from other groups of that file, unique in a report.
      members: Indices of its runs.
      counted: Index of the run of the same config and seed that counts in the place of its one
        run, None if its runs count.
    """

    name: str
    members: tuple[int, ...]
    counted: int | None = None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of experiments, then of names; a run without a config is alone.

    Extended runs are apart from those that had all steps from the beginning. Of several runs of
    one seed the first that is complete counts, and each of the others is alone.
    """
    found: dict[tuple[str, str, int | None], list[int]] = {}
    for index, run in enumerate(runs):
        what = config_hash(run.config) if run.config else f"run {index}"
        found.setdefault((run.experiment, what, run.extended_from), []).append(index)
    alike = [found[key] for key in sorted(found, key=lambda key: (key[0], found[key][0]))]
    counting = {index: counted for group in alike for index, counted in _counting(runs, group)}
    members = [
        part
        for group in alike
        for part in (
            [index for index in group if counting[index] == index],
            *([index] for index in group if counting[index] != index),
        )
    ]
    stems = [_stem(runs, group) for group in members]
    configs = [_told_apart(runs[group[0]].config) for group in members]
    of_file: dict[str, list[Mapping[str, Any]]] = {}
    for stem, config in zip(stems, configs, strict=True):
        of_file.setdefault(stem, []).append(config)
    varied = {stem: _varied(like) for stem, like in of_file.items()}
    groups: list[Group] = []
    for stem, group, config in zip(stems, members, configs, strict=True):
        keys = [key for key in config if key in varied[stem]]
        first, counted = runs[group[0]], counting[group[0]]
        parts = [stem, *(f"{_short(k, keys)}={config[k]}" for k in keys[:SHOWN_KEYS])]
        if first.extended_from is not None:
            parts.append(f"extended from {first.extended_from} steps")
        if counted != group[0]:
            parts.append(f"seed {first.seed} again")
        name = ", ".join(parts)
        while any(name == other.name for other in groups):
            name += f" ({first.name})"
        groups.append(Group(name, tuple(group), None if counted == group[0] else counted))
    return groups


def differing_keys(runs: Sequence[Run]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Keys of the configs by whether all runs share their value.

    Returns:
      Keys with each run's value where the runs differ, `ABSENT` for a run without the key; and keys
      with the value that all runs have.
    """
    configs = [flatten(run.config) for run in runs]
    differing: dict[str, list[Any]] = {}
    shared: dict[str, Any] = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key, ABSENT) for config in configs]
        if len(set(map(repr, values))) == 1:
            shared[key] = values[0]
        else:
            differing[key] = values
    return differing, shared


def varied_alone(groups: Sequence[Group], differing: Mapping[str, Sequence[Any]]) -> list[str]:
    """Keys in which groups differ, those first that two groups differ in by fewest other keys."""
    rows = [{k: repr(v[group.members[0]]) for k, v in differing.items()} for group in groups[:100]]
    fewest: dict[str, int] = {}
    for one, other in combinations(rows, 2):
        keys = [k for k in one if one[k] != other[k] and tells_apart(k)]
        for key in keys:
            fewest[key] = min(fewest.get(key, len(keys)), len(keys))
    return sorted(fewest, key=lambda key: fewest[key])


def final(run: Run, name: str) -> float | None:
    """A metric of a complete run, None before the run is complete or if it is not finite."""
    value, step = run.metrics.get(name, (None, None))
    return value if step is None and value is not None and math.isfinite(value) else None


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and half the width of its 95% interval, None for a single value."""
    if len(values) == 1:
        return values[0], None
    # NumPy and JAX are imported only for runs that share a config.
    import numpy as np

    from rml.ops.intervals import t_interval

    scale = 2.0**600 if max(map(abs, values)) > 1e150 else 1.0  # squares stay finite
    interval = t_interval(np.asarray(values, np.float64) / scale)
    return float(interval.mean) * scale, float(interval.high - interval.mean) * scale


def quantiles(most: int) -> list[float | None]:
    """For n of 0 to `most` values, their interval's half-width in standard errors of the mean."""
    found: list[float | None] = [None, None]
    for n in range(2, most + 1):
        half = mean_interval(range(n))[1] or 0.0
        found.append(half * math.sqrt(12 / (n + 1)))  # their deviation is √(n (n + 1) / 12)
    return found


def better(metric: str) -> int:
    """1 if higher values of a metric are known to be better, -1 if lower ones are, else 0."""
    words = metric.lower().replace("/", "_").split("_")
    for sign, known in ((-1, LOWER), (1, HIGHER)):
        if any(word.startswith(known) for word in words):
            return sign
    return 0


def _counting(runs: Sequence[Run], group: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each run of a group with the one that counts of its seed; one without a seed counts."""
    first: dict[str, int] = {}
    for index in sorted(group, key=lambda index: runs[index].status != "complete"):
        seed = runs[index].seed
        yield index, first.setdefault(f"run {index}" if seed is None else repr(seed), index)


def _stem(runs: Sequence[Run], group: Sequence[int]) -> str:
    """The config file without folder and suffix; the name of a run while none tells the file."""
    names = [runs[i].config_name for i in group if runs[i].config_name]
    if names:
        return Path(names[0]).stem
    return runs[group[0]].name + (f" and {len(group) - 1} more" if len(group) > 1 else "")


def _told_apart(config: Mapping[str, Any]) -> dict[str, Any]:
    return flatten(measured(config))


def _varied(configs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Keys of which two configs have different values, or that one of them lacks."""
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key, set()).add(repr(value))
    having = Counter(key for config in configs for key in config)
    return {key for key in values if len(values[key]) > 1 or having[key] < len(configs)}


def _short(key: str, keys: Sequence[str]) -> str:
    """A key's last part, the whole key where two end alike."""
    last = key.rpartition(".")[2]
    return last if sum(k.rpartition(".")[2] == last for k in keys) == 1 else key
