"""The area under the ROC curve beside scikit-learn's, and the intervals that are made of it."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rml.evaluation import auroc_by_group
from rml.ops import t_interval


def draw(rng, n, *, share=0.2, ties=False):
    positive = rng.permutation(np.arange(n) < round(share * n))
    scores = rng.standard_normal((2, n)) + 0.8 * positive
    return (np.round(scores) if ties else scores), positive


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_mean_is_the_area(ties, grouped):
    rng = np.random.default_rng(0)
    scores, positive = draw(rng, 90, ties=ties)
    groups = rng.integers(5, 12, 90) if grouped else None
    found = auroc_by_group(scores, positive, groups)
    assert found.shape == (2, 7 if grouped else 90)
    for own, of_one in zip(found, scores, strict=True):
        assert own.mean() == pytest.approx(roc_auc_score(positive, of_one), abs=1e-12)


def test_values_are_those_of_leaving_an_example_out():
    """To first order a value is n A - (n - 1) A', where A' is the area without the group."""
    rng = np.random.default_rng(1)
    (scores, _), positive = draw(rng, 3_000)
    groups = rng.permutation(3_000) % 60
    found = auroc_by_group(scores, positive, groups)
    area = roc_auc_score(positive, scores)
    left = [roc_auc_score(positive[groups != g], scores[groups != g]) for g in range(60)]
    expected = 60 * area - 59 * np.array(left)
    assert np.abs(found - expected).max() < 0.05 * found.std()


def test_the_interval_is_delongs():
    """Both variances of Var(A) = S10 / m + S01 / n, written out over pairs."""
    rng = np.random.default_rng(2)
    (first, second), positive = draw(rng, 400, share=0.1)
    values = auroc_by_group(np.stack([first, second]), positive)
    difference = values[0] - values[1]

    def pairs(scores):
        return (scores[positive][:, None] > scores[~positive]).astype(float)

    by_pair = pairs(first) - pairs(second)
    variance = by_pair.mean(1).var(ddof=1) / 40 + by_pair.mean(0).var(ddof=1) / 360
    assert difference.var(ddof=1) / 400 == pytest.approx(variance, rel=0.03)


@pytest.mark.slow
def test_days_that_share_their_weather_have_the_wider_interval_that_covers():
    """Scores and labels of a group move together: intervals over examples miss too often."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 25)
    covered = np.zeros(2)
    for _ in range(200):
        weather = rng.standard_normal((40, 2))[groups]
        positive = rng.standard_normal(1_000) + weather[:, 0] > 1.5
        scores = 0.5 * rng.standard_normal(1_000) + weather[:, 1]
        for i, of in enumerate((groups, None)):
            _, low, high = t_interval(auroc_by_group(scores, positive, of))
            covered[i] += low <= 0.5 <= high  # weather of scores is another one
    assert covered[0] / 200 > 0.9
    assert covered[1] / 200 < 0.7


@pytest.mark.parametrize(
    ("positive", "scores", "groups", "message"),
    [
        ([True, True], [0.0, 1.0], None, "needs both classes, all examples are positive"),
        ([False, False], [0.0, 1.0], None, "all examples are negative"),
        ([True, False], [0.0, np.nan], None, "scores must be finite"),
        ([True, False], [0.0, 1.0], [3, 3], "needs at least 2 groups, got 1"),
        ([True, False, True], [0.0, 1.0, 2.0], [3, 4], r"each of 3 examples, got shape \(2,\)"),
        ([1, 0], [0.0, 1.0], None, "must be of truth values, got an array of type int64"),
    ],
)
def test_wrong_input_is_named(unchecked, positive, scores, groups, message):
    groups = None if groups is None else np.array(groups)
    with pytest.raises(ValueError, match=message):
        auroc_by_group(np.array(scores), np.array(positive), groups)
