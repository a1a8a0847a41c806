"""SupCon's choices, one at a time: where positives are averaged, temperature, batch, projector.

Khosla et al., arXiv:2004.11362. Variants are compared as `contrastive.ablation` does.
"""

from typing import Any

from experiments.contrastive import ablation, ablation_figures
from rml.training import Claim, RunDirectory

SOURCE = (
    "SupCon (arXiv:2004.11362), Section 3.2.2 and hyperparameter stability in Section 4; data, "
    "sizes and margins are this repository's"
)
CLAIMS = (
    Claim("The mean over positives is worth accuracy of a linear probe outside the logarithm",
          "linear_probe_over_form_in", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_over_again",
          says="The mean over positives outside the logarithm changes a linear probe's accuracy by "
          "{mean:+.1p} points ({linear_probe_base:.1%} against {linear_probe_form_in:.1%} inside)"),
    Claim("The temperature matters: a linear probe loses half a point at a temperature of 1",
          "linear_probe_over_temperature_1", ">=", 0.005, SOURCE, stated="2026-11-27",
          null="linear_probe_over_again",
          says="The lower temperature changes it by {mean:+.1p} points beside one of 1"),
    Claim("A batch of 64 costs a linear probe at most 1 point, training on as many images",
          "linear_probe_over_batch_64", "<=", 0.01, SOURCE, stated="2026-11-27",
          null="linear_probe_over_untrained",
          says="The larger batch changes it by {mean:+.1p} points beside batches of 64"),
)  # fmt: skip
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    **ablation.CAPTIONS,
    "temperature.png": "Test accuracy against the temperature, with 95% intervals over seeds.",
}
PICTURE = ablation.PICTURE


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws accuracy against the temperature."""
    metrics = ablation.run(config, run)
    ablation_figures.draw_against(
        config, run, metrics, "temperature.png", "loss.temperature", "temperature"
    )
    return metrics
