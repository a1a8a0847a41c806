"""Machines of all splits of a table: trained with each of several options, scored, chosen."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.kernels.machines import propagation
from rml import kernels
from rml.data import tables
from rml.errors import UserError


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
      train: Function that trains machines, as `trainer` gives it.
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
