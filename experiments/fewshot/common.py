"""What the few-shot recipes share: images of each part, features of them, episodes, accuracy."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.common.claims import with_bounds
from experiments.common.class_parts import num_classes
from experiments.common.evaluators import Labelled, encode
from experiments.common.selection import at_edge
from rml import data, fewshot
from rml.data.classes import PARTS
from rml.errors import UserError, unknown
from rml.fewshot import Choice, Episodes, Search, Setting
from rml.fewshot.preprocess import KINDS, shift_queries
from rml.ops.intervals import t_interval
from rml.training import Progress, make_mesh
from rml.training.processes import is_primary

Features = dict[str, Labelled]
"""Features and labels, from 0, of each of `PARTS`."""
SHIFTED = "shifted_simple_shot"
"""Name of `shifted` among the methods."""


def num_base(config: Any) -> int:
    """Number of base classes, known without opening data."""
    return num_classes(config, "base")


def encode_parts(
    config: Any, parts: Mapping[str, data.Source], encoder: Callable[[Any], Any]
) -> Features:
    """Features of the images of each part."""
    size = config.features.batch_size
    return {part: encode(encoder, parts[part], batch_size=size) for part in PARTS}


def check_transform(config: Any) -> None:
    """Raises `UserError` unless `features.transform` is known, before features are made."""
    if config.features.transform not in KINDS:
        raise unknown("features.transform", config.features.transform, KINDS)


def check_shots(config: Any) -> None:
    """Raises `UserError` unless 1 shot, which claims are about, is among those of the episodes."""
    if 1 not in config.episodes.shots:
        raise UserError(f"episodes.shots is {tuple(config.episodes.shots)}, expected 1 among them")


def transformed(config: Any, features: Features) -> Features:
    """Features transformed as `features.transform` says, centred by the base features' mean."""
    center = jnp.mean(features["base"][0], axis=0)
    change = partial(fewshot.transform, kind=config.features.transform, center=center)
    return {part: (change(x), y) for part, (x, y) in features.items()}


def counts(config: Any) -> dict[Setting, int]:
    """Number of episodes of every kind that `episodes.kinds` names, balanced ones first."""
    kinds = sorted(config.episodes.kinds.values(), key=lambda kind: (kind.ways, kind.shots))
    return {
        Setting(kind.ways, kind.shots, kind.queries, concentration): kind.count
        for concentration in (None, config.episodes.concentration)
        for kind in kinds
        if concentration is None or kind.imbalanced
    }


def validation_setting(config: Any, setting: Setting) -> Setting:
    """Of which kind validation episodes are: balanced, of `validation_ways` at most if given."""
    ways = min(setting.ways, config.episodes.get("validation_ways", setting.ways))
    return setting._replace(ways=ways, concentration=None)


def settings(config: Any) -> list[Setting]:
    """Every kind of episode that a config asks for, balanced ones first."""
    episodes = config.episodes
    if "kinds" in episodes:
        return list(counts(config))
    imbalanced = episodes.get("imbalanced", False)  # base training has balanced ones alone
    concentrations = [None, episodes.concentration] if imbalanced else [None]
    kinds = itertools.product(concentrations, episodes.ways, episodes.shots)
    return [Setting(ways, shots, episodes.queries, balance) for balance, ways, shots in kinds]


def check_classes(labels: Mapping[str, Any], wanted: Sequence[Setting]) -> None:
    """Raises `UserError` unless the labels of each part suffice for all wanted kinds."""
    for part, own in labels.items():
        index = fewshot.class_index(own)
        for ways, shots, queries, _ in wanted:
            try:
                fewshot.require_classes(index, ways=ways, shots=shots, queries=queries)
            except UserError as error:
                raise UserError(f"config.episodes, {part} classes: {error}") from None


def check_parts(config: Any, labels: Mapping[str, Any]) -> None:
    """Raises `UserError` unless validation and novel classes suffice for a config's episodes."""
    wanted = settings(config)
    chosen_on = [validation_setting(config, setting) for setting in wanted]
    check_classes({"validation": labels["validation"]}, chosen_on)
    check_classes({"novel": labels["novel"]}, wanted)


def draw_episodes(
    config: Any, labelled: Labelled, setting: Setting, *, count: int, seed: int = 0
) -> Episodes:
    """Draws episodes of a setting, the same ones for every method."""
    key = jax.random.key(config.seed + seed)
    return fewshot.sample_episodes(key, labelled[1], episodes=count, **setting._asdict())


def evaluate(
    config: Any, method: Callable[..., Array], x: Array, drawn: Episodes, setting: Setting
) -> Float[np.ndarray, " e"]:
    """Computes a method's accuracy in each episode of features."""
    mesh = make_mesh(config.mesh)
    found = fewshot.evaluate_episodes(method, x, drawn, ways=setting.ways, mesh=mesh)
    return np.asarray(found, np.float64)


def difference(
    name: str, first: Float[np.ndarray, " e"], second: Float[np.ndarray, " e"]
) -> dict[str, float]:
    """Compares two methods that were measured on the same episodes.

    Hard episodes are hard for both, so that the interval is that of the paired differences.

    Args:
      name: Name of the metric.
      first: Accuracy of a method in each episode.
      second: Accuracy in each episode of the method that it is held against.

    Returns:
      The difference of the mean accuracies, and as `<name>_low` and `<name>_high` the ends of
      Student's 95% interval over episodes.
    """
    _, low, high = t_interval(first - second)
    return with_bounds(name, (first.mean() - second.mean(), low, high))


def choose(config: Any, setting: Setting, validation: Labelled) -> dict[str, Search]:
    """Searches the options of each compared method on validation episodes of a setting."""
    drawn = draw_episodes(config, validation, setting, count=config.episodes.validation, seed=1)
    mesh, progress = make_mesh(config.mesh), Progress(quiet=not is_primary(), unit="combination")
    options = {name: config.methods[name].to_dict() for name in config.compared}
    total, done = sum(map(fewshot.combinations, options.values())), 0

    def search(name: str) -> Search:
        def evaluated(count: int, best: float) -> None:
            nonlocal done
            done += count
            progress.show({"validation accuracy": best})
            progress.advance(done)

        method = fewshot.find_method(name)
        return fewshot.search(
            method, options[name], validation[0], drawn,
            ways=setting.ways, mesh=mesh, evaluated=evaluated,
        )  # fmt: skip

    progress.note(f"{setting.title}: searching the options of {len(options)} methods")
    progress.start(0, total)
    try:
        return {name: search(name) for name in config.compared}
    finally:
        progress.stop()


def edges(options: Mapping[str, Any], chosen: Mapping[str, Any], place: str) -> dict[str, float]:
    """Tells of each number among the options whether it is the smallest or largest candidate.

    Beside those a better one may lie. Of an option with one or two candidates it says nothing.

    Args:
      options: Options of a method; a tuple or list holds candidates.
      chosen: Chosen value of each.
      place: End of the metrics' names: kind of episodes and method.

    Returns:
      `<option>_at_edge_<place>`, 1 or 0.
    """
    found = {}
    for name, value in options.items():
        values = set(value) if isinstance(value, tuple | list) else set()
        if len(values) > 2 and all(isinstance(one, int | float) for one in values):
            found[f"{name}_at_edge_{place}"] = float(at_edge(chosen[name], values))
    return found


def compare(
    config: Any, setting: Setting, novel: Labelled, searches: Mapping[str, Search]
) -> dict[str, Float[np.ndarray, " e"]]:
    """Accuracy of every method in each novel episode of a setting, the same for all of them."""
    drawn = draw_episodes(config, novel, setting, count=config.episodes.count)
    found = {}
    for name, search in searches.items():
        started = time.perf_counter()
        method = partial(fewshot.find_method(name), **search.options)
        found[name] = evaluate(config, method, novel[0], drawn, setting)
        mean, half = fewshot.mean_and_interval(found[name])
        Progress().note(
            f"{setting.title}: {name} {100 * mean:.2f} ± {100 * half:.2f} "
            f"({time.perf_counter() - started:.1f} s)"
        )
    return found


def shifted(support: Any, support_labels: Any, query: Any, **options: Any) -> Any:
    """The nearest class mean after the shift of the queries with which the clustering begins."""
    return fewshot.simple_shot(support, support_labels, shift_queries(support, query), **options)


def find_method(name: str) -> Callable[..., Array]:
    """Finds a method of `rml.fewshot`, or `shifted`, by its name."""
    return shifted if name == SHIFTED else fewshot.find_method(name)


def accuracies(
    config: Any, name: str, tried: Sequence[Choice], x: Array, drawn: Episodes, ways: int
) -> np.ndarray:
    """A method's accuracy in each episode with each choice of options, `[e, choices]`."""
    method, mesh = find_method(name), make_mesh(config.mesh)
    return fewshot.accuracies(method, tried, x, drawn, ways=ways, mesh=mesh)
