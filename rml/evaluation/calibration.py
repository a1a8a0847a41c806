"""Probabilities of classes: accuracy, log-likelihood and calibration, right as often as said."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from rml.evaluation.checks import require_labels


def expected_calibration_error(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], *, bins: int = 10
) -> float:
    """Computes the mean distance between confidence and accuracy within bins of confidence.

    Σ_b |Σ_{i in b} (correct_i - confidence_i)| / n, over bins of equal width, each closed below and
    the last closed on both sides. Sums are made in double precision.

    Args:
      confidence: Probability that each prediction gives itself.
      correct: Mask of the predictions that are right.
      bins: Number of bins.

    Returns:
      A number between 0 and 1; 0 where every bin is as accurate as it is confident.

    Raises:
      ValueError: If there are no predictions, the shapes disagree, `bins` is less than 1 or a
        confidence is no probability.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, equation 3.
    """
    if confidence.shape != correct.shape or confidence.ndim != 1 or not confidence.size:
        raise ValueError(
            f"confidence and correct must be vectors of one length, at least 1, got shapes "
            f"{confidence.shape} and {correct.shape}"
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    # Log-probabilities that were rounded may pass 0 a little.
    wrong = ~((confidence >= 0) & (confidence <= 1 + 1e-5))
    if wrong.any():
        raise ValueError(f"confidence must be in [0, 1], got {confidence[wrong][0]}")
    place = np.minimum((bins * confidence).astype(int), bins - 1)
    gaps = np.bincount(place, correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def probability_scores(
    log_probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Scores predicted probabilities of classes.

    Args:
      log_probabilities: Logarithms of the probabilities of all classes.
      labels: True classes.

    Returns:
      `accuracy` of the most probable class, mean `log_likelihood` of the true one in nats, and
      `calibration_error` in ten bins.

    Raises:
      ValueError: If there is not one label a row, or one is out of range.
    """
    rows, classes = log_probabilities.shape
    require_labels("labels", jnp.asarray(labels), rows=rows, num_classes=classes)
    right = log_probabilities.argmax(axis=1) == labels
    own = log_probabilities[np.arange(len(labels)), labels]
    confidence = np.exp(log_probabilities.max(axis=1))
    return {
        "accuracy": float(right.mean()),
        "log_likelihood": float(own.mean()),
        "calibration_error": expected_calibration_error(confidence, right),
    }
