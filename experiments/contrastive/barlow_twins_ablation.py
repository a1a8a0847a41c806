"""Barlow Twins' choices, one at a time: weight of redundancy, width, batch, augmentation.

Zbontar et al., arXiv:2103.03230. Variants are compared as `contrastive.ablation` does.
"""

from typing import Any

from experiments.contrastive import ablation, ablation_figures
from rml.training import Claim, RunDirectory

SOURCE = (
    "Barlow Twins (arXiv:2103.03230), Section 4, Ablations; data, sizes and margins are this "
    "repository's"
)
CLAIMS = (
    Claim("Without the redundancy term a linear probe loses",
          "linear_probe_over_redundancy_0", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_over_again",
          says="The redundancy term changes a linear probe's accuracy by {mean:+.1p} points "
          "({linear_probe_base:.1%} against {linear_probe_redundancy_0:.1%} without)"),
    Claim("256 dimensions of projections are worth half a point of a linear probe over 32",
          "linear_probe_over_width_32", ">=", 0.005, SOURCE, stated="2026-11-27",
          null="linear_probe_over_again",
          says="256 dimensions of projections change it by {mean:+.1p} points beside 32"),
)  # fmt: skip
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    **ablation.CAPTIONS,
    "redundancy.png": "Test accuracy against the weight of the redundancy term, with 95% "
    "intervals over seeds.",
    "width.png": "Test accuracy against the width of the projections, with 95% "
    "intervals over seeds.",
}
PICTURE = ablation.PICTURE


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws accuracy against weight and width."""
    metrics = ablation.run(config, run)
    for file, key, label in (
        ("redundancy.png", "loss.redundancy", "weight of the redundancy term"),
        ("width.png", "head.features", "dimensions of projections"),
    ):
        ablation_figures.draw_against(config, run, metrics, file, key, label)
    return metrics
