"""What is measured in one split of the classes: options chosen in it, and accuracies with them."""

import time
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from experiments.fewshot import common
from experiments.fewshot.compare import REGULARISED, UNREGULARISED
from experiments.fewshot.features import load_features
from rml import fewshot
from rml.fewshot import Choice, Setting
from rml.training import Progress, RunDirectory


def measure_split(
    config: Any, inner: RunDirectory, seed: int
) -> tuple[dict[str, float], dict[Setting, dict[str, Choice]]]:
    """Accuracies of every method in one split, and the options that were chosen in it.

    The second are by kind of validation episodes, which several kinds of episodes may share.
    """
    own = config.copy_and_resolve_references()
    own.seed, own.classes.seed = seed, config.classes.seed + seed
    features = load_features(own, inner)
    # Splits have different numbers of rows: of one number the programs of the first serve all.
    rows = 1 << (sum(len(x) for x, _ in features.values()) - 1).bit_length()
    features = {
        part: (jnp.pad(x, ((0, rows - len(x)), (0, 0))), y) for part, (x, y) in features.items()
    }
    metrics: dict[str, float] = {}
    chosen: dict[Setting, dict[str, Choice]] = {}
    reached: dict[Setting, dict[str, float]] = {}
    for setting, count in common.counts(own).items():
        on = common.validation_setting(own, setting)
        started = time.perf_counter()
        if on not in chosen:
            chosen[on], reached[on] = choose(own, on, features["validation"])
        if setting.concentration is None:
            metrics |= describe(own, setting, chosen[on], reached[on])
        x, ways = features["novel"][0], setting.ways
        drawn = common.draw_episodes(own, features["novel"], setting, count=count)
        for name, choice in chosen[on].items():
            found = common.accuracies(own, name, [choice], x, drawn, ways)
            metrics[f"accuracy_{setting.name}_{name}"] = float(found.mean())
        if setting == judged(own):
            choice = chosen[on][REGULARISED]
            without = Choice(choice.fixed, choice.floats | {"laplacian_weight": 0.0})
            found = common.accuracies(own, REGULARISED, [without], x, drawn, ways)
            metrics[f"accuracy_{setting.name}_{UNREGULARISED}"] = float(found.mean())
        Progress().note(
            f"{inner.path.name}, {setting.title}: {time.perf_counter() - started:.1f} s"
        )
    return metrics, chosen


def choose(
    config: Any, setting: Setting, validation: common.Labelled
) -> tuple[dict[str, Choice], dict[str, float]]:
    """The choice of each method that is best on validation episodes, and its accuracy on them."""
    drawn = common.draw_episodes(config, validation, setting, count=config.episodes.validation)
    best: dict[str, Choice] = {}
    reached: dict[str, float] = {}
    for name in config.compared:
        tried = fewshot.choices(config.methods[name].to_dict())
        means = common.accuracies(config, name, tried, validation[0], drawn, setting.ways).mean(0)
        best[name], reached[name] = tried[int(means.argmax())], float(means.max())
    return best, reached


def describe(
    config: Any, setting: Setting, best: Mapping[str, Choice], reached: Mapping[str, float]
) -> dict[str, float]:
    """Describes by metrics what was chosen for a kind of episodes.

    Args:
      config: The run's config.
      setting: The kind of episodes that the choices are for.
      best: Choice of each method.
      reached: Its accuracy on validation episodes.

    Returns:
      That accuracy, the options that are floats, and which are at the edge of their candidates.
    """
    metrics: dict[str, float] = {}
    for name, choice in best.items():
        place = f"{setting.name}_{name}"
        metrics[f"validation_{place}"] = reached[name]
        metrics |= {f"chosen_{place}_{k}": v for k, v in choice.floats.items()}
        metrics |= common.edges(config.methods[name].to_dict(), choice.options, place)
    return metrics


def judged(config: Any) -> Setting:
    """Of which kind the episodes are that most claims are about."""
    kind = config.episodes.kinds[config.episodes.judged]
    return Setting(kind.ways, kind.shots, kind.queries)
