"""MoCo's choices one at a time: queue, momentum, temperature, batch, head and augmentation.

Variants are compared as `contrastive.ablation` does: every one with the same seeds, all seeds,
momenta and temperatures of one length of the queue in one program.
"""

from typing import Any

from experiments.contrastive import ablation, ablation_figures
from rml.training import Claim, RunDirectory

SOURCE = (
    "Momentum Contrast (arXiv:1911.05722), Figure 3 and Section 4.1; data, sizes and margins are "
    "this repository's"
)
V2 = "MoCo v2 (arXiv:2003.04297), Table 1; data, sizes and margins are this repository's"
CLAIMS = (
    Claim("Without momentum, keys by the trained encoder itself, a linear probe loses 1 point",
          "linear_probe_over_momentum_0", ">=", 0.01, SOURCE, stated="2026-11-28",
          null="linear_probe_over_again"),
    Claim("A slowly moving encoder is worth half a point of a linear probe over a momentum of 0.9",
          "linear_probe_over_momentum_0_9", ">=", 0.005, SOURCE, stated="2026-11-26",
          null="linear_probe_over_again"),
    Claim("A queue of eight batches is worth half a point of a linear probe over one of one batch",
          "linear_probe_over_queue_256", ">=", 0.005, SOURCE, stated="2026-11-28",
          null="linear_probe_over_again"),
    Claim("A hidden layer in the head is worth half a point of a linear probe",
          "linear_probe_over_linear_head", ">=", 0.005, V2, stated="2026-11-29",
          null="linear_probe_over_again"),
    Claim("Erased rectangles are worth half a point of a linear probe",
          "linear_probe_over_not_erased", ">=", 0.005, V2, stated="2026-11-29",
          null="linear_probe_over_again"),
)  # fmt: skip
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    **ablation.CAPTIONS,
    "queue.png": "Test accuracy against the number of keys in the queue, with 95% "
    "intervals over seeds.",
    "momentum.png": "Test accuracy against the momentum of the keys' encoder, with 95% "
    "intervals over seeds.",
}
PICTURE = ablation.PICTURE
VARIED = {"queue": "queue.size", "momentum": "momentum.start"}
LABELS = {"queue": "keys in the queue", "momentum": "momentum"}


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws accuracy against either choice."""
    metrics = ablation.run(config, run)
    for name, key in VARIED.items():
        ablation_figures.draw_against(config, run, metrics, f"{name}.png", key, LABELS[name])
    return metrics
