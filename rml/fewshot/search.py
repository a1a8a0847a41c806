"""Options of a method chosen on validation episodes."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rml.errors import UserError
from rml.fewshot.episodes import Episodes
from rml.fewshot.evaluate import mean_and_interval, require_accuracies, sweep


class Choice(NamedTuple):
    """Options of a method, one value each.

    Attributes:
      fixed: Names and values that a program is compiled for.
      floats: Names and values that a compiled program takes.
    """

    fixed: tuple[tuple[str, Any], ...]
    floats: dict[str, float]

    @property
    def options(self) -> dict[str, Any]:
        """All options together."""
        return {**dict(self.fixed), **self.floats}


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
    candidates: Mapping[str, Sequence[Any]]
    accuracies: np.ndarray
    intervals: np.ndarray

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that were searched, with the values chosen."""
        return {name: self.options[name] for name in self.candidates}

    def along(self, *names: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns accuracies and intervals by these options, the others at their best for each."""
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
    """Counts the combinations of candidates that a search evaluates; 0 where there is no choice."""
    sizes = [len(value) for value in options.values() if isinstance(value, tuple | list)]
    return math.prod(sizes) if sizes else 0


def choices(options: Mapping[str, Any]) -> list[Choice]:
    """Makes every combination of candidates, those of options that are all floats varying fastest.

    Args:
      options: Options and candidates as in `search`.

    Raises:
      UserError: An option is an array, or has an empty tuple of candidates.
    """
    for name, value in options.items():
        if isinstance(value, tuple | list) and not value:
            raise UserError(f"option {name} has no candidates, expected at least one")
        if isinstance(value, np.ndarray | jax.Array):
            raise UserError(
                f"option {name} is an array, expected to be bound to the method before, as by "
                f"functools.partial(method, {name}=...)"
            )
    given = _candidates(options)
    floats = [k for k, v in given.items() if _is_floats(v)]
    found = []
    for values in itertools.product(*given.values()):
        own = {**options, **dict(zip(given, values, strict=True))}
        fixed = tuple((k, v) for k, v in own.items() if k not in floats)
        found.append(Choice(fixed, {k: own[k] for k in floats}))
    return found


def accuracies(
    method: Callable[..., Array],
    tried: Sequence[Choice],
    features: Float[Array, "n d"],
    episodes: Episodes,
    *,
    ways: int,
    mesh: Mesh | None = None,
    evaluated: Callable[[int, float], None] | None = None,
) -> Float[np.ndarray, "e choices"]:
    """Measures a method with each choice of options in each episode.

    Choices that differ in floats alone are evaluated in one vectorised call. A second call with
    the same method and shapes compiles nothing.

    Args:
      method: See `search`.
      tried: Choices, such as those of `choices`.
      features: Rows of which the episodes are made.
      episodes: Drawn by `sample_episodes`.
      ways: Classes in an episode.
      mesh: See `rml.fewshot.evaluate.evaluate_episodes`.
      evaluated: See `search`.

    Raises:
      UserError: As `rml.fewshot.evaluate.sweep`, or if scores are not finite, naming the choice.
    """
    dtype = jnp.promote_types(features.dtype, jnp.float32)  # that of a method's loops
    found = np.zeros((episodes.query.shape[0], len(tried)))
    best = 0.0
    for fixed in dict.fromkeys(choice.fixed for choice in tried):
        members = [i for i, choice in enumerate(tried) if choice.fixed == fixed]
        names = tried[members[0]].floats
        grid = {k: jnp.array([tried[i].floats[k] for i in members], dtype) for k in names}
        swept = sweep(_family(method, fixed), grid, features, episodes, ways=ways, mesh=mesh)
        found[:, members] = np.asarray(swept).reshape(len(swept), -1)
        for i in members:
            require_accuracies(found[:, i], method, tried[i].options)
        best = max(best, found[:, members].mean(axis=0).max())
        if evaluated is not None:
            evaluated(len(members), float(best))
    return found


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
      options: Options of the method but arrays; a tuple or list holds candidates. Those that are
        all floats are evaluated in one vectorised call, others one after the other.
      features: Rows of which the episodes are made.
      episodes: Validation episodes, drawn by `sample_episodes`.
      ways: Classes in an episode.
      mesh: See `rml.fewshot.evaluate.evaluate_episodes`.
      evaluated: Called after each call with the number of combinations that it evaluated and the
        best accuracy so far, such as to show progress.

    Returns:
      The chosen options, and the accuracies by which they were chosen.

    Raises:
      UserError: As `choices` and `accuracies`.
    """
    candidates = _candidates(options)
    tried = choices(options)
    if not candidates:
        return Search(tried[0].options, {}, np.zeros(0), np.zeros(0))
    found = accuracies(method, tried, features, episodes, ways=ways, mesh=mesh, evaluated=evaluated)
    shape = [len(v) for v in candidates.values()]
    columns = zip(*(mean_and_interval(column) for column in found.T), strict=True)
    means, intervals = (np.reshape(part, shape) for part in columns)
    return Search(tried[int(means.argmax())].options, candidates, means, intervals)


def _candidates(options: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Candidates of each option that has some, floats last."""
    given = {k: tuple(v) for k, v in options.items() if isinstance(v, tuple | list)}
    return dict(sorted(given.items(), key=lambda item: _is_floats(item[1])))


def _is_floats(values: Sequence[Any]) -> bool:
    return all(isinstance(one, float) for one in values)


@cache  # the same object for the same options, so that it is compiled once
def _family(
    method: Callable[..., Array], fixed: tuple[tuple[str, Any], ...]
) -> Callable[[Any], Callable[..., Array]]:
    chosen = partial(method, **dict(fixed))

    def under(floats: Any) -> Any:
        return partial(chosen, **floats)

    return under
