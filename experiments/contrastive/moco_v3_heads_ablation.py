"""The heads of MoCo v3 and the temperature of its loss, one choice at a time.

Chen et al., arXiv:2104.02057. Variants are compared as `contrastive.ablation` does.
"""

from typing import Any

from experiments.contrastive import ablation, ablation_figures
from rml.training import Claim, RunDirectory

SOURCE = "MoCo v3 (arXiv:2104.02057), Section 5.2; data, sizes and margins are this repository's"
CLAIMS = (
    Claim("Without BatchNorm in the heads a linear probe loses",
          "linear_probe_over_no_batch_norm", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_over_again",
          says="BatchNorm in the heads changes a linear probe's accuracy by {mean:+.1p} points "
          "({linear_probe_base:.1%} against {linear_probe_no_batch_norm:.1%} without)"),
)  # fmt: skip
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    **ablation.CAPTIONS,
    "temperature.png": "Test accuracy against the temperature of the loss, with 95% intervals "
    "over seeds.",
}
PICTURE = ablation.PICTURE


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws accuracy against the temperature."""
    metrics = ablation.run(config, run)
    ablation_figures.draw_against(
        config, run, metrics, "temperature.png", "loss.temperature", "temperature"
    )
    return metrics
