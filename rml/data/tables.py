"""Regression tables that packages carry or draw, split and standardised.

Inputs are [n, d] and targets [n, c]; axes before these, such as one over splits, are kept.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rml.errors import UserError, install, unknown

TABLES = ("diabetes", "autompg", "boston", "wine", "cells", "flights")


class Split(NamedTuple):
    """Training and test part of a table, or of several splits of it.

    Attributes:
      x: Training inputs.
      y: Training targets.
      test_x: Test inputs.
      test_y: Test targets.
    """

    x: Float[np.ndarray, "*splits n d"]
    y: Float[np.ndarray, "*splits n c"]
    test_x: Float[np.ndarray, "*splits t d"]
    test_y: Float[np.ndarray, "*splits t c"]


def load_table(name: str) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n 1"]]:
    """Loads inputs and target of a table, complete rows only.

    `diabetes`, `wine` and `cells` come with scikit-learn, `autompg` and `boston` with mlxtend,
    `flights` by `make assets`. The target of `wine` is the alcohol of wines from twelve other
    measurements; of `cells` the worst concavity of the nuclei of a tumour from means over its
    nuclei; of `flights` the minutes of delay at arrival from month, day, hour, distance and the
    airport of origin, one column each.

    Boston's housing prices are here as the table that papers on Gaussian processes compare on, not
    for what they say: one of the inputs, B, was made from the share of Black residents on a premise
    about segregation that is disputed, for which scikit-learn has withdrawn the table.

    Args:
      name: One of `TABLES`.

    Raises:
      UserError: If the table is unknown, or its package or archive is not there.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    if name in ("autompg", "boston"):
        try:
            from mlxtend import data
        except ImportError as error:
            raise UserError(f"{name} is carried by mlxtend: {install('demo')}") from error
        x, y = data.autompg_data() if name == "autompg" else data.boston_housing_data()
    elif name == "flights":
        x, y = _flights()
    else:
        from sklearn import datasets  # slow to import

        if name == "diabetes":
            x, y = datasets.load_diabetes(return_X_y=True)
        elif name == "wine":
            x = datasets.load_wine().data
            x, y = x[:, 1:], x[:, 0]
        else:
            found = datasets.load_breast_cancer()
            worst = list(found.feature_names).index("worst concavity")
            x, y = found.data[:, :10], found.data[:, worst]
    x = x[:, np.isfinite(x).any(axis=0)]  # a column of names is all missing
    complete = np.isfinite(x).all(axis=1)
    return x[complete], y[complete, None]


def draw_friedman(train: int, test: int, *, noise: float, seed: int) -> Split:
    """Draws Friedman's first function of ten inputs, five of which matter, as scikit-learn does.

    Args:
      train: Number of training points.
      test: Number of test points.
      noise: Deviation of the targets from the function.
      seed: Seed of the draw.

    Returns:
      Standardised single-precision inputs and targets.
    """
    from sklearn.datasets import make_friedman1  # slow to import

    x, y = make_friedman1(train + test, noise=noise, random_state=seed)
    x, y = x.astype(np.float32), y[:, None].astype(np.float32)
    return standardise(Split(x[:train], y[:train], x[train:], y[train:]))


def random_splits(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n c"], *, seeds: Iterable[int], share: float
) -> Split:
    """Splits a table at random, once a seed, and standardises each split.

    Args:
      x: Inputs.
      y: Targets.
      seeds: Seeds of the splits, which become the first axis.
      share: Share of the rows that is for training.

    Returns:
      The splits.

    Raises:
      UserError: If a part would be empty.
    """
    n = _count(share, len(x))
    orders = np.stack([np.random.default_rng(seed).permutation(len(x)) for seed in seeds])
    train, test = orders[:, :n], orders[:, n:]
    return standardise(Split(x[train], y[train], x[test], y[test]))


def hold_out(split: Split, *, share: float) -> Split:
    """Takes a validation part from the end of each training part and leaves the test part out.

    Args:
      split: A table or splits of it.
      share: Share of the training rows that is for validation.

    Returns:
      The rest of the training part, and the validation part as the test part, standardised anew.

    Raises:
      UserError: If a part would be empty.
    """
    n = _count(1 - share, split.x.shape[-2])
    x, y = split.x, split.y
    return standardise(Split(x[..., :n, :], y[..., :n, :], x[..., n:, :], y[..., n:, :]))


def standardise(split: Split) -> Split:
    """Shifts and scales every column to mean 0 and deviation 1 on the training part.

    Columns that are constant there are shifted alone: they are 0 there, and on the test part what
    they differ by.
    """
    x, test_x = _standardise(split.x, split.test_x)
    y, test_y = _standardise(split.y, split.test_y)
    return Split(x, y, test_x, test_y)


def _flights() -> tuple[np.ndarray, np.ndarray]:
    from rml.data.sets.flights import NUMBERS, read  # needs TFDS

    rows = list(read())
    airports = sorted({row["origin"] for row in rows})
    numbers = np.array([[row[name] for name in NUMBERS] for row in rows], np.float64)
    origin = np.array([[row["origin"] == airport for airport in airports] for row in rows])
    return np.concatenate([numbers, origin], axis=1), np.array([row["delay"] for row in rows])


def _standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, scale = train.mean(axis=-2, keepdims=True), train.std(axis=-2, keepdims=True)
    first = train[..., :1, :]
    # Rounding puts the mean of equal numbers beside them, and that distance is no deviation.
    constant = (train == first).all(axis=-2, keepdims=True)
    mean, scale = np.where(constant, first, mean), np.where(constant | (scale == 0), 1, scale)
    return (train - mean) / scale, (test - mean) / scale


def _count(share: float, rows: int) -> int:
    n = round(share * rows)
    if not 0 < n < rows:
        raise UserError(f"a share of {share:g} of {rows} rows is {n}, expected 1 to {rows - 1}")
    return n
