"""Sparse deep kernel machines beside the NNGP of the same depth, on tables of regression data.

Yang et al., arXiv:2108.13097. Both are trained on the same objective with the same inducing points,
kernel and steps; the NNGP is the machine whose Gram matrices stay at their kernels. ν is chosen for
each split on a validation part of its training data. All splits train in one program, which serves
all ν.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from experiments.common import figures
from experiments.kernels.machines import draw_correlations, propagation
from rml import kernels
from rml.data import tables
from rml.errors import UserError
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2108.13097: learned Gram matrices predict better; data and margin are ours"
CLAIMS = tuple(
    Claim(f"Test log-likelihood on {name} is above the NNGP's by 0.01 nats, mean of the splits",
          f"{name}_gain", ">=", 0.01, SOURCE)
    for name in tables.TABLES
)  # fmt: skip
CAPTIONS = {
    f"{name}_widths.png": f"Test log-likelihood on {name} against ν, mean and 95% interval over "
    "splits; the NNGP is the limit of large ν."
    for name in tables.TABLES
} | {
    f"{name}_gram_{when}.png": f"Gram matrix of the inducing points of {name} in each layer "
    f"{'as the NNGP has it' if when == 'before' else 'as it was learned'}, points in the order of "
    "the targets where they started."
    for name in tables.TABLES
    for when in ("before", "after")
}
PICTURE = "boston_widths.png"


def trainer(config: Any, *, learned: bool) -> Any:
    """Trains machines of all splits at one ν: `train(x, y, width=ν)` compiles once a shape."""
    return jax.jit(
        partial(
            kernels.train_splits, learned=learned, inducing=config.model.inducing,
            depth=config.model.depth, **propagation(config), **config.optimizer, **config.train,
        )
    )  # fmt: skip


def judge(config: Any, machines: kernels.SparseMachine, split: tables.Split) -> kernels.Scores:
    """Test scores by split.

    Raises:
      UserError: If they are not finite for a split: which matrix has no factor, if one has none.
    """
    score = jax.jit(jax.vmap(partial(kernels.regression_scores, **propagation(config))))
    scores: kernels.Scores = jax.device_get(score(machines, split.test_x, split.test_y))
    if bad := np.flatnonzero(~np.isfinite(scores).all(axis=0)).tolist():
        first = jax.tree.map(lambda leaf: leaf[bad[0]], machines)
        kernels.require_inducing(first, **propagation(config))
        raise UserError(f"training diverged in splits {bad}: lower optimizer.learning_rate")
    return scores


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains all machines on all splits of all tables, compares, draws."""
    if missing := sorted(set(tables.TABLES) - set(config.data.names)):
        raise UserError(f"data.names lacks {missing}, which the claims are about")
    metrics: dict[str, float] = {}
    progress = Progress()
    # Threads cost more than they share of factorisations as small as these.
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        for name in config.data.names:
            metrics |= run_table(config, run, name, progress)
    return metrics


def run_table(config: Any, run: RunDirectory, name: str, progress: Progress) -> dict[str, float]:
    """Measures one table."""
    started, widths = time.perf_counter(), list(config.model.widths)
    seeds = range(config.seed, config.seed + config.data.splits)
    table = tables.load_table(name)
    split = tables.random_splits(*table, seeds=seeds, share=config.data.train_share)
    inner = tables.hold_out(split, share=config.data.validation_share)
    train, train_nngp = (trainer(config, learned=learned) for learned in (True, False))
    valid = [judge(config, train(inner.x, inner.y, width=w), inner).log_likelihood for w in widths]
    progress.note(f"{name}: validated {len(widths)} values of ν")
    machines = [train(split.x, split.y, width=w) for w in widths]
    by_width = np.stack([judge(config, machine, split) for machine in machines])
    nngp = np.stack(judge(config, train_nngp(split.x, split.y, width=0.0), split))
    best = np.argmax(valid, axis=0)
    dkm = by_width[best, :, range(len(best))].T
    gain = t_interval(dkm[0] - nngp[0])
    lines = {"DKM": by_width[:, 0], "NNGP": np.tile(nngp[0], (len(widths), 1))}
    series = {label: (np.log10(widths), *t_interval(own)) for label, own in lines.items()}
    path = run.figure(f"{name}_widths.png")
    figures.curves(path, series, "log10 of ν", "test log-likelihood (nats)")
    order = np.argsort(split.y[0, : config.model.inducing, 0])
    first = jax.tree.map(lambda leaf: leaf[0], machines[0])
    for when, raw in (("before", jnp.zeros_like(first.raw)), ("after", first.raw)):
        path = run.figure(f"{name}_gram_{when}.png")
        draw_correlations(path, config, first._replace(raw=raw), order)
    metrics: dict[str, Any] = {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    for method, scores in (("dkm", dkm), ("nngp", nngp)):
        for metric, values in zip(("log_likelihood", "rmse", "coverage"), scores, strict=True):
            metrics[f"{method}_{metric}"] = values.mean()
    for width, scores in zip(widths, by_width, strict=True):
        metrics[f"log_likelihood_width_{width:g}"] = scores[0].mean()
    metrics["median_width"] = np.median(np.take(widths, best))
    metrics["seconds"] = time.perf_counter() - started
    progress.note(f"{name}: gain {metrics['gain']:.3f} nats, {metrics['seconds']:.0f} s")
    return {f"{name}_{key}": float(value) for key, value in metrics.items()}
