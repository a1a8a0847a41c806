"""Claims of deep kernel machines in quick form; `make claims` measures them in full."""

import json

import pytest


def measure(launch, path, *args):
    result = launch(*args, f"--workdir={path}", timeout=900)
    assert result.returncode == 0, result.stderr
    summary = json.loads((path / "summary.json").read_text())
    return summary["metrics"], {claim["metric"]: claim["holds"] for claim in summary["claims"]}


def test_wide_deep_gps_approach_the_optimum(launch, tmp_path):
    pytest.importorskip("blackjax")
    metrics, holds = measure(
        launch,
        tmp_path / "run",
        "--config=configs/kernels/width_diabetes.py",
        "--config.data.points=5",
        "--config.model.widths=(1.0, 1e3, 1e6)",
        "--config.sampler.copies=(2, 8, 32)",
        "--config.sampler.chains=3",
        "--config.sampler.warmup=200",
        "--config.sampler.draws=200",
    )
    assert all(holds.values()), metrics
    assert metrics["distance_of_widest_mean"] < metrics["distance_of_nngp"], metrics


def test_learned_gram_matrices_classify_digits_better(launch, tmp_path):
    metrics, holds = measure(
        launch,
        tmp_path / "run",
        "--config=configs/kernels/classification_digits.py",
        "--config.train.steps=300",
        "--config.model.inducing=50",
    )
    assert holds["log_likelihood_gain"], metrics
    assert metrics["dkm_accuracy"] > 0.9, metrics
