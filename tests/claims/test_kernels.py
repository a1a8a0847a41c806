"""Claims of deep kernel machines in quick form; `make claims` measures them in full."""

import pytest


def verdicts(summary):
    return {claim["metric"]: claim["holds"] for claim in summary["claims"]}


def test_wide_deep_gps_approach_the_optimum(summarize):
    pytest.importorskip("blackjax")
    summary = summarize(
        "--config=configs/kernels/width_diabetes.py",
        "--config.data.points=5",
        "--config.model.widths=(1.0, 1e3, 1e6)",
        "--config.sampler.copies=(2, 8, 32)",
        "--config.sampler.chains=3",
        "--config.sampler.warmup=200",
        "--config.sampler.draws=200",
    )
    metrics = summary["metrics"]
    assert all(verdicts(summary).values()), metrics
    assert metrics["distance_of_widest_mean"] < metrics["distance_of_nngp"], metrics


def test_learned_gram_matrices_classify_digits_better(summarize):
    summary = summarize(
        "--config=configs/kernels/classification_digits.py",
        "--config.train.steps=300",
        "--config.model.inducing=50",
    )
    metrics = summary["metrics"]
    assert verdicts(summary)["log_likelihood_gain"], metrics
    assert metrics["dkm_accuracy"] > 0.9, metrics
