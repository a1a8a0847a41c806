"""Episodes of a config: settings, methods by name, options chosen on validation episodes."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.fewshot.features import Features, Labelled
from rml.errors import UserError, unknown
from rml.fewshot.alpha_tim import alpha_tim
from rml.fewshot.bdcspn import bd_cspn
from rml.fewshot.episodes import Episodes, class_index, require_classes, sample_episodes
from rml.fewshot.evaluate import evaluate_episodes, mean_and_interval, sweep
from rml.fewshot.kmeans import hard_kmeans, soft_kmeans
from rml.fewshot.kmodes import k_modes
from rml.fewshot.label_propagation import label_propagation
from rml.fewshot.laplacian_shot import laplacian_shot
from rml.fewshot.preprocess import transform
from rml.fewshot.pt_map import pt_map
from rml.fewshot.simpleshot import simple_shot
from rml.fewshot.tim import tim, tim_adm
from rml.fewshot.transductive_clustering import transductive_clustering
from rml.training import make_mesh

METHODS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        simple_shot, soft_kmeans, hard_kmeans, k_modes, laplacian_shot, transductive_clustering,
        tim, tim_adm, alpha_tim, bd_cspn, pt_map, label_propagation,
    )
}  # fmt: skip


class Setting(NamedTuple):
    """What kind of episodes.

    Attributes:
      ways: Classes.
      shots: Support images a class.
      concentration: Of the Dirichlet distribution of the queries' classes; None for balanced.
    """

    ways: int
    shots: int
    concentration: float | None = None

    @property
    def name(self) -> str:
        """For metrics, such as `5way_1shot` or `5way_1shot_imbalanced`."""
        balance = "" if self.concentration is None else "_imbalanced"
        return f"{self.ways}way_{self.shots}shot{balance}"

    @property
    def title(self) -> str:
        """For figures."""
        balance = "" if self.concentration is None else ", imbalanced"
        return f"{self.ways}-way {self.shots}-shot{balance}"


class Search(NamedTuple):
    """Accuracies of a search on validation episodes.

    Attributes:
      values: Candidates of each option.
      accuracies: Mean accuracy for each combination, one axis an option, in the order of `values`.
      intervals: Half widths of their 95% intervals.
    """

    values: dict[str, Sequence[Any]]
    accuracies: np.ndarray
    intervals: np.ndarray


def settings(config: Any) -> list[Setting]:
    """Every kind of episode that a config asks for, balanced ones first."""
    episodes = config.episodes
    concentrations = [None, episodes.concentration] if episodes.imbalanced else [None]
    return [
        Setting(ways, shots, concentration)
        for concentration, ways, shots in itertools.product(
            concentrations, episodes.ways, episodes.shots
        )
    ]


def transformed(features: Features, kind: str) -> Features:
    """Features transformed by `kind` (UN, L2N, CL2N), centred by the base features' mean."""
    center = jnp.mean(features.base[0], axis=0)
    return Features(*((transform(x, kind=kind, center=center), y) for x, y in features))


def draw_episodes(
    labelled: Labelled, config: Any, setting: Setting, *, count: int, seed: int = 0
) -> Episodes:
    """Episodes of a setting, the same ones for every method."""
    return sample_episodes(
        jax.random.key(config.seed + seed),
        class_index(labelled[1], int(labelled[1].max()) + 1),
        episodes=count,
        ways=setting.ways,
        shots=setting.shots,
        queries=config.episodes.queries,
        concentration=setting.concentration,
    )


def find_method(name: str) -> Callable[..., Any]:
    """The method of a name."""
    if name not in METHODS:
        raise unknown("few-shot method", name, METHODS)
    return METHODS[name]


def measure(
    name: str, options: Mapping[str, Any], x: Any, drawn: Episodes, config: Any, setting: Setting
) -> tuple[float, float]:
    """A method's mean accuracy and the half width of its 95% interval.

    Args:
      name: A key of `METHODS`.
      options: Of the method, one value each.
      x: Features.
      drawn: Episodes of the setting.
      config: The run's config.
      setting: What kind of episodes.

    Returns:
      Mean and half width, as shares.
    """
    method = partial(find_method(name), **options)
    return mean_and_interval(
        evaluate_episodes(method, x, drawn, ways=setting.ways, mesh=make_mesh(config.mesh))
    )


def choose(
    name: str, options: Any, x: Any, drawn: Episodes, config: Any, setting: Setting
) -> tuple[dict[str, Any], Search | None]:
    """The best of a method's candidate options on validation episodes.

    Args:
      name: A key of `METHODS`.
      options: Of the method; a tuple holds candidates. Numbers with a point are searched in one
        vectorised call, others one after the other.
      x: Features of the validation part.
      drawn: Validation episodes of the setting.
      config: The run's config.
      setting: What kind of episodes.

    Returns:
      One value for each option (the first of equally good ones), and the search if there was one.
    """
    options = options.to_dict() if isinstance(options, ConfigDict) else dict(options)
    values: dict[str, Sequence[Any]] = {
        k: tuple(v) for k, v in options.items() if isinstance(v, tuple | list)
    }
    fixed = {k: v for k, v in options.items() if k not in values}
    if not values:
        return fixed, None
    traced = [k for k, v in values.items() if all(isinstance(one, float) for one in v)]
    static = [k for k in values if k not in traced]
    values = {k: values[k] for k in (*static, *traced)}
    axes = jnp.meshgrid(*(jnp.array(values[k]) for k in traced), indexing="ij")
    grid = {k: axis.ravel() for k, axis in zip(traced, axes, strict=True)}
    means, halves = [], []
    for combination in itertools.product(*(values[k] for k in static)):
        method = partial(find_method(name), **fixed, **dict(zip(static, combination, strict=True)))

        def under(hyperparameters: Any, method: Any = method) -> Any:
            return partial(method, **hyperparameters)

        found = np.asarray(
            sweep(under, grid, x, drawn, ways=setting.ways, mesh=make_mesh(config.mesh))
        )
        table = [mean_and_interval(column) for column in found.reshape(len(found), -1).T]
        mean, half = zip(*table, strict=True)
        means.append(mean)
        halves.append(half)
    shape = [len(v) for v in values.values()]
    accuracies, intervals = (np.asarray(rows).reshape(shape) for rows in (means, halves))
    best = np.unravel_index(np.argmax(accuracies), shape)
    chosen = {k: v[int(i)] for (k, v), i in zip(values.items(), best, strict=True)}
    return {**fixed, **chosen}, Search(values, accuracies, intervals)


def check_classes(labels: Mapping[str, Any], config: Any, wanted: Sequence[Setting]) -> None:
    """Raises `UserError` unless the parts' classes suffice for all wanted kinds of episodes.

    Args:
      labels: Labels of each part of which episodes are drawn.
      config: The run's config.
      wanted: Kinds of episodes.
    """
    for part, own in labels.items():
        index = class_index(own)
        for setting in wanted:
            sizes = {
                "ways": setting.ways, "shots": setting.shots, "queries": config.episodes.queries
            }  # fmt: skip
            try:
                require_classes(index, **sizes)
            except UserError as error:
                raise UserError(f"config.episodes, {part} classes: {error}") from None
