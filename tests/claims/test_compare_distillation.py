"""The ranking of distillation losses on drawn students; `make claims` measures some that learn."""

from functools import partial

import jax
import numpy as np
import pytest

from configs.distillation import compare as config_file
from experiments.distillation import (
    compare,
    compare_figures,
    ofakd_sides,
    ofakd_students,
    students,
    taught,
)
from experiments.distillation.pairs import choose
from rml.distillation import METHODS
from rml.errors import UserError
from rml.training import RunDirectory
from tests.claims import drawn_students
from tests.claims.drawn_students import FAMILIES
from tests.system.two_steps import override


@pytest.mark.slow
def test_a_small_run_ranks_every_loss_and_draws(monkeypatch, measure, tmp_path):
    def costs(config, bed, side):
        return {f"{name}_{side}": 1.0 for name in ("mflop", "seconds", "bytes", "beside")}

    drawn_students.put_in(monkeypatch, drawn_students.of_kind)
    monkeypatch.setattr(compare, "costs", costs)
    metrics, holds = measure("configs/distillation/compare.py", FAMILIES)
    assert len(holds) == len(compare.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    config = config_file.get_config()
    assert {metrics[f"tries_{side}"] for side in config.tries} == {4}
    assert metrics["chosen_cc_learning_rate"] in config.tries.cc.learning_rate
    pairs = [metrics[f"accuracy_dist_{t}_{s}"] for t, s in config.teachings]
    assert len(pairs) == 4
    assert metrics["accuracy_dist"] == pytest.approx(np.mean(pairs))
    difference = metrics["accuracy_cc"] - metrics["accuracy_kd"]
    assert metrics["cc_over_kd"] == pytest.approx(difference, abs=1e-6)
    difference = metrics["accuracy_again"] - metrics["accuracy_kd"]
    assert metrics["again_over_kd"] == pytest.approx(difference, abs=1e-6)
    # The label alone is one student in both pairs of a family.
    assert metrics["accuracy_label_convnet_convnet"] == metrics["accuracy_label_vit_convnet"]
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(compare.CAPTIONS)


def test_the_null_is_kd_with_another_seed_at_a_setting_of_its_own(monkeypatch):
    config = config_file.get_config()
    config.seed = 3
    found = compare.students_of(config, "convnet", "logits")
    again = {name: own for name, own in found.items() if name[0] == "kd_again"}
    assert {teacher for _, _, teacher in again} == {"convnet", "vit"}
    assert len(again) == 2 * 4
    for (_, setting, teacher), own in again.items():
        assert own == found["kd", setting, teacher] | {"seed": 1_003}
    assert not any(name == "kd_again" for name, _, _ in compare.students_of(config, "vit", "exits"))
    asked = {}

    class Stop(Exception):
        pass

    def named(config, bed, programs, wanted, pairs):
        asked.update(wanted)
        raise Stop

    monkeypatch.setattr(compare, "make_bed", lambda config, run: None)
    trained = students.Students(tuple(found), {}, np.zeros(len(found)))
    chosen, other = (0.9, 0.024, 2.0), (0.9, 0.012, 1.0)
    for side, setting in (("kd", chosen), ("kd_again", other)):
        trained.accuracy[trained.names.index((side, setting, "vit"))] = 0.5
    programs = {"convnet": [trained]}
    monkeypatch.setattr(compare.ofakd_students, "train_kinds", lambda *given: programs)
    monkeypatch.setattr(compare, "choose", lambda *given: choose(*given[:2], ["kd"]))
    monkeypatch.setattr(compare, "named", named)
    with pytest.raises(Stop):
        compare.run(config, None)
    assert asked == {"kd": ("kd", chosen), "again": ("kd_again", other)}
    assert {claim.null for claim in compare.CLAIMS} == {"again_over_kd"}


def test_a_setting_has_the_learning_rate_of_its_student():
    config = config_file.get_config()
    found = ofakd_sides.changes_of(config, "logits", ["vit"])
    low, high = config.tries.kd.learning_rate
    own = found["kd", (0.9, high, 2.0), "vit"]  # by the order of names
    assert own["optimizer.learning_rate"] == high
    assert (own["given.kd"], own["given.temperature"]) == (0.9, 2.0)
    assert found["label", (low, 0.2), None]["optimizer.learning_rate"] == low
    # Sides of another recipe have the config's rate.
    config.tries = {"cc": {"cc": (4.0,)}}
    (plain,) = ofakd_sides.changes_of(config, "features", ["vit"]).values()
    assert plain["given.cc"] == 4.0
    assert "optimizer.learning_rate" not in plain


def test_every_loss_of_the_table_is_ranked():
    ranked = {{"enhanced": "ofa"}.get(side, side) for side in config_file.get_config().tries}
    read = {*taught.of_kind("logits"), *taught.of_kind("features")}
    assert read - ranked == {"soft_cross_entropy"}
    assert set(config_file.get_config().tries) <= set(compare_figures.NAMES)
    assert read <= set(METHODS)


@pytest.mark.slow
def test_costs_are_those_of_one_loss(monkeypatch):
    monkeypatch.setattr(compare, "seconds", lambda problem, repeats: 0.5)
    config = override(config_file.get_config(), FAMILIES)
    bed = drawn_students.made_bed()
    found = {}
    for side in ("label", "kd", "fitnet", "crd", "ofa"):
        found |= compare.costs(config, bed, side)
    assert [found[f"bytes_{side}"] for side in ("label", "kd", "fitnet", "crd", "ofa")] == [
        0, 4 * 10, 4 * 16 * 4, 4 * 4, 4 * 10
    ]  # fmt: skip
    assert found["beside_kd"] == found["beside_label"] == 0
    assert found["beside_fitnet"] == 3 * 4 + 4
    assert found["beside_crd"] == 2 * (4 * 128 + 128)
    assert found["beside_ofa"] > 100
    # A map of eight images' places forward, and back to both of its factors; and the choice of one
    # of three teachers' maps, in the place of that of one's logits.
    product, choice, logits = 2 * 8 * 16 * 3 * 4, 2 * 8 * 3 * 16 * 4, 2 * 8 * 3 * 10
    difference = found["mflop_fitnet"] - found["mflop_kd"]
    assert difference == pytest.approx((3 * product + choice - logits) / 1e6)
    assert found["mflop_kd"] - found["mflop_label"] == pytest.approx(logits / 1e6)
    assert found["seconds_kd"] == 0.5


@pytest.mark.slow
def test_every_side_has_costs(monkeypatch):
    """A side of several losses keeps what they read once, and trains what they map by."""
    monkeypatch.setattr(compare, "seconds", lambda problem, repeats: 0.5)
    monkeypatch.setattr(compare, "program_flops", lambda *program: 2e6)
    config = override(config_file.get_config(), FAMILIES)
    bed, found = drawn_students.made_bed(), {}
    for side in ofakd_sides.SIDES:
        found |= compare.costs(config, bed, side)
    logits, features, maps = 4 * 10, 4 * 4, 4 * 16 * 4
    kept = {side: found[f"bytes_{side}"] for side in ofakd_sides.SIDES}
    assert kept == {
        **dict.fromkeys(("label", "hard"), 0), "fitnet": maps,
        **dict.fromkeys(("rkd_distance", "rkd_angle", "rkd", "cc", "crd"), features),
        **dict.fromkeys(("kd", "dkd", "dist", "enhanced"), logits),
        **dict.fromkeys(("ofa", "paper", "normalized", "rising"), logits),
    }  # fmt: skip
    exits = {found[f"beside_{side}"] for side in ("hard", "ofa", "paper", "normalized", "rising")}
    assert len(exits) == 1
    assert found["beside_rkd"] == found["beside_enhanced"] == 0


def test_losses_of_a_side_are_those_that_its_values_weigh(monkeypatch):
    asked = {}

    class Stop(Exception):
        pass

    def task(config, bed, *, family, kind, methods):
        asked[side] = (kind, *methods)
        raise Stop

    monkeypatch.setattr(ofakd_students, "task", task)
    config, bed = config_file.get_config(), drawn_students.made_bed()
    for side in ("label", "dkd", "rkd", "enhanced", "rising"):
        with pytest.raises(Stop):
            compare.costs(config, bed, side)
    assert asked == {
        "label": ("logits",), "dkd": ("logits", "dkd"),
        "rkd": ("features", "rkd_distance", "rkd_angle"), "enhanced": ("logits", "ofa"),
        "rising": ("exits",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tries.cc.cc": (1.0,)}, "expected equally many of each"),
        ({"tries.cc": {"cc": (1.0, 5.0)}}, r"tries\.cc has .*learning_rate"),
        ({"teachings": (("convnet", "resnet"),)}, "expected different pairs of"),
        ({"teachings": (("vit", "vit"), ("vit", "vit"))}, "expected different pairs of"),
        ({"timed": "resnet"}, "timed is 'resnet', expected one of"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = override(config_file.get_config(), changes)
    with pytest.raises(UserError, match=message):
        compare.check(config)


def test_sides_are_known_by_their_keys():
    config = config_file.get_config()
    config.tries.kd = {"temperature": (1.0, 2.0, 4.0)}
    with pytest.raises(UserError, match=r"tries\.kd has"):
        compare.check(config)
    config.tries = {"cc": config.tries.cc}
    with pytest.raises(UserError, match=r"tries lacks \['kd', 'label'\]"):
        compare.check(config)


@pytest.mark.slow
def test_students_of_a_kind_are_trained_on_what_their_losses_read(tmp_path):
    values = FAMILIES | {"train.batch_size": 4, "exits.width": 4, "timing.repeats": 1}
    config = override(config_file.get_config(), values)
    bed, kind = drawn_students.made_bed(), "logits"
    run = RunDirectory(tmp_path / "run", config.to_dict())
    changes = dict(list(ofakd_sides.changes_of(config, kind, ["vit"]).items())[:2])
    found = students.train_students(
        config, run, f"convnet_{kind}", "convnet", changes, bed,
        partial(ofakd_students.task, bed=bed, family="convnet", kind=kind),
    )  # fmt: skip
    run.close()
    assert found.names == tuple(changes)
    assert found.accuracy.shape == (2,)
    for leaf in jax.tree.leaves(found.variables["params"]):
        assert leaf.shape[0] == 2
        assert np.isfinite(leaf).all()
