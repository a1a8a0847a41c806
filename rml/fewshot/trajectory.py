"""The course of the regularised model: its energies on episodes, an episode before and after."""

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.fewshot.bound import Scalar
from rml.fewshot.episodes import Episodes
from rml.fewshot.gram import NEIGHBORS, gram, neighbor_count, neighbour_graph
from rml.fewshot.preprocess import shift_queries
from rml.fewshot.simpleshot import simple_shot
from rml.fewshot.transductive_clustering import Solution, solve, transductive_clustering
from rml.ops.class_means import class_means
from rml.ops.graph import knn_affinity
from rml.ops.precision import full_precision
from rml.ops.similarity import normalize

_OPTIONS = inspect.signature(transductive_clustering).parameters.values()
_DEFAULTS = {one.name: one.default for one in _OPTIONS if one.default is not one.empty}
_OWN = ("laplacian_weight", "neighbors", "graph", "shift")  # `solve` has no such options


@full_precision
def solve_episode(
    support: Float[Array, "s d"],
    support_labels: Int[Array, " s"],
    query: Float[Array, "q d"],
    *,
    num_classes: int,
    laplacian_weight: Scalar,
    **options: Any,
) -> Solution:
    """Solves an episode as `transductive_clustering` does, and keeps prototypes and energies.

    Args:
      support: Support features.
      support_labels: Their classes.
      query: Query features.
      num_classes: Number of classes c.
      laplacian_weight: λ.
      **options: Other options of `transductive_clustering`.

    Returns:
      The solution, the support's assignments first.
    """
    options = {**_DEFAULTS, **options}
    shifted = shift_queries(support, query) if options["shift"] else query
    points = jnp.concatenate([support, shifted])
    ends = normalize(points) if options["distance"] == "cosine" else points
    symmetric = options["graph"] == "symmetric"
    neighbors = neighbor_count(options["neighbors"], len(points), default=NEIGHBORS)
    affinity = knn_affinity(ends, k=neighbors, symmetric=symmetric)
    if options["prototype"] == "mode" and options["bandwidth"] is None:
        products = gram(ends)
        graph = options["graph"]
        options["bandwidth"] = neighbour_graph(products, neighbors=neighbors, graph=graph)[1]
    return solve(
        points,
        class_means(ends[: len(support)], support_labels, num_classes=num_classes),
        support_labels=support_labels,
        affinity=affinity if symmetric else affinity.T,
        laplacian_weight=laplacian_weight,
        damped=symmetric,
        **{k: v for k, v in options.items() if k not in _OWN},
    )


def trajectories(
    features: Float[Array, "n d"],
    episodes: Episodes,
    laplacian_weights: Iterable[float],
    *,
    ways: int,
    **options: Any,
) -> dict[float, Float[np.ndarray, "e r"]]:
    """Computes energies of the regularised model against its rounds, for several λ.

    Args:
      features: Rows of which the episodes are made.
      episodes: Drawn by `rml.fewshot.episodes.sample_episodes`.
      laplacian_weights: Values of λ.
      ways: Classes in an episode.
      **options: Other options of `transductive_clustering`.

    Returns:
      λ to the energies of each episode, which are constant after convergence.
    """

    @jax.jit
    def energies(x: Any, episodes: Any, weight: Any) -> Any:
        def course(episode: Episodes) -> Any:
            given = x[episode.support], episode.support_labels, x[episode.query]
            options_ = {**options, "laplacian_weight": weight}
            return solve_episode(*given, num_classes=ways, **options_).energies

        return jax.vmap(course)(episodes)

    weights = sorted(set(laplacian_weights))
    return {w: np.asarray(energies(features, episodes, jnp.asarray(w))) for w in weights}


def largest_increase(energies: Float[np.ndarray, "e r"]) -> float:
    """Finds the largest increase of a round relative to the energy's size; negative if none.

    The size is the largest of an episode's energies: they pass through zero where λ is large.
    """
    size = np.abs(energies).max(axis=1, keepdims=True)
    steps = np.diff(energies, axis=1) / np.where(size == 0, 1, size)
    moving = steps != 0  # after convergence the last energy is repeated
    return float(steps[moving].max()) if moving.any() else 0.0


class Picture(NamedTuple):
    """One episode in two dimensions, the support first.

    Attributes:
      xy: Positions on the two directions of largest variance.
      labels: Classes.
      before: Classes by the nearest class mean of the support; the support's own.
      after: Classes by the regularised model; the support's own.
      support: Number of support examples.
    """

    xy: np.ndarray
    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray
    support: int


def picture(
    features: Float[Array, "n d"], episodes: Episodes, *, ways: int, **options: Any
) -> Picture:
    """Lays the first of several episodes out in the plane, its queries' classes by two methods.

    Args:
      features: Rows of which the episodes are made.
      episodes: Drawn by `rml.fewshot.episodes.sample_episodes`.
      ways: Classes in an episode.
      **options: Options of `transductive_clustering`.

    Returns:
      Positions and classes.
    """
    episode = Episodes(*(part[0] for part in episodes))
    support, query = features[episode.support], features[episode.query]
    own = np.asarray(episode.support_labels)

    def classes(method: Any) -> np.ndarray:
        p = jax.jit(partial(method, num_classes=ways))(support, episode.support_labels, query)
        return np.concatenate([own, np.argmax(np.asarray(p), axis=1)])

    points = np.asarray(jnp.concatenate([support, query]), np.float64)
    points -= points.mean(axis=0)
    xy = points @ np.linalg.svd(points, full_matrices=False)[2][:2].T
    labels = np.concatenate([own, np.asarray(episode.query_labels)])
    after = classes(partial(transductive_clustering, **options))
    return Picture(xy, labels, classes(simple_shot), after, len(own))
