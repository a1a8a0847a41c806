"""Claims of deep kernel machines in quick form; `make claims` measures them in full."""

import jax
import jax.numpy as jnp
import pytest
from threadpoolctl import threadpool_limits

from configs.kernels import regression_tables
from experiments.kernels import regression, tables
from rml.errors import UserError


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


@pytest.fixture
def quick():
    config = regression_tables.get_config()
    config.train.steps = 60
    config.model.inducing = 20
    return config


def test_learned_gram_matrices_predict_house_prices_better(quick):
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        split = tables.split(*tables.load_table("boston"), seeds=range(2), share=0.8)
        machines = {
            learned: regression.trainer(quick, learned=learned)(split, 1.0)
            for learned in (True, False)
        }
        learned, prior = (regression.judge(quick, machine, split) for machine in machines.values())
        assert (learned[:, 0] - prior[:, 0]).mean() >= 0.01
        broken = machines[True]._replace(log_scales=machines[True].log_scales.at[1, 0].set(jnp.nan))
        with pytest.raises(UserError, match=r"kernel matrix of layer 1 .* not finite"):
            regression.judge(quick, broken, split)


def test_tables_that_claims_are_about_are_needed(quick):
    quick.data.names = ("boston",)
    with pytest.raises(UserError, match=r"data.names lacks \['autompg', 'diabetes'\]"):
        regression.run(quick, None)
    with pytest.raises(UserError, match="unknown table 'bostn'"):
        tables.load_table("bostn")
