"""SigLIP's choices, one at a time: bias, temperature, batch, and CLIP's softmax in its place.

Zhai et al., arXiv:2303.15343. Variants are compared as `contrastive.ablation` does, by what is
measured of CLIP and SigLIP. Every batch is trained on as many drawings.
"""

from typing import Any

from experiments.common.variants import BASE
from experiments.contrastive import ablation, ablation_figures, named_drawings, two_towers
from rml.training import Claim, RunDirectory

SOURCE = (
    "SigLIP (arXiv:2303.15343), abstract and Section 4, bias and batch size; data, sizes and "
    "margins are this repository's"
)
CLAIMS = (
    Claim("In batches of 32 the sigmoid is above CLIP's softmax",
          "zero_shot_batch_32_over_softmax_32", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="zero_shot_over_again",
          says="In batches of 32 the sigmoid changes the share of drawings told by names by "
          "{mean:+.1p} points over softmax ({zero_shot_batch_32:.1%} against "
          "{zero_shot_softmax_32:.1%})"),
    Claim("The start matters: a bias that starts at 0 loses 1 point",
          "zero_shot_over_bias_0", ">=", 0.01, SOURCE, stated="2026-11-27",
          null="zero_shot_over_again",
          says="The bias that the paper starts from changes it by {mean:+.1p} points beside one "
          "of 0"),
)  # fmt: skip
PAIRS = (("batch_32", "softmax_32"), ("softmax", "softmax_32"))
BATCHES = ("32", "256")
LOSSES = {"sigmoid": ("batch_32", BASE), "softmax": ("softmax_32", "softmax")}
"""By loss, its variants in each of these batches."""
KINDS = {
    "class by its name": "zero_shot",
    f"own name among {named_drawings.NEAREST}": f"recall_at_{named_drawings.NEAREST}",
}
RANGES = ablation.RANGES
task = ablation.task
encoder = ablation.encoder
CAPTIONS = {
    "accuracies.png": "Test accuracy by names of classes, and recall of a drawing's name, by "
    "variant, mean over seeds and 95% interval.",
    "batches.png": "Test accuracy by names of classes against the batch, with 95% intervals over "
    "seeds.",
}
PICTURE = "accuracies.png"


def of_towers(config: Any) -> ablation.Judge:
    """Measures both encoders on test drawings."""
    encoders, drawings = (
        two_towers.compiled(two_towers.build_model(config)), named_drawings.Drawings(config)
    )  # fmt: skip
    drawings.check()
    return lambda variables, seed: named_drawings.shares(
        named_drawings.judge(encoders, config, drawings, variables)
    )


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and compares every variant, draws both losses against the batch."""
    metrics = ablation.run(config, run, pairs=PAIRS, judge_of=of_towers, kinds=KINDS)
    series = {loss: [f"zero_shot_{name}" for name in names] for loss, names in LOSSES.items()}
    ablation_figures.draw_bars(
        run.figure("batches.png"), BATCHES, series, metrics,
        ylabel="test accuracy by names", xlabel="drawings in a batch", decimals=3, cut=True,
    )  # fmt: skip
    return metrics
