"""A search of hyper-parameters by the cross-entropy method: laws that move to what scored best.

Every hyper-parameter has a categorical law of its own. A round draws settings, scores them, and
moves each law towards the values of the best ones.

Source: Rubinstein and Kroese, The Cross-Entropy Method, 2004, chapter 4. Li, The Nature of
Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI, arXiv:2410.18441,
names it for word2vec in the abstract; laws and defaults are our reading.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rml.errors import UserError
from rml.training.durable import write_text

Setting = dict[str, Any]
"""A value of every hyper-parameter."""
Objective = Callable[[Sequence[Setting]], Sequence[float]]
"""Scores of settings, higher ones better; all settings of a round at once."""

Space = Mapping[str, Sequence[Any]]
"""Values of every hyper-parameter."""
Laws = Mapping[str, Sequence[float]]
"""Probabilities of these values, in their order."""
STATED = "of"
"""Key of a search's file under which its space, seed and numbers stand."""


class Search(NamedTuple):
    """How a search draws and moves.

    Attributes:
      draws: Settings of a round, N.
      elite: Share of them that laws move to, ρ; at least one setting.
      step: Share of the way there that laws move, α; with 0 this is random search.
      rounds: Most rounds, R.
      least_entropy: Entropy in nats below which all laws must be for the search to end before.
    """

    draws: int = 24
    elite: float = 0.2
    step: float = 0.7
    rounds: int = 6
    least_entropy: float = 0.1


class Found(NamedTuple):
    """What a search has found so far.

    Attributes:
      laws: Probabilities of the values of each hyper-parameter, in their order.
      settings: All settings that were scored, in their order.
      scores: Their scores.
      rounds: Number of rounds that are done.
    """

    laws: dict[str, list[float]]
    settings: list[Setting]
    scores: list[float]
    rounds: int

    @property
    def best(self) -> tuple[Setting, float]:
        """The setting with the highest score, the first of equal ones, and its score."""
        at = int(np.argmax(_ranked(self.scores)))
        return self.settings[at], self.scores[at]

    @property
    def entropies(self) -> dict[str, float]:
        """Entropy of every law, in nats."""
        return {name: entropy(law) for name, law in self.laws.items()}


def cross_entropy_search(
    objective: Objective,
    space: Space,
    *,
    search: Search = Search(),  # noqa: B008  a named tuple of constants
    seed: int = 0,
    path: Path | None = None,
) -> Found:
    """Searches for the setting with the highest score.

    P ← (1 - α) P + α f for each law P, with the frequencies f of its values among the elite. What a
    round draws is a function of the seed and the round.

    Args:
      objective: Scores settings. One that is not a number is the lowest.
      space: Values of each hyper-parameter, JSON's where there is a path.
      search: Numbers by which it draws and moves.
      seed: Seed of the draws.
      path: File that every round is written to, and from which a stopped search continues, or one
        that has ended with more rounds.

    Returns:
      The laws and all settings with their scores.

    Raises:
      UserError: A hyper-parameter has no value, a number of the search is out of its range, the
        file is of another space, seed or search or of more rounds, or the objective gives another
        number of scores.

    Example:
      >>> found = cross_entropy_search(
      ...     lambda settings: [-((s["x"] - 3) ** 2) for s in settings], {"x": range(10)})
      >>> found.best[0]
      {'x': 3}
    """
    check(space, search)
    stated = _stated(space, seed, search)
    if path is not None:
        _check_json(space)
    found = first(space) if path is None or not path.is_file() else read(path, stated, space)
    if found.rounds > search.rounds:
        raise UserError(
            f"{path} holds {found.rounds} rounds, expected at most {search.rounds}: give more or "
            "another file"
        )
    # Of laws that are settled from the start one round is drawn, so that there is a best setting.
    while found.rounds < search.rounds and not (found.rounds and _settled(found, search)):
        settings = draw_settings(found.laws, space, search.draws, seed=(seed, found.rounds))
        scores = [float(score) for score in objective(settings)]
        if len(scores) != len(settings):
            raise UserError(f"{len(scores)} scores for {len(settings)} settings, expected as many")
        found = Found(
            moved(found.laws, space, settings, scores, search),
            found.settings + settings,
            found.scores + scores,
            found.rounds + 1,
        )
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(found._asdict() | {STATED: stated}))
    return found


def check(space: Space, search: Search) -> None:
    """Raises `UserError` where a hyper-parameter has no value or a number is out of its range."""
    empty = [name for name, values in space.items() if not len(values)]
    if not space or empty:
        raise UserError(f"a space of {sorted(space)} with no values for {empty}, expected some")
    if search.draws < 1 or search.rounds < 1 or not 0 < search.elite <= 1:
        raise UserError(f"{search}, expected draws and rounds of at least 1 and an elite of 0 to 1")
    if not 0 <= search.step <= 1:
        raise UserError(f"step is {search.step}, expected 0 to 1")


def _check_json(space: Space) -> None:
    """Raises `UserError` where a value cannot be written: better before a round than after it."""
    for name, values in space.items():
        try:
            json.dumps(list(values))
        except TypeError as error:
            raise UserError(
                f"values of {name} are {list(values)}, expected numbers and texts of Python, since "
                f"the file has JSON: {error}"
            ) from None


def first(space: Space) -> Found:
    """Makes a search that has done nothing: every value is as likely."""
    return Found({name: [1 / len(own)] * len(own) for name, own in space.items()}, [], [], 0)


def read(path: Path, stated: Mapping[str, Any], space: Space) -> Found:
    """Reads a search from its file.

    Args:
      path: The file.
      stated: The space, seed and numbers of the search that is to go on, as the file has them.
      space: That space, whose own values settings get back: JSON has lists for tuples.

    Raises:
      UserError: The file is of another space, seed or search, or does not say of which.
    """
    kept = json.loads(path.read_text())
    if STATED not in kept:
        raise UserError(
            f"{path} does not say of which space, seed and search it is, as older files do not; "
            "delete it to begin anew"
        )
    own = kept.pop(STATED)
    for name, value in stated.items():
        # Values of a space are told apart as JSON has them; a share of 1 is one of 1.0.
        there, here = (json.dumps(x) if name == "space" else x for x in (own[name], value))
        if there != here:
            raise UserError(f"{path} is of another {name}, {own[name]}, expected {value}")
    found = Found(**kept)
    written = {name: [json.dumps(value) for value in own] for name, own in space.items()}
    settings = [
        {name: space[name][written[name].index(json.dumps(value))] for name, value in one.items()}
        for one in found.settings
    ]
    return found._replace(settings=settings)


def _stated(space: Space, seed: int, search: Search) -> dict[str, Any]:
    """What draws depend on, of the space the order too; not where a search ends: it may go on."""
    values = [[name, list(own)] for name, own in space.items()]
    moves = {"draws": search.draws, "elite": search.elite, "step": search.step}
    return {"space": values, "seed": seed, "search": moves}


def draw_settings(laws: Laws, space: Space, number: int, *, seed: Any) -> list[Setting]:
    """Draws settings, every hyper-parameter by its law, apart from the others."""
    rng = np.random.default_rng(seed)
    drawn = {
        name: rng.choice(len(values), size=number, p=np.asarray(laws[name]))
        for name, values in space.items()
    }
    return [
        {name: values[int(drawn[name][i])] for name, values in space.items()} for i in range(number)
    ]


def moved(
    laws: Laws, space: Space, settings: Sequence[Setting], scores: Sequence[float], search: Search,
) -> dict[str, list[float]]:  # fmt: skip
    """Moves laws after a round towards the frequencies of values among the best settings."""
    # 0.28 · 25 is above 7 by rounding.
    count = max(math.ceil(round(search.elite * len(settings), 9)), 1)
    order = np.argsort(-_ranked(scores), kind="stable")[:count]
    new = {}
    for name, values in space.items():
        written = [repr(value) for value in values]  # 0 equals False, but is written apart
        places = [written.index(repr(settings[i][name])) for i in order]
        frequency = np.bincount(places, minlength=len(values)) / count
        law = (1 - search.step) * np.asarray(laws[name]) + search.step * frequency
        new[name] = (law / law.sum()).tolist()
    return new


def entropy(law: Sequence[float]) -> float:
    """Computes the entropy of a law in nats."""
    p = np.asarray(law)
    p = p[p > 0]
    return float(-(p @ np.log(p)))


def _settled(found: Found, search: Search) -> bool:
    return max(found.entropies.values()) < search.least_entropy


def _ranked(scores: Sequence[float]) -> np.ndarray:
    """Scores, the lowest where they are no numbers."""
    values = np.asarray(scores, float)
    return np.where(np.isnan(values), -np.inf, values)
