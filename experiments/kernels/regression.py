"""Sparse deep kernel machines beside the NNGP of the same depth, on tables of regression data.

Yang et al., arXiv:2108.13097. Both are trained on the same objective with the same inducing points,
kernel and steps; the NNGP is the machine whose Gram matrices stay at their kernels. On a validation
part of each split's training data the machine's ν and learning rate are chosen, and of as many
candidates the NNGP's learning rate, which has no ν. All splits train in one program, which serves
all ν and rates.
Intervals over splits are corrected for the examples that the splits share.
"""

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from experiments.common import figures
from experiments.common.selection import at_edge
from experiments.kernels.machines import draw_correlations, option_pairs
from experiments.kernels.regression_machines import trainer, try_all
from rml.data import tables
from rml.errors import UserError
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = (
    "arXiv:2108.13097: learned Gram matrices predict better; data and margin are ours; until "
    "2026-11-29 the machine had one learning rate and the NNGP's was at the edge of its grid"
)


def claims(names: Iterable[str], *, stated: str) -> tuple[Claim, ...]:
    """The claim of each table."""
    return tuple(
        Claim(f"Test log-likelihood on {name} is above the NNGP's by 0.01 nats, mean of the splits",
              f"{name}_gain", ">=", 0.01, SOURCE, stated=stated, null=f"{name}_gain_fixed_grams",
              says=f"Learned Gram matrices change the log-likelihood on {name} by {{mean:+.3f}} "
              "nats a point over the infinitely wide network of the same kernel")
        for name in names
    )  # fmt: skip


def captions(names: Iterable[str]) -> dict[str, str]:
    """Captions of the figures of each table."""
    found = {}
    for name in names:
        found[f"{name}_widths.png"] = (
            f"Test log-likelihood on {name} against ν, mean and 95% interval over splits, each by "
            "the learning rate that is best on validation parts; the NNGP is the limit of large ν."
        )
        for when, how in (("before", "as the NNGP has it"), ("after", "as it was learned")):
            found[f"{name}_gram_{when}.png"] = (
                f"Gram matrix of the inducing points of {name} in each layer {how}, by the machine "
                "chosen for the first split, points in the order of the targets where they started."
            )
    return found


NAMES = ("diabetes", "autompg", "boston")
CLAIMS = claims(NAMES, stated="2026-11-25")
CAPTIONS = captions(NAMES)
PICTURE = "boston_widths.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains all machines on all splits of all tables, compares, draws."""
    if missing := sorted(set(NAMES) - set(config.data.names)):
        raise UserError(f"data.names lacks {missing}, which the claims are about")
    return run_tables(config, run, {name: tables.load_table(name) for name in config.data.names})


def run_tables(config: Any, run: RunDirectory, loaded: Any) -> dict[str, float]:
    """Measures tables of inputs and targets, given by name."""
    options, pairs = config.optimizer, width_rate_pairs(config)
    if options.rates[0] not in options.nngp_rates:
        raise UserError(
            f"optimizer.nngp_rates is {tuple(options.nngp_rates)}, expected the first of "
            f"optimizer.rates, {options.rates[0]}, among them"
        )
    metrics: dict[str, float] = {"tries_dkm": len(pairs), "tries_nngp": len(options.nngp_rates)}
    progress = Progress()
    # Threads cost more than they share of factorisations as small as these.
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        for name, table in loaded.items():
            metrics |= run_table(config, run, name, table, progress)
    return metrics


def width_rate_pairs(config: Any) -> list[tuple[float, float]]:
    """Lists the pairs of ν and learning rate that the machine chooses from."""
    return option_pairs(config, "model.widths", "optimizer.rates", baseline="optimizer.nngp_rates")


def run_table(
    config: Any, run: RunDirectory, name: str, table: Any, progress: Progress
) -> dict[str, float]:
    """Measures one table."""
    started, widths = time.perf_counter(), list(config.model.widths)
    # Those of two seeds of the config have no split in common.
    seeds = range(config.seed * config.data.splits, (config.seed + 1) * config.data.splits)
    split = tables.random_splits(*table, seeds=seeds, share=config.data.train_share)
    inner = tables.hold_out(split, share=config.data.validation_share)
    rates, nngp_rates = list(config.optimizer.rates), list(config.optimizer.nngp_rates)
    pairs = width_rate_pairs(config)
    learned = try_all(
        trainer(config, learned=True), config, split, inner,
        [{"width": width, "learning_rate": rate} for width, rate in pairs],
    )  # fmt: skip
    progress.note(f"{name}: chosen among {len(pairs)} pairs of ν and rate")
    fixed = try_all(
        trainer(config, learned=False), config, split, inner,
        [{"width": 0.0, "learning_rate": rate} for rate in nngp_rates],
    )  # fmt: skip
    best, best_rate = learned.best(range(len(pairs))), fixed.best(range(len(nngp_rates)))
    dkm, nngp = learned.of(best), fixed.of(best_rate)
    by_width = np.stack([
        learned.of(learned.best([i for i, pair in enumerate(pairs) if pair[0] == width]))
        for width in widths
    ])  # fmt: skip
    # The splits are random parts of one table, so that their values are not independent.
    between = partial(t_interval, overlap=split.test_x.shape[1] / split.x.shape[1])
    gain = between(dkm[0] - nngp[0])
    lines = {"DKM": by_width[:, 0], "NNGP": np.tile(nngp[0], (len(widths), 1))}
    series = {label: (np.log10(widths), *between(own)) for label, own in lines.items()}
    path = run.figure(f"{name}_widths.png")
    figures.curves(path, series, "log10 of ν", "test log-likelihood (nats)")
    order = np.argsort(split.y[0, : config.model.inducing, 0])
    first = jax.tree.map(lambda leaf: leaf[0], learned.machines[best[0]])
    for when, raw in (("before", jnp.zeros_like(first.raw)), ("after", first.raw)):
        path = run.figure(f"{name}_gram_{when}.png")
        draw_correlations(path, config, first._replace(raw=raw), order)
    # At the largest ν Gram matrices stay at their kernels: nothing is learned in them.
    kept = learned.scores[pairs.index((max(widths), rates[0])), 0]
    unlearned = kept - fixed.scores[nngp_rates.index(rates[0]), 0]
    metrics: dict[str, Any] = {
        "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high,
        "gain_fixed_grams": unlearned.mean(),
    }  # fmt: skip
    for method, scores in (("dkm", dkm), ("nngp", nngp)):
        for metric, values in zip(("log_likelihood", "rmse", "coverage"), scores, strict=True):
            metrics[f"{method}_{metric}"] = values.mean()
    for width, scores in zip(widths, by_width, strict=True):
        metrics[f"log_likelihood_width_{width:g}"] = scores[0].mean()
    chosen = np.array(pairs)[best].T
    metrics["median_width"], metrics["median_rate"] = np.median(chosen, axis=1)
    metrics["median_nngp_rate"] = np.median(np.take(nngp_rates, best_rate))
    for key, own, tried in (
        ("nngp_rate", np.take(nngp_rates, best_rate), nngp_rates), ("width", chosen[0], widths)
    ):  # fmt: skip
        metrics[f"{key}_at_edge"] = np.mean([at_edge(value, tried) for value in own])
    metrics["seconds"] = time.perf_counter() - started
    progress.note(f"{name}: gain {metrics['gain']:.3f} nats, {metrics['seconds']:.0f} s")
    return {f"{name}_{key}": float(value) for key, value in metrics.items()}
