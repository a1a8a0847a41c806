"""DCL beside NT-Xent in batches of 32, 64 and 256, its weights of positives, and temperatures.

Yeh et al., arXiv:2110.06848. Variants are compared as `contrastive.ablation` does. Every batch is
trained on as many images. The base is DCLW, whose positives are weighted.
"""

from typing import Any

from experiments.contrastive import ablation, ablation_figures
from rml.training import Claim, RunDirectory

SOURCE = (
    "Decoupled Contrastive Learning (arXiv:2110.06848), abstract and Section 4; data, sizes and "
    "margins are this repository's"
)
CLAIMS = (
    Claim("In batches of 32 a linear probe of DCL is above NT-Xent's",
          "linear_probe_dcl_32_over_nt_xent_32", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_over_again",
          says="In batches of 32 DCL changes a linear probe's accuracy by {mean:+.1p} points over "
          "NT-Xent ({linear_probe_dcl_32:.1%} against {linear_probe_nt_xent_32:.1%})"),
    Claim("From a batch of 256 to one of 32 a linear probe of DCL loses at most half a point",
          "linear_probe_dcl_over_dcl_32", "<=", 0.005, SOURCE, stated="2026-11-27",
          null="linear_probe_nt_xent_over_nt_xent_32",
          says="Batches of 256 change DCL's accuracy by {mean:+.1p} points beside 32, NT-Xent's by "
          "{linear_probe_nt_xent_over_nt_xent_32:+.1p}"),
    Claim("Weights of positives cost a linear probe at most half a point",
          "linear_probe_dcl_over_base", "<=", 0.005, SOURCE, stated="2026-11-27",
          null="linear_probe_dcl_over_untrained",
          says="Leaving out the weights of positives changes accuracy by {mean:+.1p} points"),
)  # fmt: skip
PAIRS = (
    ("dcl", "nt_xent"), ("dcl_64", "nt_xent_64"), ("dcl_32", "nt_xent_32"), ("dcl", "dcl_32"),
    ("nt_xent", "nt_xent_32"), ("dcl", "base"), ("dcl", "untrained"),
)  # fmt: skip
BATCHES = {"32": "_32", "64": "_64", "256": ""}
"""By batch, what ends the names of its variants."""
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    **ablation.CAPTIONS,
    "batches.png": "Test accuracy of a linear probe against the batch, with 95% intervals over "
    "seeds.",
}
PICTURE = "batches.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws both losses against the batch."""
    metrics = ablation.run(config, run, pairs=PAIRS)
    series = {
        shown: [f"linear_probe_{loss}{end}" for end in BATCHES.values()]
        for shown, loss in {"DCL": "dcl", "NT-Xent": "nt_xent"}.items()
    }
    ablation_figures.draw_bars(
        run.figure("batches.png"), list(BATCHES), series, metrics,
        ylabel="test accuracy of a linear probe", xlabel="images in a batch", decimals=3, cut=True,
    )  # fmt: skip
    return metrics
