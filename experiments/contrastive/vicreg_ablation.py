"""VICReg's terms, one at a time: variance, invariance and covariance, and width of the expander.

Bardes et al., arXiv:2105.04906. Variants are compared as `contrastive.ablation` does. The loss
brings the standard deviation of each dimension of the projections to 1. Zero is a collapse.
"""

from typing import Any

from experiments.common.variants import BASE, in_order, written
from experiments.contrastive import ablation, ablation_figures
from rml.training import Claim, RunDirectory

SOURCE = (
    "VICReg (arXiv:2105.04906), its ablations of terms and coefficients; data, sizes and margins "
    "are this repository's"
)
CLAIMS = (
    Claim("Without the variance term a linear probe loses",
          "linear_probe_over_no_variance", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_over_again",
          says="The variance term changes a linear probe's accuracy by {mean:+.1p} points "
          "({linear_probe_base:.1%} against {linear_probe_no_variance:.1%} without)"),
    Claim("The variance term keeps projections from collapse: a standard deviation of at least 0.5",
          "deviation_base", ">=", 0.5, SOURCE, stated="2026-11-27",
          null="deviation_no_variance",
          says="Projections have a standard deviation of {mean:.2f}, without the variance term "
          "{deviation_no_variance:.2f}"),
    Claim("Without the covariance term a linear probe loses half a point",
          "linear_probe_over_no_covariance", ">=", 0.005, SOURCE, stated="2026-11-27",
          null="linear_probe_over_again",
          says="The covariance term changes a linear probe's accuracy by {mean:+.1p} points"),
)  # fmt: skip
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    **ablation.CAPTIONS,
    "deviations.png": "Standard deviation of the test images' projections by variant, mean over "
    "dimensions and seeds and 95% interval over seeds.",
}
PICTURE = ablation.PICTURE


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws how far projections spread."""
    metrics = ablation.run(config, run)
    names = in_order((BASE, *config.variants))
    ablation_figures.draw_bars(
        run.figure("deviations.png"), [written(name) for name in names],
        {"projections": [f"deviation_{name}" for name in names]}, metrics,
        ylabel="standard deviation",
    )  # fmt: skip
    return metrics
