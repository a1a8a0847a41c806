"""Verdicts of claims: on which side of the threshold the interval lies, and where the null's."""

import dataclasses

import numpy as np
import pytest

from rml.training import Claim, judge
from rml.training.claims import VERDICTS, over_runs

STATED = {"stated": "2025-01-01", "null": "z"}
ABOVE = Claim("m is above 0.1", "m", ">=", 0.1, "a paper", **STATED)
BELOW = Claim("m is below 0.1", "m", "<=", 0.1, "a paper", **STATED)


@pytest.mark.parametrize("values", [[0.2, 0.21, 0.22], [0.1, 0.1, 0.1], [np.nextafter(0.1, 1)] * 2])
def test_holds_where_the_whole_interval_meets(values):
    assert judge(ABOVE, values)["verdict"] == "holds"


@pytest.mark.parametrize("values", [[0.02, 0.021, 0.022], [np.nextafter(0.1, 0)] * 3])
def test_not_reproduced_where_the_whole_interval_misses(values):
    assert judge(ABOVE, values)["verdict"] == "not reproduced"


def test_undecided_where_the_threshold_is_inside():
    assert judge(ABOVE, [0.10, 0.12, 0.14])["verdict"] == "undecided"  # each value meets it
    assert judge(ABOVE, [0.09, 0.08, 0.11])["verdict"] == "undecided"


def test_a_relation_turned_round_turns_the_verdict_round():
    for values, above, below in (
        ([0.2, 0.21, 0.22], "holds", "not reproduced"),
        ([0.02, 0.021], "not reproduced", "holds"),
        ([0.05, 0.2], "undecided", "undecided"),
        ([0.2], "one run: met", "one run: missed"),
        ([0.02], "one run: missed", "one run: met"),
    ):
        assert judge(ABOVE, values)["verdict"] == above
        assert judge(BELOW, values)["verdict"] == below


def test_one_run_has_no_interval():
    found = judge(ABOVE, [0.2])
    assert (found["mean"], found["low"], found["high"]) == (0.2, None, None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("others", [[], [0.2, 0.3]])
def test_what_is_not_finite_leaves_a_claim_undecided_and_is_named(value, others):
    found = judge(ABOVE, [*others, value])
    assert found["verdict"] == "undecided"
    assert (found["mean"], found["low"], found["high"]) == (None, None, None)
    assert found["note"] == f"m is not finite in 1 of {len(others) + 1} runs"


def test_a_run_with_an_interval_that_is_not_finite_counts_once():
    ends = [(np.nan, np.nan), (0.1, 0.3), (0.1, np.inf)]
    found = judge(ABOVE, [np.nan, 0.2, 0.2], ends=ends)
    assert (found["verdict"], found["note"]) == ("undecided", "m is not finite in 1 of 3 runs")
    found = judge(ABOVE, [np.nan, np.nan, 0.2], ends=ends)
    assert found["note"] == "m is not finite in 2 of 3 runs"


def test_a_judged_claim_keeps_its_fields():
    found = judge(ABOVE, [0.2, 0.3])
    assert Claim.of(found) == Claim.of(ABOVE.measure({"m": 0.5, "z": 0.0})) == ABOVE
    assert found["verdict"] in VERDICTS
    assert found["note"] == ""
    assert found["low"] < found["mean"] == 0.25 < found["high"]


def test_no_values_are_named():
    with pytest.raises(ValueError, match="'m' needs at least one value"):
        judge(ABOVE, [])


# Nulls.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"null": ""}, "needs null or null_run, got neither"),
        ({"null_run": "untrained"}, "needs null or null_run, got 'z' and 'untrained'"),
        ({"stated": "24.11.2026"}, "claim on 'm': stated: Invalid isoformat string"),
        ({"relation": ">"}, "claim on 'm' has relation '>'"),
    ],
)
def test_a_claim_without_null_date_or_relation_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ABOVE, **fields)


def test_null_and_date_are_keywords_that_cannot_be_left_out():
    with pytest.raises(TypeError, match="stated"):
        Claim("m is above 0.1", "m", ">=", 0.1, "a paper", null="z")
    with pytest.raises(TypeError, match="positional"):
        Claim("m is above 0.1", "m", ">=", 0.1, "a paper", "2025-01-01", "z")


@pytest.mark.parametrize(
    ("values", "nulls", "verdict"),
    [
        ([0.2, 0.21, 0.22], [0.02, 0.021, 0.022], "holds"),
        ([0.2, 0.21, 0.22], [0.05, 0.2, 0.3], "holds"),  # the null's interval is on both sides
        ([0.2, 0.21, 0.22], [0.2, 0.21, 0.22], "vacuous"),
        ([0.2, 0.21, 0.22], [0.1, 0.1, 0.1], "vacuous"),  # the threshold itself meets
        ([0.05, 0.2, 0.3], [0.2, 0.21, 0.22], "undecided"),
        ([0.02, 0.021], [0.2, 0.21], "not reproduced"),
        ([0.2], [0.2], "vacuous"),
        ([0.2], [0.02], "one run: met"),
        ([0.02], [0.2], "one run: missed"),
        ([0.2, 0.21], [], "holds"),
    ],
)
def test_what_its_null_passes_too_is_vacuous(values, nulls, verdict):
    assert judge(ABOVE, values, nulls=nulls)["verdict"] == verdict
    turned = [-v + 0.2 for v in values], [-v + 0.2 for v in nulls]
    assert judge(BELOW, turned[0], nulls=turned[1])["verdict"] == verdict


def test_a_null_is_kept_with_its_interval():
    found = judge(ABOVE, [0.2, 0.21], nulls=[0.01, 0.03])
    assert (found["null"], found["null_run"], found["null_values"]) == ("z", "", [0.01, 0.03])
    assert found["null_mean"] == pytest.approx(0.02)
    assert found["null_low"] < found["null_mean"] < found["null_high"]
    assert ABOVE.measure({"m": 0.5, "z": 0.4})["null_value"] == 0.4
    absent = judge(ABOVE, [0.2, 0.21])
    assert (absent["null_values"], absent["null_mean"]) == ([], None)


def test_a_null_that_is_not_finite_is_named_and_does_not_pass():
    found = judge(ABOVE, [0.2, 0.21], nulls=[0.2, np.nan])
    assert found["verdict"] == "holds"
    assert found["null_values"] == [0.2, None]
    assert found["note"] == "null (z) is not finite in 1 of 2 runs"


def test_a_null_of_its_own_run_is_not_measured_in_this_one():
    claim = dataclasses.replace(ABOVE, null="", null_run="untrained")
    assert claim.measure({"m": 0.5})["null_value"] is None
    with pytest.raises(KeyError, match="z"):
        ABOVE.measure({"m": 0.5})


# Intervals of runs themselves.


def test_one_run_with_an_interval_of_its_own_is_judged_by_it():
    for ends, verdict in (
        ((0.15, 0.25), "holds"), ((0.05, 0.35), "undecided"), ((0.01, 0.09), "not reproduced")
    ):  # fmt: skip
        found = judge(ABOVE, [np.mean(ends)], ends=[ends])
        assert (found["low"], found["high"], found["verdict"]) == (*ends, verdict)
    null = judge(ABOVE, [0.2], ends=[(0.15, 0.25)], nulls=[0.2], null_ends=[(0.05, 0.35)])
    assert (null["null_low"], null["null_high"], null["verdict"]) == (0.05, 0.35, "holds")


def test_several_runs_have_to_hold_over_seeds_and_over_examples():
    close, apart = [0.2, 0.202, 0.198], [0.12, 0.2, 0.4]
    assert judge(ABOVE, close)["verdict"] == "holds"
    wide = judge(ABOVE, close, ends=[(0.05, 0.35)] * 3)
    assert wide["verdict"] == "undecided"
    # Student's quantile of two degrees of freedom at 97.5%, from a table; s is 0.002.
    seeds = 4.302653 * 0.002 / 3**0.5
    assert wide["low"] == pytest.approx(0.2 - (seeds**2 + 0.15**2) ** 0.5, abs=1e-8)
    assert wide["high"] == pytest.approx(0.2 + (seeds**2 + 0.15**2) ** 0.5, abs=1e-8)
    over_seeds = judge(ABOVE, apart)
    both = judge(ABOVE, apart, ends=[(value - 0.3, value + 0.1) for value in apart])
    mean = np.mean(apart)
    for end, own in (("low", 0.3), ("high", 0.1)):  # either side has its own width
        want = (over_seeds[end] - mean) ** 2 + own**2
        assert (both[end] - mean) ** 2 == pytest.approx(want)
    beside = judge(ABOVE, apart, ends=[(0.5, 0.6)] * 3)  # it does not hold the mean
    assert beside["low"] == over_seeds["low"]
    assert beside["high"] > over_seeds["high"]
    broken = judge(ABOVE, close, ends=[(0.1, np.nan)] * 3)
    assert (broken["verdict"], broken["note"]) == ("undecided", "the interval of m is not finite")


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
@pytest.mark.parametrize("share", [0.3, 1.0, 3.0])
def test_runs_that_share_their_examples_seldom_hold_by_chance(runs, share):
    """Simulated: a mean at the threshold holds in 2.5% at most, whatever varies more."""
    rng = np.random.default_rng(0)
    examples = rng.standard_normal((4000, 1))
    seeds = share * np.sqrt(runs) * rng.standard_normal((4000, runs))  # of their mean: share
    own = 1.959964  # the half width of a run's interval over examples, of deviation 1
    wrong = 0
    simulated = 0.1 + examples + seeds
    for values in simulated[simulated.mean(1) > 0.1]:  # others' low end is below it
        low = over_runs(values, [(value - own, value + own) for value in values])[1]
        wrong += low >= 0.1
    # Three deviations of the count of a chance of 2.5% are 0.74% of 4,000.
    assert wrong / 4000 <= 0.025 + 0.0074
