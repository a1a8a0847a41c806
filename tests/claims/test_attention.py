"""Random-feature attention's claims in quick form; `make claims` measures them in full."""

import jax
import numpy as np
import pytest
from scipy import stats
from threadpoolctl import threadpool_limits

from configs.attention import random_features_small
from experiments.attention import random_features
from rml.attention import MODELS, build_targets
from rml.errors import UserError


@pytest.fixture(autouse=True)
def one_thread_of_blas():
    """Threads cost more than they share of factorisations as small as those of these tests."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.mark.slow
def test_attention_needs_fewer_examples_by_a_ratio_that_grows_with_keys_and_degree(
    measure, tmp_path
):
    changes = {
        "heads": 100, "sizes": (250, 500), "test": 300, "scaling.num_keys": (1, 7),
        "targets": ("average_2", "weighted_1", "mixed_0_2", "mixed_1_2"), "limit.heads": (16, 256),
    }  # fmt: skip
    metrics, holds = measure("configs/attention/random_features_small.py", changes)
    # What needs the paper's dimensions is measured in full.
    assert metrics["ratio_slope_degree_1"] >= 0.5, metrics
    assert holds["ratio_slope_degree_2", ">="], metrics
    assert metrics["ratio_slope_degree_1_low"] < metrics["ratio_slope_degree_1"], metrics
    assert holds["ratio_degree_2_over_1", ">="], metrics
    assert holds["biased_over_rfa_weighted_1", "<="], metrics
    for model in MODELS:
        half_width = metrics[f"kernel_slope_half_width_{model}"]
        assert metrics[f"kernel_slope_error_{model}"] < 2 * half_width, metrics
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(random_features.CAPTIONS)


@pytest.mark.slow
def test_risk_beyond_the_limits_falls_with_heads(measure):
    changes = {
        "heads": (4, 32, 256), "sizes": (64, 128), "test": 300, "replicates": 3,
        "regularizations": (1e-2, 1e-1),
    }  # fmt: skip
    metrics, holds = measure("configs/attention/excess.py", changes)
    assert holds["average_2_excess_slope", "<="], metrics


def test_few_replicates_have_the_interval_of_student():
    slopes = np.array([1.0, 3.0])  # deviation 2^(1/2), of a mean 1
    assert random_features.half_width(slopes) == pytest.approx(stats.t.ppf(0.975, 1))


def test_wrong_targets_are_named():
    config = random_features_small.get_config()
    for name, message in (
        ("averge_2", "unknown target 'averge_2'"),
        ("json:nothing", "expected module:function"),
    ):
        with pytest.raises(UserError, match=message):
            build_targets((name,), jax.random.key(0), keys=config.num_keys, d=config.d)
    config.targets = ("averge_2",)
    with pytest.raises(UserError, match="targets lacks 'average_2'"):
        random_features.check(config)
