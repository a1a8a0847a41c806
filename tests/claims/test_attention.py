"""Random-feature attention's claims in quick form; `make claims` measures them in full."""

import jax
import numpy as np
import pytest

from configs.attention import random_features_small
from experiments.attention import learning, random_features, scaling
from rml.errors import UserError


def test_attention_needs_fewer_examples_by_a_ratio_that_grows_with_keys_and_degree(
    summarize, tmp_path
):
    summary = summarize("--config=configs/attention/random_features_small.py")
    metrics = summary["metrics"]
    verdicts = {claim["metric"]: claim["holds"] for claim in summary["claims"]}
    # What needs the paper's dimensions is measured in full.
    assert verdicts["ratio_slope_degree_1"], metrics
    assert verdicts["ratio_slope_degree_2"], metrics
    assert verdicts["ratio_degree_2_over_1"], metrics
    assert verdicts["biased_over_rfa_weighted_1"], metrics
    for model in learning.MODELS:
        half_width = metrics[f"kernel_slope_half_width_{model}"]
        assert metrics[f"kernel_slope_error_{model}"] < 2 * half_width, metrics
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(random_features.CAPTIONS)


def test_examples_needed_are_read_off_in_logarithms():
    sizes, errors = (10, 100, 1000), np.array([1.0, 0.5, 0.125])
    expected = 100 * 10 ** (np.log(0.5 / 0.25) / np.log(0.5 / 0.125))
    assert scaling.examples_needed(sizes, errors, 0.25) == pytest.approx(expected)
    assert np.isnan(scaling.examples_needed(sizes, errors, 0.1))
    assert np.isnan(scaling.examples_needed(sizes, errors, 2.0))


def test_wrong_targets_are_named():
    config = random_features_small.get_config()
    for name, message in (
        ("averge_2", "unknown target 'averge_2'"),
        ("json:nothing", "expected module:function"),
    ):
        config.targets = (name,)
        with pytest.raises(UserError, match=message):
            learning.build_targets(config, jax.random.key(0))
    with pytest.raises(UserError, match="targets lacks 'average_2'"):
        random_features.check(config)
