"""Options of a method chosen on validation episodes."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rml.fewshot.episodes import Episodes
from rml.fewshot.evaluate import mean_and_interval, sweep


class Search(NamedTuple):
    """What a search found.

    Attributes:
      options: One value for each option, the first of equally good ones.
      candidates: Candidates of each option that was searched; empty if none was.
      accuracies: Mean accuracy of each combination, one axis an option, in the order of
        `candidates`.
      intervals: Half widths of the accuracies' 95% intervals.
    """

    options: dict[str, Any]
    candidates: dict[str, Sequence[Any]]
    accuracies: np.ndarray
    intervals: np.ndarray

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that were searched, with the values chosen."""
        return {name: self.options[name] for name in self.candidates}

    def along(self, *names: str) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies and intervals against these options, the others at their best for each."""
        places = [list(self.candidates).index(name) for name in names]
        others = [place for place in range(self.accuracies.ndim) if place not in places]
        shape = [len(self.candidates[name]) for name in names]
        mean, half = (
            table.transpose(*places, *others).reshape(*shape, -1)
            for table in (self.accuracies, self.intervals)
        )
        best = mean.argmax(axis=-1, keepdims=True)
        mean, half = (np.take_along_axis(table, best, axis=-1)[..., 0] for table in (mean, half))
        return mean, half


def combinations(options: Mapping[str, Any]) -> int:
    """Number of combinations of candidates that a search evaluates; 0 where there is no choice."""
    sizes = [len(value) for value in options.values() if isinstance(value, tuple | list)]
    return math.prod(sizes) if sizes else 0


def search(
    method: Callable[..., Array],
    options: Mapping[str, Any],
    features: Float[Array, "n d"],
    episodes: Episodes,
    *,
    ways: int,
    mesh: Mesh | None = None,
    evaluated: Callable[[int, float], None] | None = None,
) -> Search:
    """Searches a method's candidate options for the best accuracy.

    Args:
      method: A function of this package.
      options: Options of the method; a tuple or list holds candidates. Candidates that are all
        floats are evaluated in one vectorised call, others one after the other.
      features: Rows of which the episodes are made.
      episodes: Validation episodes, drawn by `sample_episodes`.
      ways: Classes in an episode.
      mesh: See `rml.fewshot.evaluate.evaluate_episodes`.
      evaluated: Called after each call with the number of combinations that it evaluated and the
        best accuracy so far, such as to show progress.

    Returns:
      The chosen options, and the accuracies by which they were chosen.

    Raises:
      UserError: As `rml.fewshot.evaluate.sweep`.
    """
    given = {k: tuple(v) for k, v in options.items() if isinstance(v, tuple | list)}
    fixed = {k: v for k, v in options.items() if k not in given}
    if not given:
        return Search(fixed, {}, np.zeros(0), np.zeros(0))
    traced = [k for k, v in given.items() if all(isinstance(one, float) for one in v)]
    static = [k for k in given if k not in traced]
    candidates: dict[str, Sequence[Any]] = {k: given[k] for k in (*static, *traced)}
    axes = jnp.meshgrid(*(jnp.array(candidates[k]) for k in traced), indexing="ij")
    grid = {k: axis.ravel() for k, axis in zip(traced, axes, strict=True)}
    found = []
    for values in itertools.product(*(candidates[k] for k in static)):
        chosen = partial(method, **fixed, **dict(zip(static, values, strict=True)))

        def under(hyperparameters: Any, chosen: Any = chosen) -> Any:
            return partial(chosen, **hyperparameters)

        swept = np.asarray(sweep(under, grid, features, episodes, ways=ways, mesh=mesh))
        columns = swept.reshape(len(swept), -1).T
        found += [mean_and_interval(column) for column in columns]
        if evaluated is not None:
            evaluated(len(columns), max(mean for mean, _ in found))
    shape = [len(v) for v in candidates.values()]
    accuracies, intervals = (np.reshape(part, shape) for part in zip(*found, strict=True))
    best = np.unravel_index(np.argmax(accuracies), shape)
    picked = {k: v[int(i)] for (k, v), i in zip(candidates.items(), best, strict=True)}
    return Search({**fixed, **picked}, candidates, accuracies, intervals)
