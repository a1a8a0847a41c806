"""Figures of the recipe on random features."""

from typing import Any

import numpy as np

from experiments.common import figures
from rml.attention import MODELS
from rml.training import RunDirectory

NAMES = dict(zip(MODELS, ("attention", "attention, biased", "MLP"), strict=True))


def draw(config: Any, run: RunDirectory, errors: Any, ratio: Any, distances: Any) -> None:
    """Draws errors against examples and mixtures, examples against keys, distances against heads.

    Args:
      config: The run's config.
      run: Its directory.
      errors: Relative errors [replicates, models, sizes, targets].
      ratio: Examples needed, MLP over attention, [replicates, keys, degrees].
      distances: Distance to the kernel [replicates, heads], by model.
    """
    names = list(config.targets)

    def curves(file: str, series: dict[str, Any], x: str, y: str, *, logy: bool = True) -> None:
        bands = {name: (at, v.mean(0), v.min(0), v.max(0)) for name, (at, v) in series.items()}
        figures.curves(run.figure(file), bands, x, y, logy=logy)

    for target in ("average_2", "weighted_1"):
        own = errors[..., names.index(target)]
        series = {NAMES[m]: (np.log2(config.sizes), own[:, i]) for i, m in enumerate(MODELS)}
        curves(f"{target}.png", series, "examples (log₂)", "relative error")
    mixed = [name for name in names if name.startswith("mixed_")]
    last = errors[:, :, -1][:, :, [names.index(name) for name in mixed]]
    weights = np.array([float(name.split("_")[1]) for name in mixed])
    series = {"biased over unbiased": (weights, last[:, 1] / last[:, 0])}
    curves("mixture.png", series, "weight of the identity", "ratio of errors", logy=False)
    for file, averages in (("averages.png", True), ("correlations.png", False)):
        chosen = [name for name in names if name.startswith("average_") == averages]
        own = errors[:, :, -1][:, :, [names.index(name) for name in chosen]]
        figures.bars(
            run.figure(file),
            [name.replace("_", " ") for name in chosen],
            {NAMES[m]: own[:, i].mean(0) for i, m in enumerate(MODELS)},
            {NAMES[m]: own[:, i].std(0) for i, m in enumerate(MODELS)},
            ylabel="relative error",
        )
    keys = np.log2(np.asarray(config.scaling.num_keys) + 1)
    series = {f"degree {p}": (keys, ratio[..., j]) for j, p in enumerate(config.scaling.degrees)}
    curves("needed.png", series, "keys and query (log₂)", "examples, MLP over attention")
    series = {NAMES[m]: (np.log2(config.limit.heads), own) for m, own in distances.items()}
    curves("kernel.png", series, "heads (log₂)", "relative distance")
