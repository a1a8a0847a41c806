"""Deep Gaussian processes of growing width approach the deep kernel machine's optimum.

The posterior over Gram matrices is sampled at widths N ν with the outputs copied N times, and held
against the optimum of the machine's objective; the closed form of deep linear machines and the
limit of large ν are measured beside it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments import figures
from experiments.kernels import tables
from experiments.kernels.drawing import draw_layers
from rml.kernels import deep_gp, deep_linear, nngp
from rml.kernels import deep_kernel_machine as dkm
from rml.kernels import gram as kernels
from rml.kernels.optimize import fit
from rml.training import Claim, RunDirectory

SOURCE = "arXiv:2108.13097: limit of wide deep GPs; data and margin are ours"
CLAIMS = (
    Claim("Optimised Gram matrices of a deep linear machine are the closed form's to 1e-4",
          "deep_linear_error", "<=", 1e-4, "arXiv:2108.13097, deep linear machines; margin ours"),
    Claim("At ν = 1e6 the Gram matrices are the NNGP's to 1e-4",
          "large_width_error", "<=", 1e-4, "arXiv:2108.13097, limit of large ν; margin ours"),
    Claim("Distance of sampled Gram matrices to the optimum falls with width: the 95% interval of "
          "the slope in log-log is below -0.3",
          "slope_high", "<=", -0.3, SOURCE),
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


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Optimises, samples, compares, draws."""
    with jax.enable_x64(True):
        x, y = tables.load_table(config.data.name)
        rows = np.random.default_rng(config.seed).permutation(len(x))[: config.data.points]
        rows = rows[np.argsort(y[rows])]
        split = tables.standardise(
            x[None, rows], y[None, rows, None], x[None, :1], y[None, :1, None]
        )
        g, targets = kernels.input_gram(jnp.asarray(split.x[0])), jnp.asarray(split.y[0])
        return measure(config, run, g, targets)


def optimum(config: Any, g: Any, y: Any, kernel: Any, width: float, noise: float) -> Any:
    """Optimal Gram matrices at one ν, which divides the objective to keep its scale."""
    depth, n = config.model.depth, g.shape[0]
    widths = jnp.full(depth, width)

    def loss(raw: Any) -> Any:
        value = dkm.regression_objective(raw, g, y, kernel=kernel, widths=widths, noise=noise)
        return -value / width

    found = fit(loss, jnp.zeros((depth, n, n)), steps=config.train.steps, tolerance=1e-9)
    return dkm.forward(found.params, g, kernel=kernel).grams, found


def measure(config: Any, run: RunDirectory, g: Any, y: Any) -> dict[str, float]:
    """All three claims."""
    kernel, noise = kernels.build(config.model.kernel), config.model.noise
    target, found = optimum(config, g, y, kernel, config.model.width, noise)
    prior = nngp.nngp_grams(g, kernel=kernel, depth=config.model.depth)
    moved = {
        width: float(jnp.linalg.norm(optimum(config, g, y, kernel, width, noise)[0] - prior))
        for width in config.model.widths
    }
    samples_by_copies = {
        copies: deep_gp.sample_grams(
            jax.random.key(config.seed), g, y, kernel=kernel,
            widths=(config.model.width,) * config.model.depth, noise=noise, copies=copies,
            chains=config.sampler.chains, warmup=config.sampler.warmup, draws=config.sampler.draws,
            leapfrogs=config.sampler.leapfrogs,
        )
        for copies in config.sampler.copies
    }  # fmt: skip
    grams = {copies: np.asarray(s.grams) for copies, s in samples_by_copies.items()}
    squares = {c: ((s - np.asarray(target)) ** 2).sum((2, 3, 4)).mean(1) for c, s in grams.items()}
    distances = np.sqrt(np.stack(list(squares.values())))  # copies x chains
    means = np.stack([np.linalg.norm((s.mean(1) - np.asarray(target)).reshape(len(s), -1), axis=1)
                      for s in grams.values()])  # fmt: skip
    logs = np.log10(np.asarray(config.sampler.copies, float))
    line = stats.linregress(np.repeat(logs, distances.shape[1]), np.log10(distances).ravel())
    half = stats.t.ppf(0.975, distances.size - 2) * line.stderr
    draw(run, logs, distances, means, moved, prior, target, grams[max(grams)].mean((0, 1)))
    return {
        **linear_error(config, g),
        "large_width_error": moved[max(moved)],
        "slope": float(line.slope),
        "slope_low": float(line.slope - half),
        "slope_high": float(line.slope + half),
        "distance_of_nngp": float(jnp.linalg.norm(prior - target)),
        "distance_of_widest_mean": float(np.linalg.norm(grams[max(grams)].mean((0, 1)) - target)),
        "acceptance": float(np.mean([np.mean(s.acceptance) for s in samples_by_copies.values()])),
        "converged": float(found.converged),
        "gradient_norm": found.gradient_norm,
    }


def linear_error(config: Any, g: Any) -> dict[str, float]:
    """Relative error of the optimised deep linear machine, inputs made full rank by an identity."""
    n = g.shape[0]
    y = jnp.asarray(np.random.default_rng(config.seed).standard_normal((n, n + 1)))
    g = g + 0.1 * jnp.eye(n)
    grams, _ = optimum(config, g, y, kernels.linear, float(n + 1), 0.0)
    closed = deep_linear.deep_linear_grams(g, y, jnp.full(config.model.depth, float(n + 1)))
    return {"deep_linear_error": float(jnp.max(jnp.abs(grams - closed)) / jnp.max(jnp.abs(closed)))}


def draw(
    run: RunDirectory,
    logs: np.ndarray,
    distances: np.ndarray,
    means: np.ndarray,
    moved: dict[float, float],
    prior: Any,
    target: Any,
    sampled: Any,
) -> None:
    """Curves of distances and the layers' Gram matrices."""
    series = {}
    for name, values in (("samples", np.log10(distances)), ("mean of samples", np.log10(means))):
        half = stats.t.ppf(0.975, values.shape[1] - 1) * stats.sem(values, axis=1)
        series[name] = (logs, values.mean(1), values.mean(1) - half, values.mean(1) + half)
    figures.curves(run.figure("distance.png"), series, "log10 of N", "log10 of the distance")
    figures.curves(
        run.figure("widths.png"),
        {"optimum": (np.log10(list(moved)), np.log10(list(moved.values())))},
        "log10 of ν", "log10 of the distance to the NNGP",
    )  # fmt: skip
    for name, grams in (("nngp", prior), ("optimum", target), ("sampled", sampled)):
        path = run.figure(f"grams_{name}.png")
        draw_layers(path, np.asarray(grams), points="points", value="Gram matrix", gap=1)
