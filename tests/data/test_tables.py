import re
import sys

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.preprocessing import StandardScaler

from rml.data import tables
from rml.errors import UserError, install


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("diabetes", (442, 10)),
        ("autompg", (392, 7)),
        ("boston", (506, 13)),
        ("wine", (178, 12)),
        ("cells", (569, 10)),
    ],
)
def test_tables_are_complete(name, shape):
    x, y = tables.load_table(name)
    assert x.shape == shape
    assert y.shape == (shape[0], 1)
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()
    assert (x.std(axis=0) > 0).all()
    assert np.abs(np.corrcoef(x.T, y[:, 0])[-1, :-1]).max() < 0.95  # no input is the target


def test_diabetes_is_scikit_learns():
    x, y = load_diabetes(return_X_y=True)
    ours = tables.load_table("diabetes")
    np.testing.assert_array_equal(ours[0], x)
    np.testing.assert_array_equal(ours[1][:, 0], y)


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(UserError, match="unknown table 'bostn'; did you mean 'boston'"):
        tables.load_table("bostn")
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(
        UserError, match=re.escape(f"autompg is carried by mlxtend: {install('demo')}")
    ):
        tables.load_table("autompg")


def numbered(n=20):
    """A table whose first target tells the row."""
    x = np.random.default_rng(0).gamma(2.0, size=(n, 3)) * [1, 10, 100] + 5
    return x, np.stack([np.arange(n, dtype=float), x[:, 1]], axis=1)


def test_splits_are_disjoint_reproducible_and_standardised_by_their_training_part():
    x, y = numbered()
    found = tables.random_splits(x, y, seeds=range(4, 7), share=0.7)
    assert found.x.shape == (3, 14, 3)
    assert found.test_y.shape == (3, 6, 2)
    for index, seed in enumerate((4, 5, 6)):
        order = np.random.default_rng(seed).permutation(20)
        scalers = [StandardScaler().fit(part[order[:14]]) for part in (x, y)]
        expected = [s.transform(part[order[:14]]) for s, part in zip(scalers, (x, y), strict=True)]
        expected += [s.transform(part[order[14:]]) for s, part in zip(scalers, (x, y), strict=True)]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[index], theirs, rtol=1e-10, atol=1e-12)
    alone = tables.random_splits(x, y, seeds=[5], share=0.7)
    np.testing.assert_array_equal(alone.x[0], found.x[1])


def test_validation_is_the_end_of_the_training_part_alone():
    x, y = numbered()
    split = tables.random_splits(x, y, seeds=range(2), share=0.8)
    inner = tables.hold_out(split, share=0.25)
    assert inner.x.shape == (2, 12, 3)
    assert inner.test_x.shape == (2, 4, 3)
    for index in (0, 1):
        scaler = StandardScaler().fit(split.y[index, :12])
        np.testing.assert_allclose(inner.y[index], scaler.transform(split.y[index, :12]), atol=1e-9)
        np.testing.assert_allclose(
            inner.test_y[index], scaler.transform(split.y[index, 12:16]), atol=1e-9
        )
        np.testing.assert_allclose(inner.x[index].mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(inner.x[index].std(0), 1, rtol=1e-9)


def test_one_table_is_standardised_as_many_and_constant_columns_become_zero():
    x, y = numbered()
    x[:, 2] = 7.0
    one = tables.standardise(tables.Split(x[:15], y[:15], x[15:], y[15:]))
    many = tables.standardise(tables.Split(x[None, :15], y[None, :15], x[None, 15:], y[None, 15:]))
    for ours, theirs in zip(one, many, strict=True):
        np.testing.assert_allclose(ours, theirs[0], rtol=1e-12, atol=1e-12)
    assert not one.x[:, 2].any()
    assert not one.test_x[:, 2].any()


@pytest.mark.parametrize("value", [0.1, 1.1, 5.7, 1e5 + 0.1, -1e-9])
@pytest.mark.parametrize("rows", [3, 7, 20, 1000])
def test_constant_columns_become_zero_whatever_their_mean_is_rounded_to(rows, value):
    varied = np.random.default_rng(0).normal(size=(rows + 2, 1))
    x = np.concatenate([np.full((rows + 2, 1), value), varied], axis=1)
    x[-1, 0] += 0.5
    found = tables.standardise(tables.Split(x[:-2], varied[:-2], x[-2:], varied[-2:]))
    assert not found.x[:, 0].any()
    np.testing.assert_allclose(found.test_x[:, 0], [0, 0.5], atol=1e-9)
    mean, deviation = x[:-2].mean(axis=0), x[:-2].std(axis=0)
    np.testing.assert_array_equal(found.x[:, 1], (x[:-2, 1] - mean[1]) / deviation[1])


def test_parts_without_rows_are_an_error():
    x, y = numbered(4)
    with pytest.raises(UserError, match=r"a share of 0\.05 of 4 rows is 0, expected 1 to 3"):
        tables.random_splits(x, y, seeds=range(1), share=0.05)
    split = tables.random_splits(x, y, seeds=range(1), share=0.5)
    with pytest.raises(UserError, match="a share of 1 of 2 rows is 2, expected 1 to 1"):
        tables.hold_out(split, share=0.0)


def test_friedmans_function_is_scikit_learns_with_noise():
    found = tables.draw_friedman(500, 40, noise=0.5, seed=3)
    x, y = make_friedman1(540, noise=0.5, random_state=3)
    assert all(part.dtype == np.float32 for part in found)
    scaler = StandardScaler().fit(x[:500])
    np.testing.assert_allclose(found.test_x, scaler.transform(x[500:]), atol=1e-5)
    scaler = StandardScaler().fit(y[:500, None])
    np.testing.assert_allclose(found.y, scaler.transform(y[:500, None]), atol=1e-5)
