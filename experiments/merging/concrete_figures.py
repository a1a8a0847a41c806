"""Figures of the recipe on concrete subspaces."""

from collections.abc import Mapping

import jax
import numpy as np

from experiments.common import figures
from experiments.merging.concrete_masks import Mask
from experiments.merging.judging import Reading
from rml.merging import expected_mask
from rml.ops import t_interval, trees
from rml.training import RunDirectory

CAPTIONS = {
    "methods.png": "One model for eight tasks: mean accuracy over that of experts (%) on images "
    "that no mask was learned from; error bars: 95% interval over images.",
    "steps.png": "The same of arithmetic behind the concrete mask against the steps that the mask "
    "was learned for; band: 95% interval over images. After 0 steps it is arithmetic at 0.3.",
    "entropy.png": "Mean entropy (nats) of predictions on unlabelled images, as masks are learned.",
    "kept.png": "Mean of the learned mask by kind of block and layer; what layers do not repeat is "
    "left out.",
}
NAMES = {
    "base": "base", "arithmetic": "arithmetic at 0.3", "tuned": "tuned arithmetic", "ties": "TIES",
    "random": "mask of coins", "deterministic": "mask without draws", "concrete": "concrete mask",
    "bits": "concrete mask as bits", "random_tuned": "coins, tuned arithmetic",
    "concrete_tuned": "concrete, tuned arithmetic",
    "adamerging": "AdaMerging", "random_adamerging": "coins, AdaMerging",
    "concrete_adamerging": "concrete, AdaMerging", "task_adamerging": "AdaMerging by task",
    "concrete_task_adamerging": "concrete, AdaMerging by task",
}  # fmt: skip


def draw(
    run: RunDirectory, found: Mapping[str, Reading], masks: Mapping[str, Mask],
    after: Mapping[int, Reading],
) -> None:  # fmt: skip
    """Draws all figures.

    Args:
      run: The run's directory.
      found: Readings by method.
      masks: Masks that were learned.
      after: Readings of masked arithmetic by the steps that its mask was learned for.
    """
    order = sorted(NAMES, key=lambda name: found[name].normalised.mean())
    ends = [t_interval(found[name].normalised) for name in order]
    figures.bars(
        run.figure("methods.png"), [NAMES[name] for name in order],
        {"accuracy": [100 * float(own[0]) for own in ends]},
        {"accuracy": [50 * float(own[2] - own[1]) for own in ends]},
        ylabel="accuracy over the experts' (%)", decimals=1, cut=True,
    )  # fmt: skip
    values = 100 * np.stack([own.normalised for own in after.values()])
    figures.curves(
        run.figure("steps.png"), {"concrete mask": (list(after), *figures.band(values))},
        "steps of learning the mask", "accuracy over the experts' (%)",
        reference=("tuned arithmetic", 100 * float(found["tuned"].normalised.mean())),
    )  # fmt: skip
    titles = {"concrete": "arithmetic", "deterministic": "without draws", "bilevel": "AdaMerging"}
    figures.curves(
        run.figure("entropy.png"),
        {title: (np.arange(1, len(masks[name].losses) + 1), masks[name].losses)
         for name, title in titles.items()},
        "step", "mean entropy (nats)",
    )  # fmt: skip
    kept = trees.over_blocks(lambda block: block.mean(), expected_mask(masks["concrete"].logits))
    leaves = [
        (trees.leaf_name(path).partition(".")[2], np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
        if trees.is_stacked(path)
    ]
    layers = [str(i + 1) for i in range(len(leaves[0][1]))]
    names, values = zip(*leaves, strict=True)
    figures.heatmap(
        run.figure("kept.png"), np.stack(values), names, layers,
        xlabel="layer", ylabel="block", value_label="mean of the mask",
    )  # fmt: skip
