"""One-for-All's recipe on little data; `make claims` measures students that learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.distillation import ofakd as config_file
from experiments.common.many import replaced
from experiments.distillation import (
    ofakd,
    ofakd_measures,
    ofakd_sides,
    ofakd_students,
    students,
)
from experiments.distillation.families import Bed
from experiments.distillation.students import Students
from rml.distillation import Outputs
from rml.errors import UserError
from tests.claims import drawn_students
from tests.claims.drawn_students import shapes, two_steps
from tests.system.two_steps import override

SMALL = drawn_students.SMALL | {
    "compared": 12, "students.vit.width": 4, "students.vit.depth": 3, "students.vit.heads": 2,
    "teachers.convnet.widths": (2, 2, 3), "teachers.convnet.features": 4,
    "teachers.vit.width": 4, "teachers.vit.depth": 3, "teachers.vit.heads": 2,
    "teachers.mixer.width": 4, "teachers.mixer.token_hidden": 3,
    "teachers.mixer.channel_hidden": 3, "exits.width": 4, "exits.heads": 2,
}  # fmt: skip


@pytest.fixture
def untrained(monkeypatch):
    """Teachers and students that are drawn, and students that say what is drawn."""

    def student_shapes(config, name):
        family, _, exits = name.partition("_")
        module = ofakd_students.with_exits if exits else students.network
        return shapes(module(config, family), config)

    drawn_students.put_in(monkeypatch, student_shapes)
    shares = {"flops_exits_over_kd": 1.4, "flops_unmerged_over_kd": 2.0}
    monkeypatch.setattr(ofakd, "costs", lambda config, bed: shares)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(untrained, measure, tmp_path):
    metrics, holds = measure("configs/distillation/ofakd.py", SMALL)
    assert len(holds) == len(ofakd.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert {metrics[f"tries_{side}"] for side in ofakd_sides.SIDES} == {3}
    assert metrics["chosen_ofa_gamma"] in (1.0, 1.5, 2.0)
    pairs = [metrics[f"accuracy_ofa_{t}_{s}"] for t, s in ofakd_measures.pairs_of(
        config_file.get_config())]  # fmt: skip
    assert len(pairs) == 6
    assert metrics["accuracy_ofa"] == pytest.approx(np.mean(pairs))
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(ofakd.CAPTIONS)


@pytest.fixture
def bed():
    rng = np.random.default_rng(0)
    train = {
        "image": rng.integers(0, 255, (12, 28, 28, 1)).astype(np.uint8),
        "label": (np.arange(12) % 10).astype(np.int32),
        "teacher": rng.standard_normal((12, 3, 10)).astype(np.float32),
        "features": rng.standard_normal((12, 3, 4)).astype(np.float32),
    }
    return Bed(("convnet", "vit", "mixer"), train, train, train, {}, {}, {})


def test_exits_cost_less_where_tokens_are_merged(bed):
    config = override(config_file.get_config(), SMALL)
    for name in ("convnet", "mixer"):
        del config.students[name]
    found = ofakd_measures.costs(config, bed)
    assert found["flops_unmerged_over_kd"] > 1.2 * found["flops_exits_over_kd"]
    assert found["flops_exits_over_kd"] > 1.05
    # A block of width 4 and hidden width 16, and its norms, in two exits; two in the first.
    block = 4 * 12 + 12 + 4 * 4 + 4 + 4 * 16 + 16 + 16 * 4 + 4 + 2 * 8
    merge = 2 * 16 + 16 * 4
    assert found["exit_parameters_vit"] == 4 * block + 3 * (merge + 4 * 10 + 10)


@pytest.mark.slow
def test_a_step_teaches_the_network_and_its_exits(bed):
    """Two steps of one student: what has a weight moves, and batch statistics are kept."""
    config = override(config_file.get_config(), SMALL)
    changes = ofakd_sides.changes_of(config, "convnet", exits=True)
    own = replaced(config, changes["ofa", (1.5,), "vit"])
    problem = ofakd_students.task(own, bed, family="convnet", exits=True)
    moved = two_steps(problem)
    for part in ("encoder", "classifier", "exits"):
        assert max(jax.tree.leaves(moved[part])) > 1e-4


def test_each_side_is_the_loss_that_it_names(bed):
    config = override(config_file.get_config(), SMALL)
    rng = np.random.default_rng(1)
    z, h, f = (rng.standard_normal(shape) for shape in ((12, 10), (2, 12, 10), (12, 4)))
    m = rng.standard_normal((12, 4))
    labels = bed.train["label"]
    one = np.eye(10)[labels]

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def cross_entropy(target, x):
        return -(target * log_softmax(x)).sum(-1)

    def found(name, teacher, *, exits=False):
        own = replaced(config, ofakd_sides.changes_of(config, "mixer", exits=exits)[name])
        batch = {key: jnp.asarray(x) for key, x in bed.train.items()}
        batch = ofakd_students.of_teacher(own, bed.families, batch)
        np.testing.assert_allclose(batch["teacher"], teacher, rtol=1e-5, atol=1e-6)
        outputs = Outputs(*(jnp.asarray(x, jnp.float32) for x in (z, f)),
                          jnp.asarray(h, jnp.float32) if exits else None)  # fmt: skip
        mapped = None if exits else jnp.asarray(m, jnp.float32)
        return np.asarray(ofakd_students.value(own, outputs, mapped, batch))

    teacher, features = bed.train["teacher"][:, 1], bed.train["features"][:, 1]
    ce, p = cross_entropy(one, z), np.exp(log_softmax(teacher))
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    smooth = 0.9 * one + 0.1 / 10
    same(found(("label", (0.1,), None), 0 * teacher), cross_entropy(smooth, z))
    warm = np.exp(log_softmax(teacher / 4))
    kl = 16 * (cross_entropy(warm, z / 4) - cross_entropy(warm, teacher / 4))
    same(found(("kd", (0.9, 4.0), "vit"), teacher), 0.1 * ce + 0.9 * kl)
    same(found(("fitnet", (10.0,), "vit"), teacher), ce + 10 * ((m - features) ** 2).mean(1))
    w = (p + one) ** 1.5 - one
    same(found(("enhanced", (1.5,), "vit"), teacher), ce + cross_entropy(w, z))
    same(found(("ofa", (1.5,), "vit"), teacher, exits=True),
         ce + cross_entropy(w, z) + cross_entropy(w, h).sum(0))  # fmt: skip
    w = np.where(one > 0, (1 + p) ** 2, p)
    same(found(("paper", (2.0,), "vit"), teacher, exits=True),
         ce + cross_entropy(w, z) + cross_entropy(w, h).sum(0))  # fmt: skip
    same(found(("hard", (3.0,), None), 0 * teacher, exits=True),
         ce + 3 * cross_entropy(one, h).sum(0))  # fmt: skip
    other = np.roll(teacher, 1, axis=0)
    p = np.exp(log_softmax(other))
    same(found(("shuffled", (1.0,), "vit"), other, exits=True),
         ce + cross_entropy(p, z) + cross_entropy(p, h).sum(0))  # fmt: skip


def test_students_have_the_tries_of_their_side_and_two_teachers():
    config = config_file.get_config()
    plain = ofakd_sides.changes_of(config, "vit", exits=False)
    assert len(plain) == 3 + 5 * 3 * 2
    exits = ofakd_sides.changes_of(config, "vit", exits=True)
    assert len(exits) == 3 + 2 * 3 * 2 + 2 * 2
    assert {name[2] for name in [*plain, *exits]} == {None, "convnet", "mixer"}
    assert exits["again", (1.0,), "mixer"] == exits["ofa", (1.0,), "mixer"] | {"seed": 1000}
    assert plain["dkd", (2.0, 1.0), "mixer"]["given.label"] == 0.5
    assert plain["rkd", (5.0,), "mixer"]["given.mixer"] == 1.0
    keys = {"given.rkd", "given.convnet", "given.vit", "given.mixer", "seed"}
    assert set(plain["rkd", (5.0,), "mixer"]) == keys


def test_settings_are_chosen_over_all_pairs():
    config = override(config_file.get_config(), {"tries.rkd.rkd": (1.0, 5.0)})
    names = (("rkd", (1.0,), "a"), ("rkd", (5.0,), "a"), ("fitnet", (0.1,), "a"))
    first = Students(names, np.arange(3), np.array([0.9, 0.5, 0.6]))
    second = Students(names, np.arange(3), np.array([0.1, 0.7, 0.6]))
    programs = {"x": [first], "y": [second]}
    assert students.best(config, "rkd", [first, second]) == (5.0,)
    assert students.best(config, "rkd", [first]) == (1.0,)
    assert list(first.some([names[2], names[0]])) == [2, 0]
    chosen = {"rkd": (1.0,), "fitnet": (0.1,)}
    assert ofakd_measures.better_hint(chosen, programs) == "fitnet"


def test_stages_agree_within_and_between_families():
    matrix = np.array([[1.0, 0.3, 0.2, 0.0], [0.3, 0.8, 0.0, 0.4],
                       [0.1, 0.0, 0.6, 0.5], [0.0, 0.3, 0.5, 0.8]])  # fmt: skip
    within, between = ofakd_measures.gaps(matrix, 2)
    assert within == pytest.approx((1.0 + 0.8 + 0.6 + 0.8) / 4)
    assert between == pytest.approx((0.2 + 0.4 + 0.1 + 0.3) / 4)
    stage = np.random.default_rng(0).standard_normal((6, 2, 5))
    rows = stage.reshape(6, -1) - stage.reshape(6, -1).mean(0)
    found = np.asarray(ofakd_measures.coordinates(stage))
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tries.rkd.rkd": (1.0,)}, "expected equally many of each"),
        ({"tries.ofa.gamma": (1.1, 1.5, 2.0)}, "expected 1 among them"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        ofakd.check(override(config_file.get_config(), changes))


def test_families_and_keys_are_those_that_are_read():
    config = config_file.get_config()
    del config.students.vit
    with pytest.raises(UserError, match="expected the same families"):
        ofakd.check(config)
    config = config_file.get_config()
    config.tries.kd = {"temperature": (1.0,)}
    with pytest.raises(UserError, match=r"tries\.kd has"):
        ofakd.check(config)
