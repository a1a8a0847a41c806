import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from rml.evaluation.calibration import expected_calibration_error, probability_scores


def test_a_case_by_hand():
    """Bins of a third: {0.2, 0.3} with one right, {0.4} wrong, {0.9, 1.0} right."""
    confidence = np.array([0.2, 0.9, 0.4, 0.3, 1.0])
    correct = np.array([True, True, False, False, True])
    expected = (abs(1 - 0.5) + abs(0 - 0.4) + abs(2 - 1.9)) / 5
    assert expected_calibration_error(confidence, correct, bins=3) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_it_is_the_weighted_mean_over_bins(bins):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=400)
    # Too sure in some bins, not sure enough in others: else every binning finds the same.
    correct = rng.uniform(size=400) < 0.35 + 0.35 * np.sin(20 * confidence)
    expected = 0.0
    for b in range(bins):
        own = (b / bins <= confidence) & (confidence < (b + 1) / bins)
        if own.any():
            expected += own.mean() * abs(correct[own].mean() - confidence[own].mean())
    found = expected_calibration_error(confidence, correct, bins=bins)
    assert found == pytest.approx(expected)
    assert found > 0.05


def test_honest_confidence_has_none_and_false_certainty_has_all():
    sure = np.ones(8, np.float32)
    assert expected_calibration_error(sure, np.ones(8, bool)) == 0
    assert expected_calibration_error(sure, np.zeros(8, bool)) == 1
    half = np.full(8, 0.5)
    assert expected_calibration_error(half, np.arange(8) % 2 == 0) == 0
    # Of a rounded logarithm.
    assert expected_calibration_error(sure + np.float32(1e-6), np.ones(8, bool)) < 1e-5


def test_what_has_no_answer_is_an_error(unchecked):
    for confidence, correct in (
        (np.ones(3), np.ones(2, bool)),
        (np.ones(0), np.ones(0, bool)),
        (np.ones((2, 2)), np.ones((2, 2), bool)),
    ):
        with pytest.raises(ValueError, match="vectors of one length, at least 1, got shapes"):
            expected_calibration_error(confidence, correct)
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        expected_calibration_error(np.ones(2), np.ones(2, bool), bins=0)
    for wrong in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match=rf"must be in \[0, 1\], got {wrong}"):
            expected_calibration_error(np.array([0.5, wrong]), np.ones(2, bool))


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(ValueError, match="labels must lie between 0 and 3"):
        probability_scores(np.log(np.full((3, 4), 0.25)), np.array([0, label, 1]))


def test_scores_of_probabilities_are_scikit_learns():
    rng = np.random.default_rng(1)
    logits = 3 * rng.standard_normal((60, 4))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = np.where(rng.uniform(size=60) < 0.6, logs.argmax(axis=1), rng.integers(0, 4, 60))
    scores = probability_scores(logs, labels)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, logs.argmax(axis=1)))
    assert scores["log_likelihood"] == pytest.approx(
        -log_loss(labels, np.exp(logs), labels=range(4))
    )
    expected = expected_calibration_error(np.exp(logs).max(1), logs.argmax(1) == labels, bins=10)
    assert scores["calibration_error"] == pytest.approx(expected)
    assert set(scores) == {"accuracy", "log_likelihood", "calibration_error"}
