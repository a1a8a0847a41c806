"""Families of claims that several recipes make, and the data that claims are judged on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments import registry
from rml.training import Claim

STRANGERS = {"strangers": {"augment.exchange": True}}
"""The null of what is learned from views or labels: those of other images of the batch."""


def with_bounds(name: str, interval: Iterable[Any]) -> dict[str, float]:
    """A metric with the ends of its own interval, by the names that `Claim` reads.

    Args:
      name: Name of the metric.
      interval: Its value, lower and upper end, such as a `MeanInterval`.

    Returns:
      `name`, `<name>_low` and `<name>_high`.
    """
    ends = zip(("", "_low", "_high"), interval, strict=True)
    return {f"{name}{end}": float(value) for end, value in ends}


def other_data(config: Any, file: str | Path) -> str:
    """The name of a config's data where the thresholds of its claims were set on other data.

    Thresholds are of the data that the config's file names. A file of a user's own that takes a
    recipe of this repository is held against all of the recipe's configs.

    Args:
      config: The run's config.
      file: The file it comes from.

    Returns:
      The name, empty where the claims can be judged.
    """
    name = config.get("data", {}).get("name")
    ours = [registry.ROOT / path for path in registry.config_files()]
    if Path(file).resolve() in ours:
        files = [Path(file)]
    else:
        area = config.experiment.partition(".")[0]
        files = [path for path in ours if path.parent.name in (area, "pods")]
    configs = [registry.read_config(str(path)) for path in files]
    names = [
        own.data.get("name")
        for own in configs
        if own.experiment == config.experiment and "data" in own
    ]
    return name if name and names and name not in names else ""


def features_are_learned(source: str, *, stated: str) -> tuple[Claim, ...]:
    """Claims that pretraining beats raw pixels and the same encoder untrained.

    Where training is absent the untrained encoder stands beside pixels. Where it learns nothing of
    images, it is trained on views of strangers: a recipe has `STRANGERS` among its `NULLS`.

    Args:
      source: The paper; data and margins are this repository's.
      stated: Date on which the recipe took these margins, but that of the headline.

    Returns:
      Four claims on the metrics of `ImageEvaluator.compare`.
    """
    source = f"{source}: features are better; data and margin are this repository's"
    return (
        Claim("A linear probe is above kNN and a linear probe on raw pixels",
              "linear_probe_over_best_of_pixels", ">=", 0.0, f"{source}; margin 0 since 2026-12-04",
              stated="2026-12-04", null="linear_probe_untrained_over_best_of_pixels",
              says="Learned features change a linear probe's accuracy by {mean:+.1p} points, to "
              "{linear_probe:.1%}, over the better of a probe and neighbours on raw pixels"),
        Claim("kNN on the features is above kNN on raw pixels by 2 points",
              "knn_over_pixels", ">=", 0.02, source,
              stated=stated, null="knn_untrained_over_pixels",
              says="They change the accuracy of neighbours by {mean:+.1p} points over raw pixels "
              "({knn:.1%} against {knn_pixels:.1%})"),
        Claim("kNN is above the untrained encoder's by 2 points",
              "knn_over_untrained", ">=", 0.02, source, stated=stated, null_run="strangers",
              says="Training changes the accuracy of neighbours by {mean:+.1p} points over the "
              "untrained encoder"),
        Claim("A linear probe is above the untrained encoder's by 1 point",
              "linear_probe_over_untrained", ">=", 0.01, source,
              stated=stated, null_run="strangers",
              says="Training changes a linear probe's accuracy by {mean:+.1p} points over the "
              "untrained encoder ({linear_probe:.1%} against {linear_probe_untrained:.1%})"),
    )  # fmt: skip
