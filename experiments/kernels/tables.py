"""Regression tables that packages carry, split and standardised."""

from typing import NamedTuple

import numpy as np

from rml.errors import UserError, unknown

TABLES = ("diabetes", "autompg", "boston")


class Split(NamedTuple):
    """Standardised by the statistics of the training part; the first axis is the split."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load_table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and target of a table of `TABLES`, complete rows only.

    `diabetes` comes with scikit-learn, `autompg` and `boston` with mlxtend. Boston's housing prices
    are here as the table that papers on Gaussian processes compare on, not for what they say: one
    of the inputs, B, was made from the share of Black residents on a premise about segregation
    that is disputed, for which scikit-learn has withdrawn the table.

    Raises:
      UserError: If the table is unknown or its package is not installed.
    """
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        x, y = load_diabetes(return_X_y=True)
    else:
        try:
            from mlxtend import data
        except ImportError as error:
            raise UserError(f"{name} is carried by mlxtend: pip install 'rml[demo]'") from error
        x, y = data.autompg_data() if name == "autompg" else data.boston_housing_data()
    x = x[:, np.isfinite(x).any(axis=0)]  # a column of names is all missing
    complete = np.isfinite(x).all(axis=1)
    return x[complete], y[complete]


def split(x: np.ndarray, y: np.ndarray, *, seeds: range, share: float) -> Split:
    """Random splits, one a seed, of which `share` is for training."""
    n = round(share * len(x))
    orders = [np.random.default_rng(seed).permutation(len(x)) for seed in seeds]
    return standardise(
        np.stack([x[order[:n]] for order in orders]),
        np.stack([y[order[:n], None] for order in orders]),
        np.stack([x[order[n:]] for order in orders]),
        np.stack([y[order[n:], None] for order in orders]),
    )


def standardise(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> Split:
    """Mean 0 and deviation 1 of every column on the training part."""
    mean, scale = x.mean(1, keepdims=True), x.std(1, keepdims=True)
    scale = np.where(scale > 0, scale, 1)
    centre, spread = y.mean(1, keepdims=True), y.std(1, keepdims=True)
    return Split(
        (x - mean) / scale,
        (y - centre) / spread,
        (test_x - mean) / scale,
        (test_y - centre) / spread,
    )


def hold_out(split: Split, *, share: float) -> Split:
    """A validation part taken from the end of each training part, the test part left out."""
    n = round((1 - share) * split.x.shape[1])
    return standardise(split.x[:, :n], split.y[:, :n], split.x[:, n:], split.y[:, n:])
