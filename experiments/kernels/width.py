"""Deep Gaussian processes of growing width approach the deep kernel machine's optimum.

Yang et al., arXiv:2108.13097. The posterior over Gram matrices is sampled at widths N ν with the
outputs copied N times, and held against the optimum of the machine's objective; the closed form of
deep linear machines and the limit of large ν are measured beside it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.kernels.machines import ordered_points
from rml import kernels
from rml.evaluation.scaling import log_log_slope_interval
from rml.ops import t_interval
from rml.training import Claim, RunDirectory

SOURCE = "arXiv:2108.13097: limit of wide deep GPs; data and margin are ours"
CLAIMS = (
    Claim("Optimised Gram matrices of a deep linear machine are the closed form's to 1e-4",
          "deep_linear_error", "<=", 1e-4, "arXiv:2108.13097, deep linear machines; margin ours",
          stated="2026-11-24", null="deep_linear_error_nngp",
          says="Learned Gram matrices of a deep linear machine are {mean:.0e} of their norm off "
          "the theory's closed form"),
    Claim("At ν = 1e6 the Gram matrices are the NNGP's to 1e-4",
          "large_width_error", "<=", 1e-4, "arXiv:2108.13097, limit of large ν; margin ours",
          stated="2026-11-24", null="small_width_error",
          says="At ν of a million Gram matrices are {mean:.0e} of their norm off those of the "
          "infinitely wide network"),
    Claim("Distance of the mean of sampled Gram matrices to the optimum falls with width at a "
          "slope in log-log of -0.3 or below",
          "mean_slope", "<=", -0.3, SOURCE, stated="2026-11-26", null="mean_slope_to_nngp",
          says="The distance of sampled deep Gaussian processes to the machine's optimum goes with "
          "their width to the power of {mean:.2f}"),
)  # fmt: skip
CAPTIONS = {
    "distance.png": "Root mean square distance of posterior samples of the Gram matrices, and "
    "distance of their mean, to the machine's optimum against N (log10 of both); band: 95% "
    "interval over chains.",
    "widths.png": "Distance of the optimal Gram matrices to the NNGP's against ν (log10 of both).",
    "grams_nngp.png": "Gram matrices of the layers of the NNGP, points in the order of the target.",
    "grams_optimum.png": "Gram matrices at the machine's optimum, same order.",
    "grams_sampled.png": "Posterior mean of the Gram matrices of the widest deep GP, same order.",
}
PICTURE = "distance.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Optimises, samples, compares, draws."""
    with jax.enable_x64(True):
        g, y = ordered_points(config)
        return linear_error(config, g) | measure(config, run, g, y)


def linear_error(config: Any, g: Any) -> dict[str, float]:
    """Relative error of the optimised deep linear machine, inputs made full rank by an identity."""
    n, depth = len(g), config.model.depth
    y = jnp.asarray(np.random.default_rng(config.seed).standard_normal((n, n + 1)))
    g = g + 0.1 * jnp.eye(n)
    grams, _ = kernels.optimal_grams(
        g, y, kernel=kernels.linear, depth=depth, width=float(n + 1), noise=0.0,
        steps=config.train.steps,
    )  # fmt: skip
    closed = kernels.deep_linear_grams(g, y, jnp.full(depth, float(n + 1)))
    compared = {"": grams, "_nngp": kernels.nngp_grams(g, kernel=kernels.linear, depth=depth)}
    return {
        f"deep_linear_error{name}": float(jnp.max(jnp.abs(own - closed)) / jnp.max(jnp.abs(closed)))
        for name, own in compared.items()
    }


def measure(config: Any, run: RunDirectory, g: Any, y: Any) -> dict[str, float]:
    """Measures the limit of large ν, and samples of growing width beside the optimum."""
    model = config.model
    shared = dict(kernel=kernels.build(model.kernel), noise=model.noise)
    optimum = partial(
        kernels.optimal_grams, g, y, depth=model.depth, steps=config.train.steps, **shared
    )
    target, found = optimum(width=model.width)
    prior = kernels.nngp_grams(g, kernel=shared["kernel"], depth=model.depth)
    moved = {w: float(jnp.linalg.norm(optimum(width=w)[0] - prior)) for w in model.widths}
    sampler = {name: value for name, value in config.sampler.items() if name != "copies"}
    copies = list(config.sampler.copies)
    samples = [
        kernels.sample_grams(
            jax.random.key(config.seed), g, y, widths=(model.width,) * model.depth, copies=n,
            **shared, **sampler,
        )
        for n in copies
    ]  # fmt: skip
    grams = np.stack([s.grams for s in samples])  # copies, chains, draws, layers, n, n
    away = grams - np.asarray(target)
    distances = np.sqrt((away**2).sum((3, 4, 5)).mean(2))
    mean_distances = np.linalg.norm(away.mean(2).reshape(*distances.shape, -1), axis=2)
    logs = np.log10(np.asarray(copies, float))
    slope = log_log_slope_interval(copies, distances)
    mean_slope = log_log_slope_interval(copies, mean_distances)
    # Samples spread less around anything near by; their mean nears the optimum alone.
    to_nngp = (grams - np.asarray(prior)).mean(2).reshape(*distances.shape, -1)
    mean_slope_to_nngp = log_log_slope_interval(copies, np.linalg.norm(to_nngp, axis=2))
    widest = grams[np.argmax(copies)].mean((0, 1))
    curves = {"samples": distances, "mean of samples": mean_distances}
    draw(run, logs, curves, moved, {"nngp": prior, "optimum": target, "sampled": widest})
    return {
        "large_width_error": moved[max(moved)],
        "small_width_error": moved[min(moved)],
        "slope": float(slope.mean),
        "slope_low": float(slope.low),
        "slope_high": float(slope.high),
        "mean_slope": float(mean_slope.mean),
        "mean_slope_low": float(mean_slope.low),
        "mean_slope_high": float(mean_slope.high),
        "mean_slope_to_nngp": float(mean_slope_to_nngp.mean),
        "distance_of_nngp": float(jnp.linalg.norm(prior - target)),
        "distance_of_widest_mean": float(np.linalg.norm(widest - target)),
        "acceptance": float(np.mean([np.mean(s.acceptance) for s in samples])),
        "converged": float(found.converged),
        "gradient_norm": found.gradient_norm,
    }


def draw(run: RunDirectory, logs: Any, curves: Any, moved: Any, grams: Any) -> None:
    """Draws distances against N, distances against ν and the layers' Gram matrices."""
    series = {name: (logs, *t_interval(np.log10(values))) for name, values in curves.items()}
    figures.curves(run.figure("distance.png"), series, "log10 of N", "log10 of the distance")
    optimum = {"optimum": (np.log10(list(moved)), np.log10(list(moved.values())))}
    label = "log10 of the distance to the NNGP"
    figures.curves(run.figure("widths.png"), optimum, "log10 of ν", label)
    for name, layers in grams.items():
        figures.heatmap(
            run.figure(f"grams_{name}.png"), layers, ylabel="points", value_label="Gram matrix",
            xlabel=f"points, layers 1 to {len(layers)}",
        )  # fmt: skip
