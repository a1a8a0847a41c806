"""A search by the cross-entropy method of word2vec's hyper-parameters, beside random search.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441, whose abstract alone names the cross-entropy method for word2vec; space, laws and
score are our reading. Every setting of the space is trained once on docstrings and code and scored
on held-out text: a table in which the optimum is known. Searches then read it, many of them with
different draws, as random search of as many settings does, which is the strong simple baseline.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.attention import cross_entropy_figures
from experiments.attention.cross_entropy_scores import scored
from experiments.common.claims import with_bounds
from experiments.ranges import Range
from rml.errors import UserError
from rml.models.word2vec import Options
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory
from rml.training.cross_entropy_search import Found, Search, Setting, cross_entropy_search

SOURCE = "arXiv:2410.18441, abstract; space, score, data and margin are this repository's"
CLAIMS = (
    Claim("Of equally many runs the search is half as far from the optimum as random search",
          "regret_share", "<=", 0.5, SOURCE, stated="2026-11-26", null="regret_share_no_update"),
    Claim("Its laws end with less than half of their entropy",
          "entropy_share", "<=", 0.5, f"{SOURCE}; the null, laws that never move, was changed "
          "after the first measurement to the same search with random scores",
          stated="2026-11-29", null="entropy_share_random_scores"),
)  # fmt: skip
RANGES = {"searches": Range(2, whole=True)}  # of which there is an interval
CAPTIONS = cross_entropy_figures.CAPTIONS
PICTURE = "regret.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Scores the whole space, searches it, compares, draws."""
    space = check(config)
    settings = [dict(zip(space, own, strict=True)) for own in itertools.product(*space.values())]
    scores = scored(config, settings)
    table = {tuple(own.values()): score for own, score in zip(settings, scores, strict=True)}
    best = settings[int(np.argmax(scores))]
    Progress().note(f"best of {len(settings)} settings: {best}, {-scores.max():.4f} nats")

    def objective(asked: Sequence[Setting]) -> list[float]:
        return [table[tuple(own.values())] for own in asked]

    searches = {
        name: [
            cross_entropy_search(objective, space, search=search, seed=seed + offset)
            for seed in range(config.seed * config.searches, (config.seed + 1) * config.searches)
        ]
        for name, search, offset in (
            ("search", Search(**config.search), 0),
            # The first round of both is the same.
            ("random", Search(**config.search, step=0.0), 0),
            ("no_update", Search(**config.search, step=0.0), 10**6),
        )
    }
    ends = [objective([own])[0] for own in settings if at_ends(own, space)]
    metrics = summarised(scores, searches, max(ends))
    metrics["entropy_share"] = entropy_share(searches["search"])
    metrics["entropy_share_random_scores"] = entropy_share(of_random_scores(config, space))
    metrics |= {"settings": len(settings), "runs_grid": len(ends)}
    metrics["runs"] = config.search.draws * config.search.rounds
    metrics |= {f"best_{name}": value for name, value in best.items()}
    cross_entropy_figures.of_regret(run, scores.max(), searches)
    cross_entropy_figures.of_laws(run, space, searches["search"])
    cross_entropy_figures.of_scores(run, space, settings, scores)
    return {name: float(value) for name, value in metrics.items()}


def check(config: Any) -> dict[str, list[Any]]:
    """The space of a config; raises `UserError` unless the model's and larger than a search."""
    if set(config.space) != set(Options._fields):
        raise UserError(f"space has {sorted(config.space)}, expected {Options._fields}")
    space = {name: list(config.space[name]) for name in Options._fields}
    number = int(np.prod([len(values) for values in space.values()]))
    if number < 2 * config.search.draws * config.search.rounds:
        raise UserError(f"space has {number} settings, expected twice as many as a search scores")
    return space


def of_random_scores(config: Any, space: dict[str, list[Any]]) -> list[Found]:
    """Searches with Gaussian scores in the place of a setting's own: laws move, towards nothing.

    Args:
      config: The run's config.
      space: Values of each hyper-parameter.
    """
    found = []
    for seed in range(config.seed * config.searches, (config.seed + 1) * config.searches):
        rng = np.random.default_rng([seed, 1])

        def objective(asked: Sequence[Setting], rng: np.random.Generator = rng) -> list[float]:
            return rng.standard_normal(len(asked)).tolist()

        found.append(
            cross_entropy_search(objective, space, search=Search(**config.search), seed=seed)
        )
    return found


def entropy_share(searches: Sequence[Found]) -> float:
    """Computes the entropy of laws at the end of searches over that of uniform ones, their mean."""
    whole = sum(np.log(len(law)) for law in searches[0].laws.values())
    return float(np.mean([sum(own.entropies.values()) / whole for own in searches]))


def at_ends(setting: Setting, space: dict[str, list[Any]]) -> bool:
    """Whether all values of a setting are the first or the last of their range."""
    return all(value in (space[name][0], space[name][-1]) for name, value in setting.items())


def summarised(
    scores: np.ndarray, searches: dict[str, list[Found]], grid: float
) -> dict[str, float]:
    """Metrics of searches with different draws, with intervals over these."""
    best = {name: np.array([own.best[1] for own in found]) for name, found in searches.items()}
    regret = {name: scores.max() - own for name, own in best.items()}
    draws = len(searches["random"][0].scores) // searches["random"][0].rounds
    first = np.array([max(own.scores[:draws]) for own in searches["random"]])
    pairs = {
        "gain_over_random": best["search"] - best["random"],
        "gain_no_update": best["no_update"] - best["random"],
        "gain_over_grid": best["search"] - grid,
        "gain_of_first_round": first - grid,
    }
    metrics = {f"regret_{name}": float(own.mean()) for name, own in regret.items()}
    metrics |= {"nats_best": -float(scores.max()), "nats_median": -float(np.median(scores))}
    random = max(metrics["regret_random"], 1e-12)
    for ending, name in (("", "search"), ("_no_update", "no_update")):
        metrics[f"regret_share{ending}"] = metrics[f"regret_{name}"] / random
    for name, values in pairs.items():
        metrics |= with_bounds(name, t_interval(values))
    return metrics
