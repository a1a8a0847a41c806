"""Errors of single layers: how they fall with samples and blocks, and what sorting gains."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention import approximation, hyperattention_figures
from experiments.common.claims import with_bounds
from rml.attention.hyper_samples import HyperSettings
from rml.evaluation import log_log_slopes, paired_bootstrap
from rml.ops import t_interval
from rml.training import RunDirectory


def layer_errors(
    config: Any, captured: Sequence[tuple[jax.Array, ...]], run: RunDirectory
) -> dict[str, float]:
    """Measures errors of layers against samples and blocks beside uniform samples; draws them.

    Args:
      config: The run's config, of which `errors`, `planes` and `seed` are read.
      captured: Queries [h, t, k], keys and values [g, t, k] of each layer.
      run: The run directory.

    Returns:
      Metrics: slopes over seeds of planes, gains over pairs of layer and head, alpha.
    """
    options = config.errors
    rngs = jax.random.split(jax.random.key(config.seed + 2), options.seeds)
    parts = [approximation.halves(*qkv) for qkv in captured]

    @functools.cache  # figures and comparisons share some
    def logs(planes: int, block: int, samples: int, hashed: bool = True) -> np.ndarray:
        """Logarithms of relative errors [seeds, layers, heads]."""
        settings = HyperSettings(planes, block, samples)
        found = [
            approximation.errors(part, rngs, settings=settings, hashed=hashed) for part in parts
        ]
        return np.log(np.stack(found, axis=1))

    def means(rows: Any) -> np.ndarray:
        """Geometric means over layers and heads, [seeds, sizes]."""
        return np.exp(np.stack([row.mean((1, 2)) for row in rows], axis=1))

    by_samples = means(logs(config.planes, options.block, m) for m in options.samples)
    recent = np.exp([
        np.log([approximation.errors_of_recent(part, keys=options.block + m) for part in parts]
        ).mean() for m in options.samples
    ])  # fmt: skip
    slopes = log_log_slopes(options.samples, by_samples)
    metrics = with_bounds("samples_slope", t_interval(slopes))
    metrics["samples_slope_distance"] = float(np.abs(slopes + 0.5).mean())
    metrics["samples_slope_recent"] = float(log_log_slopes(options.samples, recent))
    metrics["samples_slope_distance_recent"] = abs(metrics["samples_slope_recent"] + 0.5)
    by_block = {}
    for name, hashed in (("", True), ("_unhashed", False)):
        rows = [logs(config.planes, b, options.beside, hashed=hashed) for b in options.blocks]
        by_block[name] = means(rows)
        slope = t_interval(log_log_slopes(options.blocks, by_block[name]))
        metrics |= with_bounds(f"block_slope{name}", slope)
    block = options.block
    uniform = logs(0, block, block + options.beside).mean(0)
    ours, by_place = (
        logs(config.planes, block, options.beside, hashed=how) for how in (True, False)
    )
    compared = {
        "gain_over_uniform": (uniform, ours.mean(0)),
        "gain_unhashed": (uniform, by_place.mean(0)),
        "gain_of_sorting": (by_place.mean(0), ours.mean(0)),
        "gain_between_draws": (ours[::2].mean(0), ours[1::2].mean(0)),
    }
    gains = {name: other - own for name, (other, own) in compared.items()}
    for name, pair in compared.items():
        errors = (jnp.asarray(x.ravel()) for x in pair)
        saved = paired_bootstrap(*errors, key=jax.random.key(config.seed))
        metrics |= with_bounds(name, (1 - np.exp(-value) for value in saved[:3]))
    alpha = np.stack([approximation.alphas(part) for part in parts])
    root = parts[0].query.shape[2] ** 0.5
    metrics |= {"alpha_median": float(np.median(alpha)), "alpha_largest": float(alpha.max()),
                "alpha_share_below_root": float((alpha < root).mean())}  # fmt: skip
    layer, head = np.unravel_index(gains["gain_over_uniform"].argmax(), alpha.shape)
    picture = approximation.pictures(
        parts[layer], rngs[0], settings=HyperSettings(config.planes, block), head=int(head),
        cells=options.cells,
    )  # fmt: skip
    hyperattention_figures.of_errors(
        run, options.samples, by_samples, recent, metrics, options.blocks, by_block, picture
    )
    return metrics
