"""MoCo v3's choices, one at a time: random patches, predictor, momentum, positions, batch.

Chen et al., arXiv:2104.02057. Variants are compared as `contrastive.ablation` does.
"""

from typing import Any

from experiments.contrastive import ablation, ablation_figures
from rml.training import Claim, RunDirectory

SOURCE = (
    "MoCo v3 (arXiv:2104.02057), Sections 4.2 and 5.2; data, sizes and margins are this "
    "repository's"
)
CLAIMS = (
    Claim("A random projection of patches is at least one that is trained by a linear probe",
          "linear_probe_over_trained_patches", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_untrained_over_trained_patches",
          says="Leaving the projection of patches random changes a linear probe's accuracy by "
          "{mean:+.1p} points ({linear_probe_base:.1%} against "
          "{linear_probe_trained_patches:.1%} trained)"),
    Claim("The predictor is worth half a point of a linear probe",
          "linear_probe_over_no_predictor", ">=", 0.005, SOURCE, stated="2026-11-27",
          null="linear_probe_over_again", says="The predictor changes it by {mean:+.1p} points"),
    Claim("Without momentum, keys by the trained encoder itself, a linear probe loses 1 point",
          "linear_probe_over_momentum_0", ">=", 0.01, SOURCE, stated="2026-11-27",
          null="linear_probe_over_again",
          says="Keys of a slowly moving encoder change it by {mean:+.1p} points"),
)  # fmt: skip
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    **ablation.CAPTIONS,
    "momentum.png": "Test accuracy against the momentum of the keys' encoder, with 95% "
    "intervals over seeds.",
}
PICTURE = ablation.PICTURE


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws accuracy against the momentum."""
    metrics = ablation.run(config, run)
    ablation_figures.draw_against(
        config, run, metrics, "momentum.png", "momentum.start", "momentum"
    )
    return metrics
