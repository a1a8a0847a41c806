"""Examples that attention and an MLP need against the target's degree and the number of keys.

Fu et al., What can a Single Attention Layer Learn? A Study Through the Random Features Lens,
arXiv:2307.11353. Both in their limit of infinitely many features. Targets are averages over keys of
Gegenbauer polynomials, which have one degree only. That the ratio of examples grows as (N + 1)^p
is this repository's count of polynomials, see `experiments.attention.random_features`.
"""

from typing import Any

import numpy as np

from experiments.attention.measure import sample_ratios
from experiments.common import figures
from experiments.common.claims import with_bounds
from rml.attention import targets
from rml.errors import UserError
from rml.evaluation.scaling import log_log_slopes
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

COUNT = (
    "this repository's count of polynomials gives p; the margin is half of it; an MLP that the "
    "most examples do not suffice counts with those, so that its ratio is a bound from below; the "
    "null was changed after the first measurement"
)
SOURCE = "arXiv:2307.11353, abstract; targets, sizes and margin are this repository's"
CLAIMS = (
    *(
        Claim(f"Degree {p}: the ratio of examples needed grows with inputs, keys and query, at a "
              f"log-log slope of {p / 2:g}",
              f"ratio_slope_degree_{p}", ">=", p / 2, COUNT,
              stated="2026-11-30", null="ratio_slope_degree_1")
        for p in (2, 3, 4)
    ),
    Claim("With most keys the ratio grows with the degree by a factor of 1.5 a degree",
          "ratio_growth", ">=", 1.5, SOURCE,
          stated="2026-11-26", null="ratio_growth_fewest_keys"),
)  # fmt: skip
CAPTIONS = {
    "ratio.png": "Examples that reach the error level, MLP over attention, against keys and query "
    "(log₂); bands: 95% interval over replicates.",
    "needed.png": "Examples that reach the level with most keys against the degree (log₂).",
}
PICTURE = "ratio.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Measures numbers of examples of all degrees and numbers of keys, fits slopes, draws."""
    scaling, progress = config.scaling, Progress()
    if tuple(scaling.degrees) != (1, 2, 3, 4):
        raise UserError(f"scaling.degrees is {tuple(scaling.degrees)}, expected (1, 2, 3, 4)")
    needed = sample_ratios(scaling, config.seed, targets.average_harmonic, beyond=np.inf)
    # An MLP that does not reach the level needs more than it had: a bound from below.
    bounded = np.isinf(needed["rf_mlp"])
    needed["rf_mlp"] = np.where(bounded, max(scaling.sizes.rf_mlp), needed["rf_mlp"])
    # Attention that does not has no number, and neither has a model whose fewest suffice.
    needed["rfa"] = np.where(np.isinf(needed["rfa"]), np.nan, needed["rfa"])
    ratio, inputs = needed["rf_mlp"] / needed["rfa"], np.asarray(scaling.num_keys) + 1
    degrees = np.asarray(scaling.degrees)
    metrics: dict[str, Any] = {"share_bounded": bounded.mean()}
    for j, degree in enumerate(degrees):
        slopes = {"ratio_slope": ratio[:, :, j], "needed_slope_rfa": needed["rfa"][:, :, j]}
        for name, values in slopes.items():
            metrics |= with_bounds(
                f"{name}_degree_{degree}", t_interval(log_log_slopes(inputs, values))
            )
        for i, count in enumerate(scaling.num_keys):
            for model, number in needed.items():
                metrics[f"needed_{model}_keys_{count}_degree_{degree}"] = number[:, i, j].mean()
    # A factor a degree: the exponential of the slope of the logarithm, by degree.
    centred = degrees - degrees.mean()
    for name, values in (("", ratio), ("_fewest_keys", ratio[:, :1])):
        growth = np.log(values[:, -1]) @ centred / (centred @ centred)
        metrics |= with_bounds(f"ratio_growth{name}", t_interval(np.exp(growth)))
    metrics = {name: float(value) for name, value in metrics.items()}
    progress.note(f"ratios by keys and degree: {ratio.mean(0).round(1).tolist()}")
    series = {
        f"degree {p}": (np.log2(inputs), *t_interval(np.moveaxis(ratio[..., j], 0, -1)))
        for j, p in enumerate(degrees)
    }
    figures.curves(run.figure("ratio.png"), series, "keys and query (log₂)", "MLP over attention",
                   logy=True)  # fmt: skip
    series = {
        name: (degrees, *t_interval(np.log2(needed[model][:, -1]).T))
        for model, name in (("rfa", "attention"), ("rf_mlp", "MLP"))
    }
    figures.curves(run.figure("needed.png"), series, "degree", "examples (log₂)")
    return metrics
