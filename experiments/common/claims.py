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
      stated: Date on which the recipe took these margins, but that of the claim on the better of
        neighbours and a probe of pixels.

    Returns:
      Four claims on the metrics of `ImageEvaluator.compare`.
    """
    source = f"{source}: features are better; data and margin are this repository's"
    return (
        Claim("kNN on the features is above kNN on raw pixels by 2 points",
              "knn_over_pixels", ">=", 0.02, source,
              stated=stated, null="knn_untrained_over_pixels"),
        Claim("kNN is above the untrained encoder's by 2 points",
              "knn_over_untrained", ">=", 0.02, source, stated=stated, null_run="strangers"),
        Claim("A linear probe is above kNN and a linear probe on raw pixels by 1 point",
              "linear_probe_over_best_of_pixels", ">=", 0.01, f"{source}; changed after the first "
              "measurement from a probe on pixels alone, above which kNN on pixels was too",
              stated="2026-11-30", null="linear_probe_untrained_over_best_of_pixels"),
        Claim("A linear probe is above the untrained encoder's by 1 point",
              "linear_probe_over_untrained", ">=", 0.01, source,
              stated=stated, null_run="strangers"),
    )  # fmt: skip
