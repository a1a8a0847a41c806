"""What finitely many heads cost: risk beyond the kernel limit's, against heads and examples.

Fu et al., What can a Single Attention Layer Learn? A Study Through the Random Features Lens,
arXiv:2307.11353, whose bound on the risk falls as M^(-1/2) + n^(-1/2) in heads M and examples n.
Models and their limit see the same noisy examples; each has the penalty, of equally many, of least
leave-one-out error.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.measure import standardised
from experiments.common import figures
from experiments.common.claims import with_bounds
from rml import attention
from rml.attention import targets
from rml.evaluation.scaling import log_log_slopes
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2307.11353, abstract, bounds in heads and examples; sizes and margin are ours"
CLAIMS = (
    *(
        Claim(f"{target}: with most examples the risk beyond the kernel limit's falls with heads "
              "at a log-log slope of -1/2 or below",
              f"{target}_excess_slope", "<=", -0.5, SOURCE,
              stated="2026-11-26", null=f"{target}_excess_slope_of_mlp")
        for target in ("average_2", "weighted_1")
    ),
    *(
        Claim(f"{target}: with most heads the risk falls with examples at a log-log slope of -1/2 "
              "or below",
              f"{target}_risk_slope", "<=", -0.5, SOURCE,
              stated="2026-11-26", null=f"{target}_risk_slope_fewest_heads")
        for target in ("average_2", "weighted_1")
    ),
)  # fmt: skip
CAPTIONS = {
    "average_2_excess.png": "Averages of squares: risk beyond the kernel limit's against heads "
    "(log₂), by examples; bands: 95% interval over replicates.",
    "average_2_risk.png": "Averages of squares: risk against examples (log₂), by heads.",
    "weighted_1_excess.png": "Correlation-weighted averages: risk beyond the kernel limit's "
    "against heads (log₂), by examples; bands: 95% interval over replicates.",
    "weighted_1_risk.png": "Correlation-weighted averages: risk against examples (log₂), by heads.",
}
PICTURE = "average_2_excess.png"
TARGETS = ("average_2", "weighted_1")


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Measures risks of all numbers of heads and examples, fits exponents, draws."""
    progress = Progress()
    heads, sizes = list(config.heads), list(config.sizes)
    metrics: dict[str, float] = {"tries": len(config.regularizations)}
    found = [risks(config, replicate, progress) for replicate in range(config.replicates)]
    finite, limit, mlp = (np.stack(part) for part in zip(*found, strict=True))
    for t, target in enumerate(TARGETS):
        own = finite[..., t]  # replicates, heads, sizes
        excess = own - limit[:, None, :, t]
        fitted = {
            "excess_slope": slopes(heads, excess[..., -1]),
            # Against what is not its limit the risk does not fall to zero.
            "excess_slope_of_mlp": slopes(heads, np.abs(own[..., -1] - mlp[:, None, -1, t])),
            "risk_slope": slopes(sizes, own[:, -1]),
            "risk_slope_fewest_heads": slopes(sizes, own[:, 0]),
            "risk_slope_limit": slopes(sizes, limit[..., t]),
            "excess_fewest_heads": excess[:, 0, -1],
            "excess_most_heads": excess[:, -1, -1],
            "risk_limit": limit[:, -1, t],
            "risk_mlp": mlp[:, -1, t],
        }
        for name, values in fitted.items():
            metrics |= with_bounds(f"{target}_{name}", t_interval(values))
        draw(run, target, heads, sizes, excess, own)
    return metrics


def tries(config: Any) -> dict[str, int]:
    """How many penalties the model of finitely many heads and both limits choose from."""
    return dict.fromkeys(("finite", "limit", "mlp"), len(config.regularizations))


def risks(config: Any, replicate: int, progress: Progress) -> tuple[np.ndarray, ...]:
    """Risks of one replicate: [heads, sizes, targets], and [sizes, targets] of the two limits."""
    shape, train = dict(keys=config.num_keys, d=config.d), max(config.sizes)
    key = jax.random.fold_in(jax.random.key(config.seed), replicate)
    inputs, functions, noise, weights = jax.random.split(key, 4)
    query, keys = targets.draw_inputs(inputs, train + config.test, **shape)
    built = targets.build_targets(TARGETS, functions, **shape)
    values = standardised(jnp.stack([fn(query, keys) for fn in built.values()], axis=1))
    noise = config.noise * jax.random.normal(noise, (train, len(TARGETS)))
    values = values.at[:train].add(noise)  # tested on what is without

    def curve(gram: Any, cross: Any) -> np.ndarray:
        scale = jnp.mean(jnp.diagonal(gram))  # penalties are shares of it
        penalties = tuple(config.regularizations)
        return attention.learning_curve(
            gram / scale, cross / scale, values, penalties, tuple(config.sizes)
        )[0]

    finite = []
    for index, count in enumerate(config.heads):
        draws = []
        for one in jax.random.split(jax.random.fold_in(weights, index), config.draws):
            drawn = attention.draw_weights("rfa", one, count=count, scale=config.scale, **shape)
            draws.append(curve(*attention.grams("rfa", drawn, query, keys, train=train, blocks=1)))
        finite.append(np.mean(draws, axis=0))
    limits = []
    for model in ("rfa", "rf_mlp"):
        gram = jax.jit(attention.kernel(model, scale=config.scale))(
            query, keys, query[:train], keys[:train]
        )
        limits.append(curve(gram[:train], gram[train:]))
    last = np.asarray(finite)[:, -1].round(3).tolist()
    progress.note(f"replicate {replicate}: {last}, limit {limits[0][-1].round(3).tolist()}")
    return np.asarray(finite), limits[0], limits[1]


def slopes(x: Any, values: np.ndarray) -> np.ndarray:
    """Exponents by replicate; NaN where a value is not positive, as if it were not measured."""
    return log_log_slopes(x, np.where(values > 0, values, np.nan))


def draw(run: RunDirectory, target: str, heads: Any, sizes: Any, excess: Any, own: Any) -> None:
    """Draws excess risk against heads, and risk against examples."""
    series = {
        f"{n} examples": (np.log2(heads), *t_interval(excess[..., i].T))
        for i, n in enumerate(sizes)
    }
    path = run.figure(f"{target}_excess.png")
    figures.curves(path, series, "heads (log₂)", "excess risk", logy=True)
    series = {f"{m} heads": (np.log2(sizes), *t_interval(own[:, i].T)) for i, m in enumerate(heads)}
    path = run.figure(f"{target}_risk.png")
    figures.curves(path, series, "examples (log₂)", "risk", logy=True)
