"""Sparse deep kernel machines beside the NNGP of the same depth, on tables of regression data.

Both are trained on the same objective with the same inducing points, kernel and steps; the NNGP is
the machine whose Gram matrices stay at their kernels. ν is chosen for each split on a validation
part of its training data. All splits and all ν train in one program.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from threadpoolctl import threadpool_limits

from experiments import figures
from experiments.kernels import tables
from experiments.kernels.drawing import draw_correlations
from rml.errors import UserError
from rml.kernels import gram as kernels
from rml.kernels import sparse
from rml.kernels.nngp import gaussian_log_likelihood
from rml.kernels.optimize import descend
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


def trainer(config: Any, *, learned: bool) -> Callable[..., sparse.SparseMachine]:
    """Trains machines of all splits at one ν, which is traced, so it compiles once a shape.

    `learned` says whether Gram matrices are; if not, it is the NNGP and ν plays no part.
    """
    steps, p = config.train.steps, config.model.inducing
    optimizer = optax.adam(optax.cosine_decay_schedule(config.optimizer.learning_rate, steps))
    bound = partial(
        sparse.elbo, kernel=kernels.build(config.model.kernel), likelihood="gaussian",
        normalization=config.model.normalization,
    )  # fmt: skip

    def fit(x: Any, y: Any, width: Any) -> sparse.SparseMachine:
        first = sparse.init_sparse(
            x[:p], depth=config.model.depth, outputs=y.shape[1], learned=learned
        )
        widths = jnp.full(config.model.depth, width)
        return descend(
            lambda machine, _: -bound(machine, x, y, total=len(x), widths=widths),
            first,
            jnp.arange(steps),
            optimizer=optimizer,
        )

    # Not vmap: batched LAPACK calls inside a scan can wait for each other forever on few cores.
    return jax.jit(
        lambda split, width: jax.lax.map(
            lambda part: fit(part[0], part[1], width), (split.x, split.y)
        )
    )


def judge(config: Any, machine: sparse.SparseMachine, split: tables.Split) -> np.ndarray:
    """Test log-likelihood, root mean squared error and coverage of the 95% interval, by split.

    Raises:
      UserError: If they are not finite for a split: which matrix has no factor, if one has none.
    """
    kernel, how = kernels.build(config.model.kernel), config.model.normalization

    def one(machine: sparse.SparseMachine, x: Any, y: Any) -> Any:
        prediction = sparse.propagate_sparse(
            machine, x, kernel=kernel, normalization=how
        ).prediction
        noise = jnp.exp(machine.log_noise)
        error = jnp.abs(y - prediction.mean)
        bound = 1.96 * jnp.sqrt(prediction.variance + noise)[:, None]
        return jnp.stack(
            [
                gaussian_log_likelihood(prediction, y, noise=noise),
                jnp.sqrt(jnp.mean(error**2)),
                jnp.mean(error <= bound),
            ]
        )

    scores = np.asarray(jax.jit(jax.vmap(one))(machine, split.test_x, split.test_y))
    if bad := np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist():
        first = jax.tree.map(lambda leaf: leaf[bad[0]], machine)
        sparse.require_inducing(first, kernel=kernel, normalization=how)
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
    """One table."""
    started = time.perf_counter()
    x, y = tables.load_table(name)
    seeds = range(config.seed, config.seed + config.data.splits)
    split = tables.split(x, y, seeds=seeds, share=config.data.train_share)
    inner = tables.hold_out(split, share=config.data.validation_share)
    widths = list(config.model.widths)
    train = trainer(config, learned=True)
    valid = np.stack([judge(config, train(inner, w), inner)[:, 0] for w in widths])
    progress.note(f"{name}: validated {len(widths)} values of ν")
    machines: dict[float | None, Any] = {w: train(split, w) for w in widths}
    machines[None] = trainer(config, learned=False)(split, 0.0)
    tests = {w: judge(config, machine, split) for w, machine in machines.items()}
    best = valid.argmax(axis=0)
    chosen = np.stack([tests[widths[b]][i] for i, b in enumerate(best)])
    gain = chosen[:, 0] - tests[None][:, 0]
    half = stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain) if len(gain) > 1 else np.nan
    draw(run, config, name, machines, tests, split)
    metrics = {"gain": gain.mean(), "gain_low": gain.mean() - half, "gain_high": gain.mean() + half}
    for method, values in (("dkm", chosen), ("nngp", tests[None])):
        for metric, value in zip(("log_likelihood", "rmse", "coverage"), values.mean(0),
                                 strict=True):  # fmt: skip
            metrics[f"{method}_{metric}"] = value
    metrics |= {f"log_likelihood_width_{w:g}": tests[w][:, 0].mean() for w in widths}
    metrics["median_width"] = np.median([widths[b] for b in best])
    metrics["seconds"] = time.perf_counter() - started
    progress.note(f"{name}: gain {metrics['gain']:.3f} nats, {metrics['seconds']:.0f} s")
    return {f"{name}_{key}": float(value) for key, value in metrics.items()}


def draw(
    run: RunDirectory, config: Any, name: str, machines: Any, tests: Any, split: tables.Split
) -> None:
    """Log-likelihood against ν, and the Gram matrices of the first split before and after."""
    widths = np.asarray(config.model.widths, float)
    series = {}
    for label, rows in (
        ("DKM", [tests[w][:, 0] for w in config.model.widths]),
        ("NNGP", [tests[None][:, 0]] * len(widths)),
    ):
        values = np.stack(rows)
        half = 1.96 * values.std(1) / np.sqrt(values.shape[1])
        mean = values.mean(1)
        series[label] = (np.log10(widths), mean, mean - half, mean + half)
    figures.curves(
        run.figure(f"{name}_widths.png"), series, "log10 of ν", "test log-likelihood (nats)"
    )
    machine = jax.tree.map(lambda leaf: leaf[0], machines[config.model.widths[0]])
    order = np.argsort(split.y[0, : config.model.inducing, 0])
    for when, raw in (("before", jnp.zeros_like(machine.raw)), ("after", machine.raw)):
        path = run.figure(f"{name}_gram_{when}.png")
        draw_correlations(path, config, machine._replace(raw=raw), order)
