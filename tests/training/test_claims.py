"""Verdicts of claims: on which side of the threshold the interval lies."""

import numpy as np
import pytest

from rml.training import Claim, judge
from rml.training.claims import VERDICTS

ABOVE = Claim("m is above 0.1", "m", ">=", 0.1, "a paper")
BELOW = Claim("m is below 0.1", "m", "<=", 0.1, "a paper")


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


def test_a_judged_claim_keeps_its_fields():
    found = judge(ABOVE, [0.2, 0.3])
    assert Claim.of(found) == Claim.of(ABOVE.measure({"m": 0.5})) == ABOVE
    assert found["verdict"] in VERDICTS
    assert found["note"] == ""
    assert found["low"] < found["mean"] == 0.25 < found["high"]


def test_no_values_are_named():
    with pytest.raises(ValueError, match="'m' needs at least one value"):
        judge(ABOVE, [])
