"""Sparse deep kernel machines beside the NNGP of the same depth, on tables of regression data.

Yang et al., arXiv:2108.13097. Both are trained on the same objective with the same inducing points,
kernel and steps; the NNGP is the machine whose Gram matrices stay at their kernels. On a validation
part of each split's training data the machine's ν and learning rate are chosen, and of as many
candidates the NNGP's learning rate, which has no ν. All splits train in one program, which serves
all ν and rates.
Intervals over splits are corrected for the examples that the splits share.
"""

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from experiments.common import figures
from experiments.common.selection import at_edge
from experiments.kernels.machines import draw_correlations, propagation
from rml import kernels
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
              f"{name}_gain", ">=", 0.01, SOURCE, stated=stated, null=f"{name}_gain_fixed_grams")
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
                f"Gram matrix of the inducing points of {name} in each layer {how}, points in the "
                "order of the targets where they started."
            )
    return found


NAMES = ("diabetes", "autompg", "boston")
CLAIMS = claims(NAMES, stated="2026-11-25")
CAPTIONS = captions(NAMES)
PICTURE = "boston_widths.png"


def trainer(config: Any, *, learned: bool) -> Any:
    """Trains machines of all splits: `train(x, y, width=ν, learning_rate=η)` compiles once."""
    shape = dict(inducing=config.model.inducing, depth=config.model.depth, learned=learned)
    return _trainer(tuple((shape | propagation(config) | dict(config.train)).items()))


@lru_cache(maxsize=8)
def _trainer(options: tuple[tuple[str, Any], ...]) -> Any:
    """The program of these options, the same for all tables."""
    return jax.jit(partial(kernels.train_splits, **dict(options)))


class Tried(NamedTuple):
    """Machines that were trained with each of several options.

    Attributes:
      machines: The machines of each option, trained on all training data of every split.
      scores: Their test scores [options, scores, splits].
      valid: Log-likelihoods of validation parts [options, splits], -inf where training diverged.
    """

    machines: list[kernels.SparseMachine]
    scores: Float[np.ndarray, "options scores splits"]
    valid: Float[np.ndarray, "options splits"]

    def best(self, among: Sequence[int]) -> Int[np.ndarray, " splits"]:
        """Finds the number of the option that is best for each split on its validation part."""
        return np.asarray(among)[np.argmax(self.valid[among], axis=0)]

    def of(self, chosen: Int[np.ndarray, " splits"]) -> Float[np.ndarray, "scores splits"]:
        """Picks the test scores of one option for each split."""
        return self.scores[chosen, :, range(len(chosen))].T


def try_all(train: Any, config: Any, split: Any, inner: Any, options: Any) -> Tried:
    """Trains machines with each of several options, on a part of the training data and on all.

    Args:
      train: As `trainer` gives it.
      config: The run's config.
      split: Splits with training and test data.
      inner: The same splits, the training data parted into training and validation data.
      options: Arguments of `train`, one set a candidate.

    Returns:
      What was trained.

    Raises:
      UserError: As `require_finite`.
    """
    valid = [score(config, train(inner.x, inner.y, **own), inner).log_likelihood for own in options]
    machines = [train(split.x, split.y, **own) for own in options]
    scores = np.stack([score(config, machine, split) for machine in machines])
    tried = Tried(machines, scores, np.where(np.isfinite(valid), valid, -np.inf))
    require_finite(config, tried, options)
    return tried


def require_finite(config: Any, tried: Tried, options: Any) -> None:
    """Raises `UserError` where all options diverged for a split, or the one that it chooses.

    The message says which matrix has no factor, if one has none. Other options may diverge: a
    learning rate that is too large is not chosen.
    """
    for i, number in enumerate(tried.best(range(len(options)))):
        if not np.isfinite([*tried.scores[number, :, i], tried.valid[number, i]]).all():
            first = jax.tree.map(lambda leaf, i=i: leaf[i], tried.machines[number])
            kernels.require_inducing(first, **propagation(config))
            raise UserError(
                f"training diverged in split {i} with {options[number]}: give lower "
                "optimizer.rates and optimizer.nngp_rates"
            )


@partial(jax.jit, static_argnames=("kernel", "normalization"))
def score_splits(machines: Any, x: Any, y: Any, **options: Any) -> kernels.Scores:
    """Scores of all splits, compiled once a shape."""
    score: Any = partial(kernels.regression_scores, **options)
    return jax.vmap(score)(machines, x, y)


def score(config: Any, machines: kernels.SparseMachine, split: tables.Split) -> kernels.Scores:
    """Test scores by split, not finite where training diverged."""
    found = score_splits(machines, split.test_x, split.test_y, **propagation(config))
    scores: kernels.Scores = jax.device_get(found)
    return scores


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains all machines on all splits of all tables, compares, draws."""
    if missing := sorted(set(NAMES) - set(config.data.names)):
        raise UserError(f"data.names lacks {missing}, which the claims are about")
    return run_tables(config, run, {name: tables.load_table(name) for name in config.data.names})


def run_tables(config: Any, run: RunDirectory, loaded: Any) -> dict[str, float]:
    """Measures tables of inputs and targets, given by name."""
    options = config.optimizer
    tries = len(config.model.widths) * len(options.rates)
    if (rates := len(options.nngp_rates)) != tries:
        raise UserError(
            f"optimizer.nngp_rates has {rates} values, expected {tries} as pairs of model.widths "
            "and optimizer.rates"
        )
    if options.rates[0] not in options.nngp_rates:
        raise UserError(
            f"optimizer.nngp_rates is {tuple(options.nngp_rates)}, expected the first of "
            f"optimizer.rates, {options.rates[0]}, among them"
        )
    metrics: dict[str, float] = {"tries_dkm": tries, "tries_nngp": rates}
    progress = Progress()
    # Threads cost more than they share of factorisations as small as these.
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        for name, table in loaded.items():
            metrics |= run_table(config, run, name, table, progress)
    return metrics


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
    pairs = [(width, rate) for width in widths for rate in rates]
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
    first = jax.tree.map(lambda leaf: leaf[0], learned.machines[0])
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
