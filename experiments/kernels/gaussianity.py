"""Wide deep Gaussian processes have Gaussian posteriors over their units; wide networks do not.

Yang et al., arXiv:2108.13097. Posteriors of deep Gaussian processes and of Bayesian neural networks
with the same prior in the limit, the ReLU kernel's, are sampled at widths N ν with the outputs
copied N times. Mardia's kurtosis of the last hidden units at all points says how far from Gaussian
they are. Gram matrices of both are held against the optimum of the machine's objective.
"""

from typing import Any

import jax
import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.kernels.machines import ordered_points, relu_units
from rml import kernels
from rml.evaluation.scaling import log_log_slope_interval
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2108.13097, abstract: Gaussian posteriors of wide deep GPs; data, margin are ours"
CLAIMS = (
    Claim("At the largest width excess kurtosis of a deep GP's last units given the outputs is at "
          "most 0.05 of a Gaussian's kurtosis",
          "kurtosis_widest", "<=", 0.05, SOURCE, stated="2026-11-26", null="kurtosis_narrowest",
          says="The kurtosis of units of the widest deep Gaussian process is {mean:.1%} off a "
          "Gaussian's, of a network as wide {network_kurtosis_widest:.1%}"),
    # Changed after a small form was seen: a slope against width is common to GPs and networks.
    Claim("At the largest width a Bayesian network's is farther from a Gaussian's by 0.03",
          "network_further_widest", ">=", 0.03, "arXiv:2108.13097, abstract; margin ours, stated "
          "after a small form", stated="2026-11-26", null="network_further_narrowest",
          says="The network is {mean:.2f} of a Gaussian's kurtosis farther off than the process"),
)  # fmt: skip
CAPTIONS = {
    "kurtosis.png": "Distance of Mardia's kurtosis of the last units from a Gaussian's, as a share "
    "of it, against N (log10 of both); band: 95% interval over chains.",
    "distance.png": "Distance of the mean of sampled Gram matrices to the machine's optimum "
    "against N (log10 of both); band: 95% interval over chains.",
    "units.png": "Whitened last units at all points in the widest deep GP and the widest network, "
    "and in the narrowest deep GP.",
}
PICTURE = "kurtosis.png"


FAMILIES = {"": None, "network_": relu_units}  # activations, by the prefix of their metrics
NAMES = {"": "deep GP", "network_": "network"}


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Samples every width of both families, measures, draws."""
    model, progress, copies = config.model, Progress(), list(config.sampler.copies)
    sampler = {name: value for name, value in config.sampler.items() if name != "copies"}
    metrics: dict[str, float] = {}
    curves: dict[str, dict[str, Any]] = {"kurtosis": {}, "distance": {}}
    units: dict[str, np.ndarray] = {}
    with jax.enable_x64(True):
        g, y = ordered_points(config)
        shared = dict(kernel=kernels.relu, noise=model.noise)
        optimum, found = kernels.optimal_grams(
            g, y, depth=model.depth, width=model.width, steps=config.train.steps, **shared
        )
        for prefix, activation in FAMILIES.items():
            kurtosis, distance = [], []
            for n in copies:
                samples = kernels.sample_grams(
                    jax.random.key(config.seed), g, y, widths=(model.width,) * model.depth,
                    copies=n, activation=activation, **shared, **sampler,
                )  # fmt: skip
                white = whitened(np.asarray(samples.units))
                kurtosis.append(np.abs(excess_kurtosis(white)))
                away = np.asarray(samples.grams).mean(1) - np.asarray(optimum)
                distance.append(np.linalg.norm(away.reshape(len(away), -1), axis=1))
                metrics[f"{prefix}acceptance_{n}"] = float(np.mean(samples.acceptance))
                progress.note(f"{NAMES[prefix]}, N = {n}: kurtosis {kurtosis[-1].round(3)}")
                units[f"{NAMES[prefix]}, N = {n}"] = white
            for name, values in (("kurtosis", kurtosis), ("distance", distance)):
                curves[name][NAMES[prefix]] = np.stack(values)
                metrics |= measure(f"{prefix}{name}", copies, np.stack(values))
    # Paired by chain, as chains of the two families have the same keys.
    further = curves["kurtosis"]["network"] - curves["kurtosis"]["deep GP"]
    metrics |= measure("network_further", copies, further)
    metrics["converged"] = float(found.converged)
    draw(run, copies, curves, units)
    return metrics


def whitened(units: np.ndarray) -> np.ndarray:
    """Units [chains, draws, n, width] with the second moments of all of them made the identity."""
    n = units.shape[2]
    moments = np.einsum("cdnw,cdmw->nm", units, units) / (units.size / n)
    return np.linalg.solve(np.linalg.cholesky(moments), units)


def excess_kurtosis(white: np.ndarray) -> np.ndarray:
    """Mardia's kurtosis of each chain beyond a Gaussian's n (n + 2), as a share of it.

    Source: Mardia 1970, Measures of multivariate skewness and kurtosis, Biometrika 57; about zero,
    which is the mean of units by their symmetry.
    """
    n = white.shape[2]
    return (np.sum(white**2, axis=2) ** 2).mean((1, 2)) / (n * (n + 2)) - 1


def measure(name: str, copies: Any, values: np.ndarray) -> dict[str, float]:
    """The narrowest and widest values and their slope against N, with intervals over chains."""
    found = {"narrowest": t_interval(values[0]), "widest": t_interval(values[-1])}
    if (values > 0).all():
        found["slope"] = log_log_slope_interval(copies, values)
    metrics: dict[str, float] = {}
    for what, interval in found.items():
        metrics |= with_bounds(f"{name}_{what}", interval)
    return metrics


def draw(run: RunDirectory, copies: Any, curves: Any, units: Any) -> None:
    """Draws kurtosis and distance against N, and distributions of units."""
    labels = {"kurtosis": "excess kurtosis", "distance": "distance"}
    for name, own in curves.items():
        series = {
            family: (np.log10(copies), *t_interval(np.log10(values)))
            for family, values in own.items()
        }
        path = run.figure(f"{name}.png")
        figures.curves(path, series, "log10 of N", f"log10 of the {labels[name]}")
    shown = [f"{family}, N = {copies[-1]}" for family in NAMES.values()]
    shown.append(f"deep GP, N = {copies[0]}")
    rng = np.random.default_rng(0)
    shown_units = {name: rng.choice(units[name].ravel(), 20_000) for name in shown}
    figures.histogram(run.figure("units.png"), shown_units, "whitened unit", "draws")
