"""Sparse deep kernel machines beside the NNGP of the same depth, on tables of regression data.

Both are trained on the same objective with the same inducing points, kernel and steps; the NNGP is
the machine whose Gram matrices stay at their kernels. ν is chosen for each split on a validation
part of its training data. All splits train in one program.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from experiments import figures
from experiments.kernels import tables
from experiments.kernels.drawing import draw_correlations
from rml.kernels import gram as kernels
from rml.kernels import sparse
from rml.kernels.nngp import gaussian_log_likelihood
from rml.kernels.optimize import descend
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2108.13097: learned Gram matrices predict better; data and margin are ours"
CLAIMS = (
    Claim("Test log-likelihood on diabetes is above the NNGP's by 0.01 nats, mean of the splits",
          "diabetes_gain", ">=", 0.01, SOURCE),
    Claim("Test log-likelihood on autompg is above the NNGP's by 0.01 nats, mean of the splits",
          "autompg_gain", ">=", 0.01, SOURCE),
)  # fmt: skip
CAPTIONS = {
    f"{name}_widths.png": f"Test log-likelihood on {name} against ν, mean and 95% interval over "
    "splits; the NNGP is the limit of large ν."
    for name in ("diabetes", "autompg")
} | {
    f"{name}_gram_{when}.png": f"Gram matrix of the inducing points of {name} in each layer "
    f"{'as the NNGP has it' if when == 'before' else 'as it was learned'}, points in the order of "
    "the targets where they started."
    for name in ("diabetes", "autompg")
    for when in ("before", "after")
}


def train(config: Any, split: tables.Split, width: float | None) -> sparse.SparseMachine:
    """Machines of all splits at one ν; None is the NNGP."""
    total, p = split.x.shape[1], config.model.inducing
    objective = partial(
        sparse.elbo,
        total=total,
        kernel=kernels.build(config.model.kernel),
        widths=jnp.full(config.model.depth, width or 0.0),
        likelihood="gaussian",
        normalization=config.model.normalization,
    )

    def fit(x: Any, y: Any) -> sparse.SparseMachine:
        machine = sparse.init_sparse(
            x[:p], depth=config.model.depth, outputs=y.shape[1], learned=width is not None
        )
        schedule = optax.cosine_decay_schedule(config.optimizer.learning_rate, config.train.steps)
        return descend(
            lambda machine, _: -objective(machine, x, y),
            machine,
            jnp.arange(config.train.steps),
            optimizer=optax.adam(schedule),
        )

    # Not vmap: batched LAPACK calls inside a scan can wait for each other forever on few cores.
    return jax.jit(lambda x, y: jax.lax.map(lambda part: fit(*part), (x, y)))(split.x, split.y)


def judge(config: Any, machine: sparse.SparseMachine, split: tables.Split) -> np.ndarray:
    """Test log-likelihood, root mean squared error and coverage of the 95% interval, by split."""
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

    return np.asarray(jax.jit(jax.vmap(one))(machine, split.test_x, split.test_y))


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains all machines on all splits of all tables, compares, draws."""
    metrics: dict[str, float] = {}
    progress = Progress()
    with jax.enable_x64(True):
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
    valid = np.stack([judge(config, train(config, inner, w), inner)[:, 0] for w in widths])
    progress.note(f"{name}: validated {len(widths)} values of ν")
    machines = {w: train(config, split, w) for w in (*widths, None)}
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
