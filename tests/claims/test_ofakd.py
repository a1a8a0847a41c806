"""One-for-All's recipe on little data; `make claims` measures students that learn."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.distillation import ofakd as config_file
from experiments.common.many import replaced
from experiments.distillation import (
    families,
    ofakd,
    ofakd_measures,
    ofakd_students,
    pairs,
    students,
    taught,
)
from experiments.distillation.students import Students
from rml.distillation import Outputs
from rml.errors import UserError
from rml.losses import correlation_congruence, crd_loss, dist_loss, rkd_angle, rkd_distance
from rml.training import RunDirectory
from tests.claims import drawn_students
from tests.claims.drawn_students import two_steps
from tests.system.two_steps import override

SMALL = drawn_students.FAMILIES | {"compared": 12}


@pytest.fixture
def untrained(monkeypatch):
    """Teachers and students that are drawn, and students that say what is drawn."""

    drawn_students.put_in(monkeypatch, drawn_students.of_kind)
    shares = {"flops_exits_over_kd": 1.4, "flops_unmerged_over_kd": 2.0}
    monkeypatch.setattr(ofakd, "costs", lambda config, bed: shares)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(untrained, measure, tmp_path):
    metrics, holds = measure("configs/distillation/ofakd.py", SMALL)
    assert len(holds) == len(ofakd.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert {metrics[f"tries_{side}"] for side in ofakd.COMPARED} == {4}
    assert metrics["chosen_ofa_gamma"] in (1.0, 1.5, 2.0)
    assert {metrics[f"rate_at_edge_{side}"] for side in ofakd.COMPARED} == {1.0}
    pairs = [metrics[f"accuracy_ofa_{t}_{s}"] for t, s in ofakd_measures.pairs_of(
        config_file.get_config())]  # fmt: skip
    assert len(pairs) == 6
    assert metrics["accuracy_ofa"] == pytest.approx(np.mean(pairs))
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(ofakd.CAPTIONS)


@pytest.fixture
def bed():
    return drawn_students.made_bed()


@pytest.mark.slow
def test_exits_cost_less_where_tokens_are_merged(bed, monkeypatch):
    times = iter((2.0, 3.0))
    monkeypatch.setattr(ofakd_measures, "seconds", lambda problem, repeats: next(times))
    config = override(config_file.get_config(), SMALL)
    for name in ("convnet", "mixer"):
        del config.students[name]
    found = ofakd_measures.costs(config, bed)
    assert found["flops_unmerged_over_kd"] > 1.2 * found["flops_exits_over_kd"]
    assert found["flops_exits_over_kd"] > 1.05
    assert found["seconds_exits_over_kd"] == 1.5
    # A block of width 4 and hidden width 16, and its norms, in two exits; two in the first.
    block = 4 * 12 + 12 + 4 * 4 + 4 + 4 * 16 + 16 + 16 * 4 + 4 + 2 * 8
    merge = 2 * 16 + 16 * 4
    assert found["exit_parameters_vit"] == 4 * block + 3 * (merge + 4 * 10 + 10)


@pytest.mark.slow
def test_a_step_teaches_the_network_and_its_exits(bed):
    """Two steps of one student: what has a weight moves, and batch statistics are kept."""
    config = override(config_file.get_config(), SMALL)
    changes = ofakd.students_of(config, "convnet", "exits")
    own = replaced(config, changes["ofa", (1.5, config.rates[0]), "vit"])
    problem = ofakd_students.task(own, bed, family="convnet", kind="exits")
    moved = two_steps(problem)
    for part in ("encoder", "classifier", "exits"):
        assert max(jax.tree.leaves(moved[part])) > 1e-4


@pytest.mark.slow
def test_a_step_teaches_by_maps_of_the_last_stage(bed):
    """Only FitNet's map and CRD's are trained, and the student whole by either."""
    config = override(config_file.get_config(), SMALL)
    changes = ofakd.students_of(config, "convnet", "features")
    own = replaced(config, changes["fitnet", (1.0, config.rates[0]), "vit"])
    problem = ofakd_students.task(
        own, bed, family="convnet", kind="features", methods=("fitnet", "crd")
    )
    template = jax.eval_shape(lambda key: nn.meta.unbox(problem.init(key)), jax.random.key(0))
    maps = jax.tree.map(lambda leaf: leaf.shape, template.params["maps"])
    assert maps["fitnet"] == {"student": {"kernel": (3, 4), "bias": (4,)}}
    assert maps["crd"]["teacher"]["kernel"] == (4, 128)
    moved = two_steps(problem)
    for part in ("encoder", "classifier"):
        assert max(jax.tree.leaves(moved[part])) > 1e-4


@pytest.mark.slow
def test_each_side_is_the_loss_that_it_names(bed):
    config = override(config_file.get_config(), SMALL | {"tries.dkd.temperature": (2.5,)})
    rng = np.random.default_rng(1)
    z, h, f = (rng.standard_normal(shape) for shape in ((12, 10), (2, 12, 10), (12, 4)))
    last, m = rng.standard_normal((12, 4, 4, 3)), rng.standard_normal((12, 4, 4, 4))
    labels = bed.train["label"]
    one = np.eye(10)[labels]

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def cross_entropy(target, x):
        return -(target * log_softmax(x)).sum(-1)

    def found(name, teacher, kind="logits"):
        side, setting, taught_by = name
        students = ofakd.students_of(config, "mixer", kind)
        own = replaced(config, students[side, (*setting, config.rates[0]), taught_by])
        assert own.optimizer.learning_rate == config.rates[0]
        batch = {key: jnp.asarray(x) for key, x in bed.train.items()}
        batch = taught.of_teacher(own, bed.families, batch)
        np.testing.assert_allclose(batch["teacher"], teacher, rtol=1e-5, atol=1e-6)
        arrays = [jnp.asarray(x, jnp.float32) for x in (z, f, h, last)]
        outputs = Outputs(
            *arrays[:2], arrays[2] if kind == "exits" else None, stages=(0, arrays[3])
        )
        pairs = {key: taught.pair(key, outputs, batch) for key in ofakd_students.KINDS[kind]}
        if kind == "features":
            np.testing.assert_allclose(pairs["fitnet"][0], last, rtol=1e-6)
            pairs["fitnet"] = (jnp.asarray(m, jnp.float32), pairs["fitnet"][1])
        more = ofakd_students.at_exits if kind == "exits" else taught.beside
        return np.asarray(taught.value(own, outputs, pairs, batch, more))

    teacher, features, maps = (bed.train[key][:, 1] for key in ("teacher", "features", "maps"))
    ce, p = cross_entropy(one, z), np.exp(log_softmax(teacher))
    known = (jnp.asarray(f, jnp.float32), jnp.asarray(features))
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    smooth = 0.9 * one + 0.1 / 10
    same(found(("label", (0.1,), None), 0 * teacher), cross_entropy(smooth, z))
    warm = np.exp(log_softmax(teacher / 4))
    kl = 16 * (cross_entropy(warm, z / 4) - cross_entropy(warm, teacher / 4))
    same(found(("kd", (0.9, 4.0), "vit"), teacher), 0.1 * ce + 0.9 * kl)
    # Of the label or any other class, and of the others among themselves, whose weight is 2.
    theirs, ours = (np.exp(log_softmax(x / 2.5)) for x in (teacher, z))
    others, split = [], []
    for x in (theirs, ours):
        chance = (x * one).sum(1, keepdims=True)
        split.append(np.concatenate([chance, 1 - chance], axis=1))
        others.append(np.where(one > 0, 1, x / (1 - chance)))  # the label's place counts 0
    parts = [(p * np.log(p / q)).sum(1) for p, q in (split, others)]
    mixed = 0.5 * ce + 0.5 * 2.5**2 * (parts[0] + 2 * parts[1])
    same(found(("dkd", (2.0, 2.5), "vit"), teacher), mixed)
    logits = jnp.asarray(z, jnp.float32), jnp.asarray(teacher)
    same(found(("dist", (3.0,), "vit"), teacher), ce + 3 * np.asarray(dist_loss(*logits)))
    mean = ((m - maps) ** 2).mean((1, 2, 3))
    same(found(("fitnet", (10.0,), "vit"), teacher, "features"), ce + 10 * mean)
    relations = 25 * np.asarray(rkd_distance(*known)) + 50 * np.asarray(rkd_angle(*known))
    same(found(("rkd", (0.2,), "vit"), teacher, "features"), ce + 0.2 * relations)
    congruence = np.asarray(correlation_congruence(*known))
    same(found(("cc", (20.0,), "vit"), teacher, "features"), ce + 20 * congruence)
    rows = np.asarray(crd_loss(*known, jnp.asarray(labels), size=80.0))
    same(found(("crd", (0.15,), "vit"), teacher, "features"), ce + 0.15 * rows)
    w = (p + one) ** 1.5 - one
    same(found(("enhanced", (1.5,), "vit"), teacher), ce + cross_entropy(w, z))
    same(found(("ofa", (1.5,), "vit"), teacher, "exits"),
         ce + cross_entropy(w, z) + cross_entropy(w, h).sum(0))  # fmt: skip
    w /= w.sum(1, keepdims=True)
    same(found(("normalized", (1.5,), "vit"), teacher, "exits"),
         ce + cross_entropy(w, z) + cross_entropy(w, h).sum(0))  # fmt: skip
    first, second, w = ((p + one) ** gamma - one for gamma in (1.0, 1.5, 2.0))
    same(found(("rising", (2.0,), "vit"), teacher, "exits"), ce + cross_entropy(w, z)
         + cross_entropy(first, h[0]) + cross_entropy(second, h[1]))  # fmt: skip
    w = np.where(one > 0, (1 + p) ** 2, p)
    same(found(("paper", (2.0,), "vit"), teacher, "exits"),
         ce + cross_entropy(w, z) + cross_entropy(w, h).sum(0))  # fmt: skip
    same(found(("hard", (0.3,), None), 0 * teacher, "exits"),
         ce + 0.3 * cross_entropy(one, h).sum(0))  # fmt: skip
    other = np.roll(teacher, 1, axis=0)
    p = np.exp(log_softmax(other))
    same(found(("shuffled", (1.0,), "vit"), other, "exits"),
         ce + cross_entropy(p, z) + cross_entropy(p, h).sum(0))  # fmt: skip


def test_students_have_the_tries_of_their_side_and_two_teachers():
    config = override(config_file.get_config(), {"rates": (1e-3, 2e-3)})
    logits, features, exits = (
        ofakd.students_of(config, "vit", kind) for kind in ("logits", "features", "exits")
    )
    assert len(logits) == 4 + 4 * 4 * 2
    assert len(features) == 4 * 4 * 2
    assert len(exits) == 4 + 4 * 4 * 2 + 2 * 2 * 2
    assert {name[2] for name in [*logits, *exits]} == {None, "convnet", "mixer"}
    for rate in config.rates:
        own = exits["ofa", (1.0, rate), "mixer"]
        assert exits["again", (1.0, rate), "mixer"] == own | {"seed": 1000}
        assert own["optimizer.learning_rate"] == rate
    # The first number of a side has all rates, others have the first.
    assert students.settings(config, "kd") == [
        (0.9, 1.0, 1e-3), (0.9, 2.0, 1e-3), (0.9, 4.0, 1e-3), (0.9, 1.0, 2e-3)
    ]  # fmt: skip
    assert students.keys(config, "kd") == ("kd", "temperature", "learning_rate")
    # What is mixed has the share of its weight, and the rest is the label's.
    assert logits["dkd", (2.0, 1.0, 2e-3), "mixer"]["given.label"] == 0.5
    assert logits["kd", (0.9, 2.0, 1e-3), "mixer"]["given.label"] == pytest.approx(0.1)
    assert logits["dist", (3.0, 1e-3), "mixer"].keys().isdisjoint({"given.label"})
    own = features["rkd", (0.2, 1e-3), "mixer"]
    teachers = {"given.mixer": 1.0, "given.convnet": 0.0, "given.vit": 0.0}
    weights = {"given.rkd_distance": 5.0, "given.rkd_angle": 10.0}
    assert own == {"seed": 0, **teachers, **weights, "optimizer.learning_rate": 1e-3}


def test_what_a_program_carries_is_what_its_methods_read(bed):
    config = override(config_file.get_config(), SMALL)
    wanted = {"logits": set(), "exits": set(), "features": {"features", "maps"}}
    for kind, more in wanted.items():
        problem = ofakd_students.task(config, bed, family="mixer", kind=kind)
        assert set(problem.batch_spec) == {"image", "label", "teacher"} | more
    assert [taught.key_of(name) for name in ("kd", "cc", "fitnet")] == [
        "teacher", "features", "maps"
    ]  # fmt: skip
    assert {*ofakd_students.KINDS["features"]} == {*taught.of_kind("features")}


def test_settings_are_chosen_over_all_pairs(monkeypatch):
    config = override(config_file.get_config(), {"tries.cc.cc": (1.0, 5.0), "rates": ()})
    names = (("cc", (1.0,), "a"), ("cc", (5.0,), "a"), ("fitnet", (0.1,), "a"))
    first = Students(names, np.arange(3), np.array([0.9, 0.5, 0.6]))
    second = Students(names, np.arange(3), np.array([0.1, 0.7, 0.6]))
    programs = {"x": [first], "y": [second]}
    assert students.best(config, "cc", [first, second]) == (5.0,)
    assert students.best(config, "cc", [first]) == (1.0,)
    assert students.best(config, "cc", [first], [(5.0,)]) == (5.0,)
    assert list(first.some([names[2], names[0]])) == [2, 0]
    chosen = {"cc": (1.0,), "fitnet": (0.1,)}
    monkeypatch.setattr(ofakd_measures, "HINTS", ("cc", "fitnet"))
    assert ofakd_measures.best_hint(chosen, programs) == "fitnet"


def tried_exponents(accuracy):
    """A config of two exponents and rates, and students with an accuracy by setting."""
    config = override(
        config_file.get_config(), {"rates": (1e-3, 2e-3), "tries.ofa.gamma": (1.0, 2.0)}
    )
    settings = [(1.0, 1e-3), (1.0, 2e-3), (2.0, 1e-3)]
    known = dict(zip(settings, accuracy, strict=True))
    names = [(side, own, "a") for side in ofakd_measures.EXPONENTS for own in settings]
    # Exponents of other sides than One-for-All are worth nothing.
    every = [known[own] if side == "ofa" or own[0] == 1.0 else 0.0 for side, own, _ in names]
    return config, {"x": [Students(tuple(names), np.arange(len(names)), np.array(every))]}


def test_exponents_are_compared_at_the_one_rate_that_all_of_them_had():
    """γ = 1 is best at the second rate, which other exponents did not have."""
    config, programs = tried_exponents([0.5, 0.9, 0.6])
    wanted = ofakd_measures.wanted_of(config, {"ofa": (1.0, 2e-3)}, programs)
    first, second = (wanted[name] for name in ofakd_measures.PAIRS["gamma_gain"])
    assert first == ("ofa", (2.0, 1e-3))
    assert second == ("ofa", (1.0, 1e-3))
    first, second = (wanted[name] for name in ofakd_measures.PAIRS["normalized_gain"])
    assert first == second == ("normalized", (1.0, 1e-3))


def test_variants_have_the_rate_that_is_best_without_enhancement():
    config, programs = tried_exponents([0.5, 0.6, 0.9])
    found = ofakd_measures.wanted_of(config, {"ofa": (2.0, 1e-3)}, programs)
    assert found["ofa"] == ("ofa", (2.0, 1e-3))
    assert found["ofa_plain"] == ("ofa", (1.0, 2e-3))
    assert found["again"] == ("again", (1.0, 2e-3))


def test_rates_of_a_config_that_are_an_end_of_its_grid_are_told():
    config, _ = tried_exponents([0.5, 0.9, 0.6])
    config.rates = (1e-3, 5e-4, 2e-3)
    found = pairs.tried(config, {"ofa": (1.0, 1e-3), "cc": (20.0, 2e-3), "kd": (0.9, 1.0, 5e-4)})
    edges = {name: value for name, value in found.items() if name.startswith("rate_at_edge")}
    assert edges == {"rate_at_edge_ofa": 0, "rate_at_edge_cc": 1, "rate_at_edge_kd": 1}


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
        ({"tries.cc.cc": (1.0,)}, "expected equally many of each"),
        ({"tries": {"kd": {}}}, r"tries has \['kd'\], expected"),
        ({"tries.ofa.gamma": (1.1, 1.5, 2.0)}, "expected 1 first"),
        ({"rates": ()}, "rates is empty"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        ofakd.check(override(config_file.get_config(), changes))


@pytest.mark.slow
def test_images_are_counted_before_teachers_are_trained():
    config = override(config_file.get_config(), SMALL | {"given.images": 81.0})
    with pytest.raises(UserError, match=r"given\.images is 81, expected 80, .* of mnist5k"):
        families.make_bed(config, None)


@pytest.mark.slow
def test_teachers_of_another_run_are_taken(untrained, monkeypatch, tmp_path):
    """Those of `teaching.run` by their names, without any training."""
    config = override(config_file.get_config(), SMALL | {"teaching.run": str(tmp_path / "other")})
    train, read = families.train, []

    def restore(directory, problem):
        read.append(directory)
        return train(config, SimpleNamespace(path=directory), problem, "")

    def make_bed(name):
        return families.make_bed(config, RunDirectory(tmp_path / name, config.to_dict()))

    monkeypatch.setattr(families, "restore", restore)
    monkeypatch.setattr(families, "train", None)
    with pytest.raises(UserError, match=r"teaching\.run is .*, expected the directory of a run"):
        make_bed("first")
    names = [f"teacher_{family}" for family in config.teachers]
    trained(tmp_path / "other", config, names)
    summary = tmp_path / "other" / "methods" / names[-1] / "summary.json"
    ended = summary.read_bytes()
    summary.unlink()
    said = rf"teaching\.run is '{summary.parent}', a run that has not ended"
    with pytest.raises(UserError, match=said):
        make_bed("stopped")
    summary.write_bytes(ended)
    bed = make_bed("second")
    assert read == [tmp_path / "other" / "methods" / name for name in names]
    assert set(bed.variables) == set(config.teachers)


def trained(directory, config, names):
    """Writes the config of a run into its directory, and what complete methods of it have."""
    run = RunDirectory(directory, config.to_dict())
    for name in names:
        inner = run.of_method(name)
        inner.write_summary(metrics={}, claims=[], seconds=1.0)
        inner.close()
    run.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.teacher": "train[:15%]"}, r"data\.teacher: 'train\[10000:20000\]' there"),
        ({"seed": 7}, "seed: 0 there, 7 now"),
        ({"teaching.train.steps": 5}, r"teaching\.train\.steps: 500 there, 5 now"),
        ({"teachers.mixer.width": 4}, r"teachers\.mixer\.width: 48 there, 4 now"),
        ({"loss.smoothing": 0.1}, r"loss\.smoothing: 0\.0 there, 0\.1 now"),
    ],
)
def test_teachers_of_another_config_are_refused(changes, message, tmp_path):
    config = override(config_file.get_config(), {"teaching.run": str(tmp_path / "other")})
    names = [f"teacher_{family}" for family in config.teachers]
    trained(tmp_path / "other", override(config_file.get_config(), {}), names)
    families.check_teachers(override(config, {"train.steps": 3, "data.test": "test[:9]"}))
    with pytest.raises(UserError, match=f"teachers are of another config.*{message}"):
        families.make_bed(override(config, changes), None)  # before any image is read


def test_maps_are_brought_to_the_teachers_grid_and_a_class_token_is_not_on_it():
    rng = np.random.default_rng(0)
    ramp = np.arange(8.0)[None, :, None, None] + np.zeros((2, 8, 8, 3))
    tokens = rng.standard_normal((2, 1 + 16, 3))
    batch = {"maps": jnp.asarray(rng.standard_normal((2, 4, 4, 5)))}

    def pair(stage):
        return taught.pair("fitnet", Outputs(None, None, stages=(None, jnp.asarray(stage))), batch)

    ours, theirs = pair(ramp)
    assert ours.shape == (2, 4, 4, 3)
    halved = ramp.reshape(2, 4, 2, 8, 3).mean(2)[:, :, ::2]
    np.testing.assert_allclose(ours[:, 1:3], halved[:, 1:3], rtol=1e-6)
    np.testing.assert_array_equal(theirs, batch["maps"])
    np.testing.assert_allclose(pair(tokens)[0], tokens[:, 1:].reshape(2, 4, 4, 3), rtol=1e-6)


def test_families_and_keys_are_those_that_are_read():
    config = config_file.get_config()
    del config.students.vit
    with pytest.raises(UserError, match="expected the same families"):
        ofakd.check(config)
    config = config_file.get_config()
    config.tries.normalized = {"gamma": (1.1, 1.5, 2.0)}
    with pytest.raises(UserError, match=r"tries\.normalized\.gamma is .* expected 1 among them"):
        ofakd.check(config)
    config = config_file.get_config()
    config.tries.kd = {"temperature": (1.0,)}
    with pytest.raises(UserError, match=r"tries\.kd has"):
        ofakd.check(config)
