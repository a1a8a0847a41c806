"""Figures of the recipe on coefficients of blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.common import figures
from experiments.merging.judging import Reading, over_targets
from rml.ops import t_interval, trees
from rml.training import RunDirectory

INTERVAL = "error bars: 95% interval over test images"
CAPTIONS = {
    "addition.png": "One model for eight tasks: mean accuracy over that of experts (%); "
    f"{INTERVAL}.",
    "coefficients.png": "Learned coefficients of each task's vector (rows) by block; numbers of "
    "layers come last.",
    "cosines.png": "Cosines between task vectors, all parameters together.",
    "shots.png": "Targets with few labels: accuracy over that of the expert with all labels (%), "
    "mean over targets, against images a class.",
    "parts.png": "Few parameters on one target, learned from a share of its images and from all: "
    f"accuracy over that of the expert (%); {INTERVAL}.",
}
NAMES = {
    "base": "base", "average": "average", "task_arithmetic": "task arithmetic", "ties": "TIES",
    "adamerging": "AdaMerging", "isotropic": "one a vector", "atlas": "aTLAS",
    "selected": "aTLAS, selected", "shuffled": "aTLAS, shuffled", "probe": "linear probe",
    "cache": "cache", "lora": "LoRA", "full": "fine-tuning", "parts": "aTLAS by parts",
}  # fmt: skip


def draw(
    run: RunDirectory,
    tasks: Sequence[str],
    added: Mapping[str, Reading],
    coefficients: Any,
    cosines: Any,
    shots: Mapping[int, Mapping[str, list[Reading]]],
    parts: Mapping[str, list[Reading]],
) -> None:
    """Draws all figures."""
    order = sorted(added, key=lambda name: added[name].normalised.mean())
    ends = [t_interval(added[name].normalised) for name in order]
    figures.bars(
        run.figure("addition.png"), [NAMES[name] for name in order],
        {"accuracy": [100 * float(own.mean) for own in ends]},
        {"accuracy": [50 * float(own.high - own.low) for own in ends]},
        ylabel="accuracy over the experts' (%)", decimals=1, cut=True,
    )  # fmt: skip
    names, table = by_block(coefficients)
    figures.heatmap(
        run.figure("coefficients.png"), table, list(tasks), names, xlabel="block", ylabel="task",
        value_label="coefficient",
    )  # fmt: skip
    figures.heatmap(
        run.figure("cosines.png"), np.asarray(cosines), list(tasks), list(tasks), xlabel="task",
        ylabel="task", value_label="cosine",
    )  # fmt: skip
    counts = sorted(shots)
    curves: dict[str, Any] = {}
    for way in shots[counts[0]]:
        values = [over_targets([one.normalised for one in shots[n][way]]).mean() for n in counts]
        curves[NAMES[way]] = (np.array(counts), 100 * np.array(values))
    figures.curves(
        run.figure("shots.png"), curves, "images a class", "accuracy over the expert's (%)"
    )
    ways = [way.removesuffix("_all") for way in parts if way.endswith("_all")]
    both = {
        end: [t_interval(parts[f"{way}_{end}"][0].normalised) for way in ways]
        for end in ("share", "all")
    }
    titles = {"share": "a share of the images", "all": "all images"}
    figures.bars(
        run.figure("parts.png"), [NAMES.get(way, f"{way.replace('_', ' ')} parts") for way in ways],
        {titles[end]: [100 * float(own.mean) for own in each] for end, each in both.items()},
        {titles[end]: [50 * float(own.high - own.low) for own in each]
         for end, each in both.items()},
        ylabel="accuracy over the expert's (%)", decimals=1, cut=True,
        reference=("base", 100 * float(parts["base"][0].normalised.mean())),
    )  # fmt: skip


def by_block(coefficients: Any) -> tuple[list[str], np.ndarray]:
    """Names of blocks, and their coefficients [tasks, blocks], layers of one kind side by side."""
    names: list[str] = []
    columns = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(coefficients):
        name = trees.leaf_name(path).removeprefix("blocks.")
        if trees.is_stacked(path):
            names += [f"{name} {i + 1}" for i in range(leaf.shape[1])]
        else:
            names.append(name)
        columns.append(np.asarray(leaf).reshape(len(leaf), -1))
    return names, np.concatenate(columns, axis=1)
