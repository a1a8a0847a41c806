"""The regularised model's course on drawn episodes: energies, assignments before and after."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fewshot.episodes import Setting, draw_episodes
from experiments.fewshot.features import Labelled
from rml.fewshot.checks import class_means
from rml.fewshot.episodes import Episodes
from rml.fewshot.preprocess import shift_queries
from rml.fewshot.simpleshot import simple_shot
from rml.fewshot.transductive_clustering import Solution, solve, transductive_clustering
from rml.ops.graph import knn_affinity
from rml.ops.similarity import normalize

OURS = ("laplacian_weight", "neighbors", "graph", "shift")
DEFAULTS: Mapping[str, Any] = transductive_clustering.__kwdefaults__ or {}


def solve_episode(
    x: Any, support: Any, labels: Any, query: Any, laplacian_weight: Any, *, ways: int, options: Any
) -> Solution:
    """What `transductive_clustering` solves on one episode, with its energies.

    Args:
      x: Features.
      support: Rows of the support.
      labels: Their classes.
      query: Rows of the queries.
      laplacian_weight: λ.
      ways: Number of classes.
      options: Other options of `transductive_clustering`.

    Returns:
      The solution.
    """
    options = {**DEFAULTS, **options}
    query_points = shift_queries(x[support], x[query]) if options["shift"] else x[query]
    points = jnp.concatenate([x[support], query_points])
    ends = normalize(points) if options["distance"] == "cosine" else points
    symmetric = options["graph"] == "symmetric"
    return solve(
        points,
        class_means(x[support], labels, num_classes=ways),
        support_labels=labels,
        affinity=knn_affinity(ends, k=options["neighbors"], symmetric=symmetric),
        laplacian_weight=laplacian_weight,
        damped=symmetric,
        **{k: v for k, v in options.items() if k not in OURS},
    )


def trajectories(
    labelled: Labelled,
    config: Any,
    setting: Setting,
    options: Mapping[str, Any],
    weights: Sequence[float],
) -> dict[float, np.ndarray]:
    """Energies against iterations for several λ.

    Args:
      labelled: Features and labels.
      config: The run's config; `energy.episodes` says how many.
      setting: Kind of episodes.
      options: Of `transductive_clustering`; its λ is added to `weights`.
      weights: Values of λ.

    Returns:
      λ to energies [episodes, iterations + 1], constant after convergence.
    """
    drawn = draw_episodes(labelled, config, setting, count=config.energy.episodes)

    @jax.jit
    def energies(x: Any, drawn: Any, weight: Any) -> Any:
        def course(episode: Episodes) -> Any:
            given = x, episode.support, episode.support_labels, episode.query, weight
            return solve_episode(*given, ways=setting.ways, options=options).energies

        return jax.vmap(course)(drawn)

    values = sorted({*weights, float(options["laplacian_weight"])})
    return {w: np.asarray(energies(labelled[0], drawn, jnp.asarray(w))) for w in values}


def largest_increase(energies: np.ndarray) -> float:
    """The largest increase of an iteration relative to the energy's size; negative if none.

    The size is the largest of an episode's energies: they pass through zero where λ is large.
    """
    steps = np.diff(energies, axis=1) / np.abs(energies).max(axis=1, keepdims=True)
    moving = steps != 0  # after convergence the last energy is repeated
    return float(steps[moving].max()) if moving.any() else 0.0


class Picture(NamedTuple):
    """One episode in two dimensions.

    Attributes:
      xy: Positions, support first.
      labels: Classes.
      before: Classes by the nearest class mean of the support.
      after: Classes by the regularised model.
      support: Number of support examples.
    """

    xy: np.ndarray
    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray
    support: int


def picture(
    labelled: Labelled, config: Any, setting: Setting, options: Mapping[str, Any]
) -> Picture:
    """The first episode of a setting, on its two directions of largest variance."""
    episode = jax.tree.map(lambda rows: rows[0], draw_episodes(labelled, config, setting, count=1))
    x = labelled[0]
    given = x[episode.support], episode.support_labels, x[episode.query]
    methods: list[Callable[..., Any]] = [
        simple_shot, partial(transductive_clustering, **options)
    ]  # fmt: skip
    found = [
        np.argmax(np.asarray(method(*given, num_classes=setting.ways)), axis=1)
        for method in methods
    ]
    points = np.asarray(jnp.concatenate([given[0], given[2]]), np.float64)
    points -= points.mean(axis=0)
    xy = points @ np.linalg.svd(points, full_matrices=False)[2][:2].T
    own = np.asarray(episode.support_labels)
    before, after = (np.concatenate([own, one]) for one in found)
    labels = np.concatenate([own, np.asarray(episode.query_labels)])
    return Picture(xy, labels, before, after, len(own))
