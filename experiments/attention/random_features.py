"""Random-feature attention: what a layer with frozen query-key matrices learns, from how much.

Fu et al., What can a Single Attention Layer Learn? A Study Through the Random Features Lens,
arXiv:2307.11353. Three models, ridge on their features: attention with Gaussian query-key matrices,
attention with the matrices centred at the identity, and random features of an MLP on the
concatenated input, all with as many trained numbers.

The predictions for numbers of examples are this repository's, by counting: a rotation-invariant
kernel needs about as many examples as there are polynomials of the target's degree p, which number
((N + 1) d)^p for the MLP and d^p for attention, a ratio that grows as (N + 1)^p.
"""

from typing import Any

import numpy as np

from experiments.attention.drawing import draw
from experiments.attention.measure import SHUFFLED, kernel_distances, learning_curves, sample_ratios
from experiments.common.claims import with_bounds
from rml.attention import MODELS
from rml.errors import UserError
from rml.evaluation.scaling import log_log_slopes
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2307.11353, abstract; target, sizes and margin are this repository's"
OTHER_NULL = "the null was changed after the first measurement"
COUNT = f"this repository's count of polynomials gives p; the margin is half of it; {OTHER_NULL}"
CLAIMS = (
    Claim("Attention's error on averages of squares is at most a fifth of the MLP features'",
          "rfa_over_mlp_average_2", "<=", 0.2, f"{SOURCE}; {OTHER_NULL}",
          stated="2026-11-30", null="rfa_over_mlp_weighted_1"),
    Claim("Degree 2: the ratio of examples needed grows with keys at a log-log slope of 1",
          "ratio_slope_degree_2", ">=", 1.0, COUNT,
          stated="2026-11-30", null="ratio_slope_degree_1"),
    Claim("With most keys the ratio at degree 2 is at least twice that at degree 1",
          "ratio_degree_2_over_1", ">=", 2.0, SOURCE,
          stated="2026-11-24", null="ratio_degree_2_over_1_fewest_keys"),
    Claim("Centred at the identity, the error on correlation-weighted averages is a tenth lower",
          "biased_over_rfa_weighted_1", "<=", 0.9, f"{SOURCE}; {OTHER_NULL}",
          stated="2026-11-30", null="biased_over_rfa_shuffled"),
    Claim("Centred at the identity, the error on squared correlations is a tenth lower",
          "biased_over_rfa_mixed_1_2", "<=", 0.9, SOURCE,
          stated="2026-11-24", null="biased_over_rfa_mixed_0_2"),
    Claim("Attention's error on averages of squares falls with examples at a slope of -1/2",
          "slope_rfa_average_2", "<=", -0.5, SOURCE,
          stated="2026-11-24", null="slope_rf_mlp_average_2"),
)  # fmt: skip
BANDS = "bands: replicates from least to greatest"
CAPTIONS = {
    "average_2.png": f"Averages of squares: relative test error against examples; {BANDS}.",
    "weighted_1.png": "Correlation-weighted averages: relative test error against examples; "
    f"{BANDS}.",
    "mixture.png": "Error of the biased variant over the unbiased against the mixture's weight; "
    f"{BANDS}.",
    "averages.png": "Averages of powers: relative test error with the most examples; error bars: "
    "one deviation over replicates.",
    "correlations.png": "Targets of query and keys: relative test error with the most examples; "
    "error bars: one deviation over replicates.",
    "needed.png": "Examples that reach the error level against keys and query (log₂), MLP over "
    f"attention; {BANDS}.",
    "kernel.png": "Relative distance of the Gram matrix to its limit against heads (log₂); "
    f"{BANDS}.",
}
PICTURE = "average_2.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Measures learning curves, numbers of examples, and convergence to the kernels; draws."""
    check(config)
    progress = Progress()
    metrics: dict[str, float] = {f"tries_{m}": len(config.regularizations) for m in MODELS}
    errors = learning_curves(config, progress.note)
    mean = errors.mean(0)
    for t, target in enumerate((*config.targets, SHUFFLED)):
        for m, model in enumerate(MODELS):
            metrics[f"error_{model}_{target}"] = mean[m, -1, t]
            slopes = log_log_slopes(config.sizes, errors[:, m, :, t])
            metrics[f"slope_{model}_{target}"] = slopes.mean()
        metrics[f"biased_over_rfa_{target}"] = mean[1, -1, t] / mean[0, -1, t]
        metrics[f"rfa_over_mlp_{target}"] = mean[0, -1, t] / mean[2, -1, t]

    needed = sample_ratios(config.scaling, config.seed + 1)
    ratio = needed["rf_mlp"] / needed["rfa"]
    for j, degree in enumerate(config.scaling.degrees):
        inputs = np.asarray(config.scaling.num_keys) + 1
        own = log_log_slopes(inputs, needed["rfa"][:, :, j])
        metrics[f"needed_slope_rfa_degree_{degree}"] = own.mean()
        grown = log_log_slopes(inputs, ratio[:, :, j])
        metrics |= with_bounds(f"ratio_slope_degree_{degree}", t_interval(grown))
        for i, count in enumerate(config.scaling.num_keys):
            for model, number in needed.items():
                metrics[f"needed_{model}_keys_{count}_degree_{degree}"] = number[:, i, j].mean()
    last = ratio[:, -1].mean(0)
    metrics["ratio_degree_2_over_1"] = last[1] / last[0]
    first = ratio[:, 0].mean(0)
    metrics["ratio_degree_2_over_1_fewest_keys"] = first[1] / first[0]
    progress.note(f"examples needed, MLP over attention: {ratio.mean(0).round(1).tolist()}")

    distances = kernel_distances(config)
    for model, distance in distances.items():
        slope = log_log_slopes(config.limit.heads, distance)
        metrics[f"kernel_slope_{model}"] = slope.mean()
        metrics[f"kernel_slope_half_width_{model}"] = half_width(slope)
        metrics[f"kernel_slope_error_{model}"] = abs(slope.mean() + 0.5)
        metrics[f"kernel_slope_error_{model}_of_1"] = abs(slope.mean() + 1.0)
    draw(config, run, errors, ratio, distances)
    return {name: float(value) for name, value in metrics.items()}


def half_width(values: np.ndarray) -> float:
    """Computes half of Student's 95% interval of a mean of replicates, of which there may be 2."""
    _, low, high = t_interval(values)
    return float(high - low) / 2


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    for name in ("average_2", "weighted_1", "mixed_0_2", "mixed_1_2"):
        if name not in config.targets:
            raise UserError(f"targets lacks {name!r}, which the claims are about")
    if tuple(config.scaling.degrees[:2]) != (1, 2):
        raise UserError(f"scaling.degrees is {config.scaling.degrees}, expected to begin (1, 2)")
    if config.scaling.num_keys[-1] != max(config.scaling.num_keys):
        raise UserError(f"scaling.num_keys is {config.scaling.num_keys}, expected to increase")
    if config.heads % config.blocks:
        raise UserError(f"heads is {config.heads}, expected a multiple of blocks, {config.blocks}")
    if min(config.replicates, config.scaling.replicates, config.limit.replicates) < 2:
        raise UserError("replicates must be at least 2 everywhere, for bands and intervals")
