"""The heads of MoCo v3 and the temperature of its loss, one choice at a time.

Chen et al., arXiv:2104.02057. Variants are compared as `contrastive.ablation` does.
"""

from typing import Any

from experiments.contrastive import ablation, ablation_figures
from rml.training import Claim, RunDirectory

SOURCE = "MoCo v3 (arXiv:2104.02057), Section 5.2; data, sizes and margins are this repository's"
CLAIMS = (
    Claim("Without BatchNorm in the heads a linear probe loses 1 point",
          "linear_probe_over_no_batch_norm", ">=", 0.01, SOURCE, stated="2026-12-01",
          null="linear_probe_over_again"),
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
