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
    Claim("Without momentum, keys by the trained encoder itself, a linear probe loses",
          "linear_probe_over_momentum_0", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_over_again",
          says="Keys of a slowly moving encoder change a linear probe's accuracy by {mean:+.1p} "
          "points ({linear_probe_base:.1%} against {linear_probe_momentum_0:.1%} without)"),
    Claim("A slowly moving encoder is worth half a point of a linear probe over a momentum of 0.9",
          "linear_probe_over_momentum_0_9", ">=", 0.005, SOURCE, stated="2026-11-26",
          null="linear_probe_over_again",
          says="They change it by {mean:+.1p} points beside a momentum of 0.9"),
    Claim("A queue of eight batches is worth half a point of a linear probe over one of one batch",
          "linear_probe_over_queue_256", ">=", 0.005, SOURCE, stated="2026-11-28",
          null="linear_probe_over_again",
          says="A queue of eight batches changes it by {mean:+.1p} points beside one of one batch"),
    Claim("A hidden layer in the head is worth half a point of a linear probe",
          "linear_probe_over_linear_head", ">=", 0.005, V2, stated="2026-11-29",
          null="linear_probe_over_again",
          says="A hidden layer in the head changes it by {mean:+.1p} points"),
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
