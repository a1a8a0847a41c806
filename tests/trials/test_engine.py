"""The engine of trials, on a trial of digits that takes seconds."""

import json

import numpy as np
import pytest

from experiments import closing, results
from experiments.common import trial_answers, trial_programs
from experiments.common.trial import (
    BASELINE,
    METHOD,
    NULL,
    Arm,
    Go,
    Metric,
    Question,
    Trial,
    recipe,
    run_trial,
)
from experiments.common.trial_table import tries_of
from rml.errors import UserError
from rml.training import RunDirectory
from tests.trials import conformance, digits

LARGER = Metric("accuracy")


@pytest.mark.slow
def test_a_trial_conforms_and_its_null_loses(tmp_path):
    metrics = conformance.conform_trial(digits.TRIAL, digits.get_config(), tmp_path)
    conformance.null_loses(digits.TRIAL, metrics)
    assert metrics["go_0"] > metrics["go_0_least"] == 0.2
    # Labels of other classes are at chance at best, a trained classifier is not.
    assert metrics["accuracy_moved"] < 0.3 < metrics["accuracy_longer"]
    # A longer arm is another program, and costs as many times the operations.
    assert metrics["gigaflops_longer"] == pytest.approx(2 * metrics["gigaflops_plain"])
    assert metrics["parameters_plain"] == 64 * 10 + 10
    assert metrics["bytes_moved"] == 4 * (64 * 10 + 10)
    # Conditions are of tries that tuning has scored: nothing is trained for them again.
    assert not list((tmp_path / "whole" / "methods").glob("go_*"))
    kept = json.loads((tmp_path / "whole" / "arms.json").read_text())
    assert kept["over"]["headline"] == "plain labels, twice as long"  # the strongest of two
    rows = {row["name"]: row for row in kept["table"]}
    assert rows["longer"]["difference"] == 0
    seeds = np.array(rows["smooth"]["by_seed"]) - rows["longer"]["by_seed"]
    assert rows["smooth"]["difference"] == pytest.approx(seeds.mean())
    assert metrics["headline"] == pytest.approx(seeds.mean())


@pytest.mark.slow
def test_a_no_go_ends_the_trial_and_leaves_its_questions_open(tmp_path):
    trial = digits.TRIAL
    config = digits.get_config()
    config.arms = ("plain", "smooth", "moved")
    go = Go("plain labels are above 0.999", 0.999, lambda means: means["plain"])
    metrics = _run(_with(trial, go=(go,)), config, tmp_path)
    assert metrics["go_0"] < 0.999
    assert np.isnan(metrics["headline"])
    measured = [claim.measure(metrics) for claim in recipe(trial)[1]]
    assert not any(claim["holds"] for claim in measured)
    assert not list((tmp_path / "run" / "methods").glob("measured*"))
    kept = json.loads((tmp_path / "run" / "arms.json").read_text())
    (said,) = kept["no_go"]
    assert said.startswith("plain labels are above 0.999: 0.")
    assert said.endswith(", 0.999 needed")
    assert results.sentence({"says": "x"}, {"no_go": [said]}) == f"Not asked: {said}"
    claims = [{**own, "value": np.nan} for own in measured]
    assert list(closing.tell_claims(claims)) == [
        "claims: none of 3 was asked, as a condition of the trial does not hold"
    ]


@pytest.mark.slow
def test_a_pilot_says_what_the_trial_decides_and_leaves_its_tuning(tmp_path, capsys):
    config = digits.get_config()
    assert _run(digits.TRIAL, config, tmp_path, pilot=True) == {}
    said = capsys.readouterr().out
    assert "headline: decides effects from" in said
    stages = {path.name.partition("_")[0] for path in (tmp_path / "run" / "methods").iterdir()}
    # The two seeds of a pilot are those of tuning: nothing is trained for it again.
    assert "tuning" in stages
    assert not {"pilot", "measured"} & stages
    hopeless = digits.TRIAL.headline._replace(margin=1e-6)
    hard = _with(digits.TRIAL, headline=hopeless)
    with pytest.raises(UserError, match=r"headline has margin 1e-06.*expected about .* seeds"):
        _run(hard, config, tmp_path, pilot=True)


def test_tries_seeds_and_unknown_names_are_refused_before_work(tmp_path):
    config = digits.get_config()
    config.arms = ("plain", "soft")
    with pytest.raises(UserError, match="unknown arm 'soft'"):
        _run(digits.TRIAL, config, tmp_path / "a")
    config = digits.get_config()
    config.tuning_seeds = 4
    with pytest.raises(UserError, match="tuning_seeds is 4, expected 0 to seeds, which is 3"):
        _run(digits.TRIAL, config, tmp_path / "b")
    arm = Arm("smoother", METHOD, {"smothing": 0.2})
    arms = {**digits.TRIAL.arms, "smoother": arm}
    with pytest.raises(UserError, match=r"smoother.*'smothing'; did you mean 'smoothing'"):
        _run(_with(digits.TRIAL, arms=arms), digits.get_config(), tmp_path / "c")
    assert not list(tmp_path.glob("*/run/methods"))


def test_a_table_that_does_not_fit_its_questions_is_no_trial():
    few = {**digits.TRIAL.arms, "few": Arm("few tries", BASELINE, {}, {"smoothing": (0.0, 0.1)})}
    with pytest.raises(ValueError, match=r"tries are .*'few': 2.*expected equally many"):
        _with(digits.TRIAL, arms=few)
    with pytest.raises(ValueError, match="headline: unknown arm 'smoth'"):
        _with(digits.TRIAL, headline=Question("", "smoth", null="moved"))
    with pytest.raises(ValueError, match="has 4 questions, expected at most 3"):
        _with(digits.TRIAL, questions=dict.fromkeys("abcd", digits.TRIAL.headline))


def test_a_budget_cuts_seeds_then_tries_and_refuses_what_it_cannot(tmp_path):
    config = digits.get_config()
    config.seeds = 10
    run = RunDirectory(tmp_path / "run", config.to_dict())
    work = trial_programs.Work(digits.TRIAL, run, config, None)
    work.costs = {name: {"seconds": 1.0} for name in digits.TRIAL.arms}
    tries = {name: tries_of(arm) for name, arm in digits.TRIAL.arms.items()}
    seeds = list(range(10))
    assert work.plan(seeds, tries) == 4 * 10 + 4 * 3 * 2
    assert work.within(64.0, seeds, tries, least=5) == (seeds, tries)
    assert work.within(60.0, seeds, tries, least=5) == (seeds[:9], tries)
    fewer, cut = work.within(36.0, seeds, tries, least=5)
    assert len(fewer) == 5
    assert {len(own) for own in cut.values()} == {2}
    with pytest.raises(
        UserError, match="--budget is 0:10, expected at least 0:20: 5 seeds of all 4"
    ):
        work.within(10.0, seeds, tries, least=5)
    run.close()


def test_an_edge_brings_one_more_try_for_every_arm_beyond_its_own():
    arm = Arm("tuned", METHOD, {}, {"rate": (0.01, 0.1, 1.0), "name": ("a", "b")})
    tries = tries_of(arm)
    assert trial_answers.edges(arm, tries, tries.index({"rate": 0.1, "name": "b"})) == []
    top = tries.index({"rate": 1.0, "name": "b"})
    assert trial_answers.edges(arm, tries, top) == ["rate"]
    assert trial_answers.beyond(arm, tries, top) == {"rate": pytest.approx(10.0), "name": "b"}
    low = tries.index({"rate": 0.01, "name": "a"})
    assert trial_answers.beyond(arm, tries, low) == {"rate": pytest.approx(1e-3), "name": "a"}
    count = Arm("counted", METHOD, {}, {"layers": (2, 4, 6)})
    assert trial_answers.beyond(count, tries_of(count), 2) == {"layers": 9}
    zero = Arm("from zero", METHOD, {}, {"weight": (0.0, 0.5, 1.0)})
    assert trial_answers.beyond(zero, tries_of(zero), 2) == {"weight": 1.5}
    two = Arm("two values", METHOD, {}, {"weight": (0.5, 1.0)})
    assert trial_answers.edges(two, tries_of(two), 1) == []


def test_differences_are_paired_over_seeds_and_units():
    rng = np.random.default_rng(0)
    hard, seeds = rng.normal(size=200), rng.normal(size=(6, 1))
    first = hard + seeds + 0.5 + 0.01 * rng.normal(size=(6, 200))
    own = trial_answers.effect(LARGER, list(first), list(hard + seeds)).interval
    assert own.mean == pytest.approx(0.5, abs=0.002)
    assert own.high - own.low < 0.01  # what examples and seeds share cancels
    alone = trial_answers.effect(LARGER, list(first)).interval
    assert alone.high - alone.low > 0.5


def test_a_ratio_is_of_means_and_its_interval_that_of_its_linear_part():
    rng = np.random.default_rng(1)
    below = 2 + 0.1 * rng.normal(size=(5, 400))
    above = 1.5 * below + 0.05 * rng.normal(size=(5, 400))
    own = trial_answers.effect(LARGER, list(above), list(below), ratio=True).interval
    assert own.mean == pytest.approx(above.mean() / below.mean(), rel=1e-12)
    assert own.low < 1.5 < own.high
    # By the bootstrap over units, whose spread dominates here.
    picks = rng.integers(0, 400, (2000, 400))
    ratios = above.mean(0)[picks].mean(1) / below.mean(0)[picks].mean(1)
    assert own.high - own.low == pytest.approx(4 * ratios.std(), rel=0.15)


def test_seeds_with_units_of_their_own_are_what_varies():
    splits = LARGER._replace(shared=False)
    values = [np.full(n, float(i)) for i, n in enumerate((3, 5, 7))]
    own = trial_answers.effect(splits, values).interval
    assert (own.mean, own.over_seeds, own.over_units) == (1.0, 1.0, 0.0)
    wider = trial_answers.effect(splits._replace(overlap=1.0), values).interval
    assert (wider.high - 1) == pytest.approx((own.high - 1) * np.sqrt(4 / 1))


def test_the_strongest_baseline_is_named_by_validation_data_and_may_lose_on_test():
    values = {
        "validation": {"accuracy": {"plain": [np.zeros(4)] * 3, "longer": [np.ones(4)] * 3,
                                    "smooth": [np.ones(4)] * 3, "moved": [np.zeros(4)] * 3}},
        "test": {"accuracy": {"plain": [np.ones(4)] * 3, "longer": [np.zeros(4)] * 3,
                              "smooth": [np.ones(4)] * 3, "moved": [np.zeros(4)] * 3}},
    }  # fmt: skip
    answers = trial_answers.answer_all(digits.TRIAL, values, "test", None, None)
    assert answers["headline"]["over"] == "longer"
    assert answers["headline"]["effect"].mean == 1.0
    assert answers["headline"]["null"].mean == 0.0
    smaller = {"accuracy": Metric("error", better="smaller")}
    answers = trial_answers.answer_all(
        _with(digits.TRIAL, metrics=smaller), values, "test", None, None
    )
    assert answers["headline"]["over"] == "plain"


def test_a_statistic_is_taken_of_all_arms_seed_by_seed():
    def slope(values, arm):
        return values[arm].mean(1) / values["plain"].mean(1)

    asked = digits.TRIAL.headline._replace(statistic=slope, over=(), margin=2.0)
    trial = _with(digits.TRIAL, headline=asked, questions={})
    scores = {"plain": [np.full(3, 1.0), np.full(3, 2.0)], "smooth": [np.full(3, 3.0)] * 2,
              "moved": [np.full(3, 1.0)] * 2}  # fmt: skip
    values = {part: {"accuracy": scores} for part in ("validation", "test")}
    found = trial_answers.answer_all(trial, values, "test", None, None)["headline"]
    assert found["effect"].mean == pytest.approx((3 + 1.5) / 2)
    assert found["null"].mean == pytest.approx((1 + 0.5) / 2)
    assert recipe(trial)[1][0].threshold == 2.0


def test_the_smallest_effect_falls_with_seeds_and_units_and_is_decided_as_often_as_it_says():
    over_seeds, over_units, seeds, units = 0.02, 0.2, 8, 400
    own = trial_answers.crossed_interval(np.zeros((2, 2)))._replace(over_units=over_units)
    least = trial_answers.smallest(own, over_seeds, seeds, units, LARGER)
    assert trial_answers.smallest(own, over_seeds, 16, units, LARGER) < least
    assert trial_answers.smallest(own, over_seeds, seeds, 1600, LARGER) < least
    rng = np.random.default_rng(2)
    decided = 0
    for _ in range(400):
        rows = least + over_seeds * rng.normal(size=(seeds, 1))
        rows = rows + over_units * rng.normal(size=(1, units)) + 0 * rows
        decided += trial_answers.crossed_interval(rows).low > 0
    assert 0.74 < decided / 400 < 0.97


def test_a_diverged_run_stands_still_and_the_others_go_on(tmp_path):
    """A rate at which parameters overflow loses by its score; alone it would end the run."""
    config = digits.get_config()
    config.train.update({"steps": 3, "log_every": 1})
    arms = {
        "plain": Arm("plain labels", BASELINE, {}),
        "smooth": Arm("smoothed labels", METHOD, {"optimizer.learning_rate": 1e38}),
        "moved": Arm("moved labels", NULL, {"shift": 1}),
    }
    asked = digits.TRIAL.headline._replace(over=("plain",))
    trial = _with(digits.TRIAL, arms=arms, headline=asked, questions={}, go=())
    metrics = _run(trial, config, tmp_path)
    assert metrics["accuracy_smooth"] < metrics["accuracy_plain"]


def _with(trial, **changes):
    return Trial(**{**vars(trial), **changes})


def _run(trial, config, directory, **options):
    run = RunDirectory(directory / "run", config.to_dict())
    try:
        return run_trial(trial, config, run, **options)
    finally:
        run.close()
