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
    Claim("A random projection of patches is at most half a point of a linear probe below one that "
          "is trained",
          "linear_probe_over_trained_patches", ">=", -0.005, SOURCE, stated="2026-11-27",
          null="linear_probe_untrained_over_trained_patches"),
    Claim("The predictor is worth half a point of a linear probe",
          "linear_probe_over_no_predictor", ">=", 0.005, SOURCE, stated="2026-11-27",
          null="linear_probe_over_again"),
    Claim("Without momentum, keys by the trained encoder itself, a linear probe loses 1 point",
          "linear_probe_over_momentum_0", ">=", 0.01, SOURCE, stated="2026-11-27",
          null="linear_probe_over_again"),
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
