"""Whether all starts of a deep kernel machine end at one optimum, beside a network's modes.

Yang et al., arXiv:2108.13097. The machine's objective is maximised over its Gram matrices from many
random starts. Beside it the log-posterior of a Bayesian network of ν ReLU units a layer is
maximised over all its weights, from as many draws of its prior, by the same optimiser on the same
data. Permutations of units leave Gram matrices as they are, so these are what is compared. Most of
the network's starts end where no gradient vanishes, at kinks or when their steps are used up: they
count as not converged, and how far apart they end is not how far apart modes are.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.kernels.machines import ordered_points, relu_units
from rml import kernels
from rml.errors import UserError
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2108.13097: the objective seems unimodal; data, number of starts, margin are ours"
CLAIMS = (
    Claim("Objectives over ν at which a machine's starts end differ by at most 0.001 nats",
          "objective_range", "<=", 1e-3, SOURCE,
          stated="2026-11-26", null="network_objective_range",
          says="All starts of the machine end within {mean:.0e} nats of one objective, those of a "
          "Bayesian network within {network_objective_range:.2g}"),
    Claim("Gram matrices at which they end differ by at most 1% of their norm",
          "gram_range", "<=", 0.01, SOURCE, stated="2026-11-26", null="network_gram_range",
          says="The Gram matrices at which they end differ by {mean:.0e} of their norm, those of a "
          "network by {network_gram_range:.2g}"),
)  # fmt: skip
CAPTIONS = {
    "objectives.png": "Objectives at which the starts end below the best of them, in nats over ν, "
    "sorted, for the deep kernel machine and for a network of ν units.",
    "widths.png": "Range of the objectives over ν at which the starts end against ν (log10 of "
    "both); ranges below 1e-12 are drawn there.",
    "grams_machine.png": "Gram matrices of the last layer at which the first four starts of the "
    "machine end, points in the order of the target.",
    "grams_network.png": "The same of the network.",
}
PICTURE = "objectives.png"
NAMES = {"machine": "deep kernel machine", "network": "network"}


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Optimises from all starts at every ν, compares, draws."""
    model, progress = config.model, Progress()
    if model.width not in model.widths:
        raise UserError(f"model.widths is {tuple(model.widths)}, expected {model.width} among them")
    metrics: dict[str, float] = {}
    ranges: dict[str, list[float]] = {"machine": [], "network": []}
    with jax.enable_x64(True):
        g, y = ordered_points(config)
        for width in model.widths:
            found = {"machine": machine(config, g, y, width), "network": modes(config, g, y, width)}
            for name, (grams, minimum) in found.items():
                own = measure(config, grams, minimum)
                ranges[name].append(own["objective_range"])
                progress.note(f"ν = {width}, {name}: {own}")
                prefix = "" if name == "machine" else "network_"
                metrics |= {f"{prefix}{key}_width_{width}": v for key, v in own.items()}
                if width == model.width:
                    metrics |= {f"{prefix}{key}": value for key, value in own.items()}
            if width == model.width:
                draw_starts(run, found)
    series = {
        NAMES[name]: (np.log10(list(model.widths)), np.log10(np.maximum(values, 1e-12)))
        for name, values in ranges.items()
    }
    figures.curves(
        run.figure("widths.png"), series, "log10 of ν", "log10 of the range (nats over ν)"
    )
    return metrics


def machine(config: Any, g: Any, y: Any, width: int) -> tuple[Any, kernels.Minimum]:
    """Optima of the deep kernel machine; a start's Gram matrices are far from their kernels."""
    model, n = config.model, len(g)
    shape = (config.train.starts, model.depth, n, n)
    starts = config.train.spread * jax.random.normal(jax.random.key(config.seed), shape, g.dtype)
    return kernels.optimal_grams_of_starts(
        starts, g, y, kernel=kernels.build(model.kernel), width=float(width), noise=model.noise,
        steps=config.train.steps, tolerance=config.train.tolerance,
    )  # fmt: skip


def modes(config: Any, g: Any, y: Any, width: int) -> tuple[Any, kernels.Minimum]:
    """Modes of the posterior of a network of `width` units a layer, from draws of its prior."""
    model, rows = config.model, (len(g), *(width,) * config.model.depth)
    columns = (width,) * model.depth + (y.shape[1],)
    starts = tuple(
        jax.random.normal(key, (config.train.starts, *shape), g.dtype)
        for key, *shape in zip(
            jax.random.split(jax.random.key(config.seed), len(rows)), rows, columns, strict=True
        )
    )
    return _modes(
        starts, g, y, model.noise, config.train.steps, config.train.tolerance,
        kernel=kernels.build(model.kernel),
    )  # fmt: skip


@partial(jax.jit, static_argnames="kernel")
def _modes(
    starts: Any, g: Any, y: Any, noise: Any, steps: Any, tolerance: Any, *, kernel: Any
) -> tuple[Any, kernels.Minimum]:
    width = starts[-1].shape[1]
    options = dict(kernel=kernel, activation=relu_units)

    def loss(weights: Any) -> Any:
        *hidden, last = weights
        f = relu_units(kernels.dgp_units(tuple(hidden), g, **options)[-1]) @ last / width**0.5
        prior = sum(jnp.sum(own**2) for own in weights) / 2
        return (prior + jnp.sum((y - f) ** 2) / (2 * noise)) / width  # as the machine's, over ν

    def mode(start: Any) -> Any:
        found = kernels.minimize(loss, start, steps=steps, tolerance=tolerance)
        return kernels.dgp_grams(found.params[:-1], g, **options), found

    return jax.lax.map(mode, starts)


def measure(config: Any, grams: Any, found: kernels.Minimum) -> dict[str, float]:
    """How far apart starts end: in objective divided by ν, and in Gram matrices."""
    values, away = np.asarray(found.value), np.asarray(grams)
    away = away.reshape(len(away), -1)
    best = away[np.argmin(values)]
    return {
        "objective_range": float(np.ptp(values)),
        "gram_range": float(np.linalg.norm(away - best, axis=1).max() / np.linalg.norm(best)),
        "converged": float(np.mean(np.asarray(found.gradient) <= config.train.tolerance)),
        "steps": float(np.mean(found.steps)),
    }


def draw_starts(run: RunDirectory, found: Any) -> None:
    """Draws where the starts end."""
    series = {}
    for name, (grams, minimum) in found.items():
        values = np.sort(np.asarray(minimum.value))
        series[NAMES[name]] = (np.arange(1, len(values) + 1), values - values[0])
        figures.heatmap(
            run.figure(f"grams_{name}.png"), jnp.asarray(grams)[:4, -1], ylabel="points",
            xlabel="points, starts 1 to 4", value_label="Gram matrix",
        )  # fmt: skip
    figures.curves(run.figure("objectives.png"), series, "start", "nats below the best, over ν")
