"""CLIP's choices, one at a time: the temperature, learned or fixed, the batch, the projection.

Radford et al., arXiv:2103.00020. Variants are compared as `contrastive.ablation` does, by what is
measured of CLIP and SigLIP. Every batch is trained on as many drawings.
"""

from typing import Any

from experiments.common.variants import BASE
from experiments.contrastive import ablation, ablation_figures, two_towers_ablation
from experiments.contrastive.two_towers_ablation import KINDS, of_towers
from rml.training import Claim, RunDirectory

SOURCE = (
    "CLIP (arXiv:2103.00020), Sections 2.3 to 2.5, temperature, batch size and projection; data, "
    "sizes and margins are this repository's"
)
CLAIMS = (
    Claim("A temperature that is learned from 0.07 is above one that stays there in drawings told "
          "by names",
          "zero_shot_over_fixed_0_07", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="zero_shot_untrained_over_fixed_0_07",
          says="Learning the temperature changes the share of drawings told by names by "
          "{mean:+.1p} points ({zero_shot_base:.1%} against {zero_shot_fixed_0_07:.1%})"),
    Claim("The temperature matters: one that stays at 1 loses 1 point",
          "zero_shot_over_fixed_1", ">=", 0.01, SOURCE, stated="2026-11-29",
          null="zero_shot_over_again",
          says="It changes that share by {mean:+.1p} points beside a temperature that stays at 1"),
    Claim("The batch matters: in batches of 32, training on as many drawings, CLIP loses 1 point",
          "zero_shot_over_batch_32", ">=", 0.01, SOURCE, stated="2026-11-29",
          null="zero_shot_over_again",
          says="The larger batch changes it by {mean:+.1p} points beside batches of 32"),
    Claim("A linear projection of images is at most a point below one with a hidden layer",
          "zero_shot_linear_head_over_base", ">=", -0.01, SOURCE, stated="2026-11-29",
          null="zero_shot_untrained_over_base",
          says="A linear projection of images changes it by {mean:+.1p} points beside one with a "
          "hidden layer"),
)  # fmt: skip
PAIRS = (("linear_head", BASE), (ablation.UNTRAINED, BASE))
BATCHES = {"32": "batch_32", "64": "batch_64", "256": BASE}
"""By batch, its variant."""
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    "accuracies.png": two_towers_ablation.CAPTIONS["accuracies.png"],
    "batches.png": "Test accuracy by names of classes, and recall of a drawing's name, against the "
    "batch, with 95% intervals over seeds.",
}
PICTURE = "accuracies.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws accuracies against the batch."""
    metrics = ablation.run(config, run, pairs=PAIRS, judge_of=of_towers, kinds=KINDS)
    series = {
        shown: [f"{kind}_{name}" for name in BATCHES.values()] for shown, kind in KINDS.items()
    }
    ablation_figures.draw_bars(
        run.figure("batches.png"), list(BATCHES), series, metrics,
        ylabel="share of test drawings", xlabel="drawings in a batch", decimals=3,
    )  # fmt: skip
    return metrics
