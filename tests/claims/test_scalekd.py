"""ScaleKD's recipe on little data; `make claims` measures students that learn."""

from functools import cache
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.distillation import scalekd as config_file
from experiments.common.many import replaced
from experiments.distillation import (
    families,
    scalekd,
    scalekd_figures,
    scalekd_lessons,
    scalekd_measures,
    scalekd_sides,
    scalekd_students,
    students,
)
from experiments.distillation.families import Bed
from experiments.distillation.scalekd_lessons import Lesson, Lessons
from rml.distillation import (
    CrossAttentionProjector,
    ExitNetwork,
    Outputs,
    Projected,
    mimic,
    through_teacher,
)
from rml.errors import UserError
from rml.models import ViT
from tests.claims import drawn_students
from tests.claims.drawn_students import draw, shapes, two_steps
from tests.system.two_steps import override

WIDTH, TOKENS = 4, 16
SMALL = drawn_students.SMALL | {
    "compared": 1, "probe.train": "train[:1%]", "probe.test": "test[:8%]", "quarter": 20.0,
    "projectors.heads": 2,
    **{f"teachers.{name}.{key}": value for name in ("depth2", "depth3", "depth6")
       for key, value in {"width": WIDTH, "heads": 2}.items()},
}  # fmt: skip


def small(**changes):
    return override(config_file.get_config(), SMALL | changes)


@pytest.fixture
def untrained(monkeypatch):
    """Teachers and students that are drawn, and students that say what is drawn."""

    @cache
    def template(family, kind):
        config = small()
        return shapes(scalekd_students.student(config, family, kind), config)

    def features(variables, images):
        del variables
        return images.reshape(len(images), -1)[:, 300:304] / 255

    def inspect(config, family, variables, images, path):
        del config, variables, path
        places = {"convnet": 7 * 7, "mixer": 4 * 4, "vit": 4 * 4}[family]
        drawn = np.random.default_rng(0).random((2, 2, len(images), TOKENS, WIDTH))
        third = np.random.default_rng(0).random((len(images), TOKENS, places))
        return Projected(None, None, *drawn), {"third": third}

    def linear_probe(first, labels, second, others, *, num_classes, key):
        assert len(first) == len(labels)
        assert len(second) == len(others)
        rng = np.random.default_rng(0)
        weights = rng.standard_normal((first.shape[1], num_classes))
        return SimpleNamespace(weights=weights, bias=np.zeros(num_classes))

    drawn_students.put_in(
        monkeypatch, lambda config, name: template(*name.split("_")[:2]), scalekd_lessons
    )
    shares = {"flops_scalekd_over_kd": 2.4, "flops_whole_over_kd": 6.0}
    monkeypatch.setattr(scalekd, "costs", lambda config, bed, lessons: shares)
    monkeypatch.setattr(scalekd_measures, "linear_probe", linear_probe)
    monkeypatch.setattr(scalekd_measures, "_features", lambda net: features)
    monkeypatch.setattr(scalekd, "inspect", inspect)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(untrained, measure, tmp_path):
    metrics, holds = measure("configs/distillation/scalekd.py", SMALL)
    assert len(holds) == len(scalekd.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert all(claim.null in metrics for claim in scalekd.CLAIMS)
    assert {metrics[f"tries_{side}"] for side in scalekd_sides.SIDES} == {4}
    assert metrics["chosen_kd_kd"] in (0.9, 1.0)
    # Of two rates each is an end.
    assert {metrics[f"rate_at_edge_{side}"] for side in scalekd_sides.SIDES} == {1.0}
    assert metrics["chosen_scalekd_learning_rate"] in (6e-3, 1.2e-2)
    own = [metrics[f"accuracy_scalekd_{family}"] for family in ("convnet", "mixer", "vit")]
    assert metrics["accuracy_scalekd"] == pytest.approx(np.mean(own))
    difference = metrics["accuracy_scalekd"] - metrics["accuracy_linear"]
    assert metrics["projector_gain"] == pytest.approx(difference, abs=1e-6)
    others = [metrics[f"accuracy_{side}"] for side in ("fitnet", "ofa")]
    assert metrics["accuracy_features"] in others
    arms = ("fitnet_depth2", "fitnet_depth3", "fitnet")
    rank = scalekd_measures.rank_correlation([2, 3, 6], [metrics[f"accuracy_{a}"] for a in arms])
    assert metrics["rank_with_depth_fitnet"] == rank
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(scalekd.CAPTIONS)


def test_images_of_probes_are_opened_before_any_training(monkeypatch):
    monkeypatch.delattr(scalekd, "make_bed")  # nothing calls it
    with pytest.raises(UserError, match="unknown data set 'mnist6k'"):
        scalekd.run(small(**{"probe.name": "mnist6k"}), None)


def test_learning_rates_at_an_end_of_the_grid_are_told():
    rates, config = (1e-3, 2e-3, 4e-3), config_file.get_config()
    config.tries.kd.learning_rate = rates
    at = list(config.tries.kd).index("learning_rate")
    found = {
        setting[at]: students.rate_at_edge(config, "kd", setting)
        for setting in students.settings(config, "kd")
    }
    assert found == dict(zip(rates, (True, False, True), strict=True))


def test_probes_are_compared_image_by_image_over_families():
    rng = np.random.default_rng(0)
    right = {
        arm: {family: rng.integers(0, 2, 40).astype(float) for family in ("mixer", "vit")}
        for arm in scalekd_measures.PROBED
    }
    found = scalekd_measures.of_probes(right)
    mean = {arm: np.mean(list(own.values())) for arm, own in right.items()}
    for arm in ("scalekd", "shuffled"):
        for other in ("kd", "label"):
            difference = mean[arm] - mean[other]
            assert found[f"probe_{arm}_over_{other}"] == pytest.approx(difference, abs=1e-6)
    assert found["probe_scalekd"] == pytest.approx(mean["scalekd"])
    assert found["probe_scalekd_over_kd_low"] < found["probe_scalekd_over_kd"]


@pytest.fixture
def lessons():
    """What three drawn teachers say of twelve images."""
    rng = np.random.default_rng(0)
    tail = ViT(
        width=WIDTH, depth=1, heads=2, mlp_ratio=2, patch_size=7, pooling="gap",
        positions="learned",
    )  # fmt: skip
    template = nn.meta.unbox(
        jax.eval_shape(tail.init, jax.random.key(0), jnp.zeros((2, 28, 28, 1)))
    )["params"]
    kept = {"params": {name: template[name] for name in ("blocks", "norm")}}
    tokens = rng.standard_normal((2, 12, 3, TOKENS, WIDTH))
    return Lessons(
        ("depth2", "depth3", "depth6"),
        jnp.asarray(rng.integers(0, 255, (12, 28, 28, 1)).astype(np.uint8)),
        jnp.asarray(np.arange(12) % 10),
        jnp.asarray(rng.standard_normal((12, 3, 10)), jnp.float32),
        *jnp.asarray(tokens, jnp.float32),
        tail=tail,
        tails=draw(kept, 3, runs=(3,)),
    )


@pytest.fixture
def bed(lessons):
    part = {"image": np.asarray(lessons.images), "label": np.asarray(lessons.labels)}
    return Bed(lessons.names, part, part, part, {}, {}, {})


@pytest.mark.slow
def test_a_lesson_is_that_of_one_teacher_of_the_first_images(lessons):
    config = small()
    rows, setting = np.array([3, 11, 0]), CHOSEN["scalekd"]
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.standard_normal((2, 5, WIDTH)), jnp.float32)
    keys = ("path", "own", "images", *lessons.names)

    @jax.jit
    def read(values):
        given = {f"given.{key}": value for key, value in zip(keys, values, strict=True)}
        own = scalekd_lessons.lesson(replaced(config, given), lessons, {"row": jnp.asarray(rows)})
        return own._replace(images=None, path=own.path(tokens))

    def of(change):
        given = replaced(config, change).given
        return read(jnp.asarray([given[key] for key in keys], jnp.float32))

    changes = scalekd_sides.further(config, "attention", CHOSEN)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    own = of(changes["scalekd", setting, "depth3"])
    same(own.labels, [3, 1, 0])
    for key in ("logits", "third", "last"):
        same(getattr(own, key), getattr(lessons, key)[rows, 1])
    tail = jax.tree.map(lambda leaf: leaf[1], lessons.tails)
    after = jax.jit(lambda x: through_teacher(lessons.tail, tail, x, start=0))(tokens)
    np.testing.assert_allclose(own.path, after, rtol=1e-4, atol=1e-5)
    same(of(scalekd_sides.change(config, "pathless", setting)).path, tokens)
    few = {**changes["few_scalekd", setting, "depth6"], "given.images": 4.0}
    same(of(few).labels, [3, 3, 0])
    others = of(changes["shuffled", setting, "depth6"])
    same(others.logits, lessons.logits[rows, 2])
    for key in ("third", "last"):
        same(getattr(others, key), getattr(lessons, key)[np.array([0, 3, 11]), 2])


CHOSEN = {"scalekd": (6e-3, 0.3), "label": (1.2e-2, 0.1)}


@pytest.mark.slow
def test_each_side_is_the_loss_that_it_names():
    config = small()
    rng = np.random.default_rng(1)
    z, t = rng.standard_normal((2, 12, 10))
    views = rng.standard_normal((2, 2, 12, TOKENS, WIDTH))
    third, last = rng.standard_normal((2, 12, TOKENS, WIDTH))
    labels = np.arange(12) % 10
    known = Lesson(
        None, jnp.asarray(labels), *(jnp.asarray(x, jnp.float32) for x in (t, third, last)), None
    )

    def found(side, number, outputs=None):
        tried = {"learning_rate": 2e-3, scalekd_sides.SIDES[side].key: number}
        setting = tuple(tried[key] for key in config.tries[side])
        own = replaced(config, scalekd_sides.change(config, side, setting))
        outputs = outputs or Projected(*(jnp.asarray(x, jnp.float32) for x in (z, z, *views)))
        return np.asarray(scalekd_students.value(own, outputs, known))

    def logs(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def mimicked(own, target, view):
        own, target = (jnp.asarray(x, jnp.float32) for x in (own, target))
        return np.asarray(mimic(own, target, remove_mean=view == 1))

    def stage(own, target, direct=3.92, alternative=2.94):
        whole, varying = (mimicked(x, target, view) for view, x in enumerate(own))
        return direct * whole + alternative * varying

    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)  # noqa: E731
    one = np.eye(10)[labels]
    ce = -(one * logs(z)).sum(-1)
    kl = (np.exp(logs(t)) * (logs(t) - logs(z))).sum(-1)
    half = (ce + kl) / 2
    whole = stage(views[0], last) + stage(views[1], last)
    same(found("label", 0.1), -((0.9 * one + 0.01) * logs(z)).sum(-1))
    same(found("kd", 0.9), 0.1 * ce + 0.9 * kl)
    plain = Outputs(jnp.asarray(z, jnp.float32), jnp.asarray(z, jnp.float32))
    same(found("kd", 0.9, plain), 0.1 * ce + 0.9 * kl)
    exits = rng.standard_normal((2, 12, 10))
    taught = plain._replace(exits=jnp.asarray(exits, jnp.float32))
    w = (np.exp(logs(t)) + one) ** 1.5 - one
    each = [-(w * logs(own)).sum(-1) for own in (z, *exits)]
    same(found("ofa", 1.5, taught), ce + sum(each))
    same(found("fitnet", 10.0), ce + 10 * ((views[1][0] - last) ** 2).mean((1, 2)))
    same(found("cosine", 0.3), half + 0.3 * stage(views[1], last, alternative=0))
    for side in ("linear", "scalekd", "flat"):
        same(found(side, 0.3), half + 0.3 * whole)
    direct = [stage(own, last, alternative=0) for own in views]
    same(found("direct", 0.3), half + 0.3 * sum(direct))
    same(found("alternative", 0.3), half + 0.3 * (whole - sum(direct)))
    same(found("pathless", 1.0), half + stage(views[0], third) + stage(views[1], last))
    same(found("labelled", 1.0), ce + whole)
    same(found("learned", 0.3), half + 0.3 * whole)
    same(found("traditional", 0.3), ce + 0.3 * sum(direct))


def test_students_have_the_tries_of_their_side_and_the_teachers_of_their_arm():
    config = config_file.get_config()
    linear, attention, learned, exits = (
        scalekd_sides.changes_of(config, kind) for kind in scalekd_students.KINDS
    )
    assert len(linear) == 5 * 4
    assert len(attention) == 6 * 4
    assert len(learned) == 2 * 4
    assert len(exits) == 4
    own = exits["ofa", (1.5, 6e-3), "depth6"]
    assert (own["given.ofa"], own["given.gamma"], own["given.label"]) == (1.0, 1.5, 1.0)
    assert scalekd_sides.further(config, "exits", CHOSEN) == {}
    traditional = learned["traditional", (1.2e-2, 0.3), "depth6"]
    assert (traditional["given.alternative"], traditional["given.label"]) == (0.0, 1.0)
    assert scalekd_sides.further(config, "learned", CHOSEN) == {}
    assert {name[2] for name in linear} == {None, "depth6"}
    flat = attention["flat", (1.2e-2, 0.3), "depth6"]
    assert flat["optimizer.learning_rate"] == 1.2e-2
    assert (flat["given.scale"], flat["given.strength"], flat["given.label"]) == (1.0, 0.3, 0.5)
    further = scalekd_sides.further(config, "attention", CHOSEN)
    assert {name[0] for name in further} == {"scalekd", "again", "shuffled", "few_scalekd"}
    again = further["again", (6e-3, 0.3), "depth6"]
    assert again == attention["scalekd", (6e-3, 0.3), "depth6"] | {"seed": 1000}
    sized = further["scalekd", (6e-3, 0.3), "depth2"]
    assert (sized["given.depth2"], sized["given.depth6"]) == (1.0, 0.0)
    chosen = {side: students.settings(config, side)[0] for side in scalekd_sides.SIDES}
    every = linear | attention | learned | exits
    for kind in scalekd_students.KINDS:
        every |= scalekd_sides.further(config, kind, chosen)
    assert every["few_label", chosen["label"], None]["given.images"] == 250.0
    arms = scalekd_measures.arms_of(config, chosen)
    assert set(arms.values()) <= set(every)
    assert arms["kd_depth3"][2] == "depth3"


@pytest.mark.slow
def test_a_step_teaches_the_network_and_its_projectors(bed, lessons):
    """Two steps of one student: all of it moves, and batch statistics are kept."""
    config = small()
    changes = scalekd_sides.changes_of(config, "attention")
    own = replaced(config, changes["scalekd", (6e-3, 0.3), "depth6"])
    problem = scalekd_students.task(own, bed, lessons, family="mixer", kind="attention")
    moved = two_steps(problem)
    for part in ("encoder", "classifier", "third", "fourth"):
        assert max(jax.tree.leaves(moved[part])) > 1e-4


@pytest.mark.slow
def test_attention_of_the_direct_view_is_that_of_every_place():
    """The means over heads of what one projector does with the stages of the encoder alone."""
    config = replaced(small(), {"given.scale": 25.0})
    module = scalekd_students.student(config, "convnet", "attention")
    variables = draw(shapes(module, config), 0)
    params = jax.tree.map(lambda leaf: leaf - 0.35, variables["params"])  # of both signs
    variables = {**variables, "params": params}
    images = np.random.default_rng(1).integers(0, 255, (3, 28, 28, 1)).astype(np.uint8)

    def path(tokens):
        return 3 - tokens[:, ::-1]

    @jax.jit
    def heads(variables, images):
        def part(name, view=None):
            own = {kind: tree[name] for kind, tree in variables.items() if name in tree}
            return own if view is None else jax.tree.map(lambda leaf: leaf[view], own)

        def projected(name, view, stage, query):
            made, kept = projector.apply(part(name, view), stage, query, mutable=["intermediates"])
            return made, kept["intermediates"]["attention"][0]

        projector = CrossAttentionProjector((4, 4), WIDTH, heads=2, scale=25.0)
        stages = module.encoder.apply(part("encoder"), images / 255, stages=True).stages
        of_views = []
        for view in range(2):
            made, third = projected("third", view, stages[-2], None)
            _, fourth = projected("fourth", view, stages[-1], path(made))
            of_views.append({"third": third, "fourth": fourth})
        return of_views

    direct, alternative = heads(variables, images)
    made, found = scalekd_students.inspect(config, "convnet", variables, images, path)
    places = {"third": 49, "fourth": 16}
    assert set(found) == set(places)
    for name, count in places.items():
        assert found[name].shape == (3, TOKENS, count)
        own = np.asarray(direct[name], np.float64)
        np.testing.assert_allclose(found[name], own.mean(1), rtol=1e-4, atol=1e-6)
        for other in (own.max(1), np.mean(alternative[name], axis=1)):
            assert np.abs(other - own.mean(1)).max() > 1e-3
    assert made.third.shape == made.fourth.shape == (2, 3, TOKENS, WIDTH)


def test_kinds_differ_in_projectors_and_queries():
    config = small()
    config = replaced(config, {"given.scale": 2.5})
    made = {
        kind: scalekd_students.student(config, "mixer", kind) for kind in scalekd_students.KINDS
    }
    exits = made.pop("exits")
    assert {kind: (own.projector, own.queries, own.scale) for kind, own in made.items()} == {
        "linear": ("linear", "path", 2.5), "attention": ("attention", "path", 2.5),
        "learned": ("attention", "learned", 2.5),
    }  # fmt: skip
    assert isinstance(exits, ExitNetwork)


def test_accuracies_are_ranked_with_depths():
    assert scalekd_measures.rank_correlation([2, 3, 6], [0.5, 0.7, 0.6]) == 0.5
    assert scalekd_measures.rank_correlation([2, 3, 6], [0.9, 0.7, 0.6]) == -1.0
    assert scalekd_measures.rank_correlation([2, 3, 6], [0.7, 0.7, 0.7]) == 0.0
    right = {
        arm: {"mixer": np.zeros(4)} for arms in scalekd_measures.PAIRS.values() for arm in arms
    }
    right |= {
        f"{side}{end}": {"mixer": np.arange(4) < count}
        for side, counts in (("kd", (3, 2, 1)), ("fitnet", (1, 3, 2)), ("scalekd", (1, 2, 3)))
        for end, count in zip(("_depth2", "_depth3", ""), counts, strict=True)
    }
    found = scalekd_measures.compared(small(), right)
    ranks = {side: found[f"rank_with_depth_{side}"] for side in scalekd_sides.SIZED}
    assert ranks == {"kd": -1.0, "fitnet": 0.5, "scalekd": 1.0}


@pytest.mark.slow
def test_the_deepest_teachers_last_tokens_leave_its_norm(bed, lessons):
    rng = np.random.default_rng(5)
    stage = jnp.asarray(rng.standard_normal((2, TOKENS, WIDTH)), jnp.float32)
    bed = bed._replace(stages={"depth3": (None, stage)})
    path, last = scalekd_lessons.of_main(bed, lessons, "depth3")
    norm = jax.tree.map(lambda leaf: np.asarray(leaf[1], float), lessons.tails["params"]["norm"])
    x = np.asarray(stage, float)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(last, x * norm["scale"] + norm["bias"], rtol=1e-3, atol=1e-4)
    tail = jax.tree.map(lambda leaf: leaf[1], lessons.tails)
    after = jax.jit(lambda x: through_teacher(lessons.tail, tail, x, start=0))(stage)
    np.testing.assert_allclose(path(stage), after, rtol=1e-4, atol=1e-5)


def test_drawn_tokens_are_directions_without_the_mean():
    tokens = np.random.default_rng(0).standard_normal((2, 5, 3))
    own = scalekd_figures.varying(tokens)
    np.testing.assert_allclose(np.linalg.norm(own, axis=-1), 1)
    apart = tokens[1, 3] - tokens[1].mean(0)
    np.testing.assert_allclose(own[1, 3], apart / np.linalg.norm(apart))


@pytest.mark.slow
def test_costs_count_the_path_and_the_teachers_reading(bed, lessons, monkeypatch):
    times = iter((2.0, 5.0))
    monkeypatch.setattr(scalekd_measures, "seconds", lambda problem, repeats: next(times))
    monkeypatch.setattr(scalekd_measures, "least_seconds", lambda call, repeats: 1.0)
    config = small()
    for name in ("convnet", "vit"):
        del config.students[name]
    drawn = {
        name: shapes(families.classifier(config, config.teachers[name]), config)
        for name in lessons.names
    }
    bed = bed._replace(variables={name: draw(own, 0) for name, own in drawn.items()})
    found = scalekd_measures.costs(config, bed, lessons)
    assert found["flops_whole_over_kd"] > 1.2 * found["flops_scalekd_over_kd"]
    assert found["flops_scalekd_over_kd"] > 1.5
    assert found["seconds_scalekd_over_kd"] == (5 + 1) / (2 + 1)
    # Patches, and of each block its products with parameters, the logits and what they weigh.
    block = 2 * 16 * (4 * 4 * 4 + 2 * 4 * 8) + 2 * 2 * 16 * 16 * 4
    assert found["flops_reading"] == 8 * (2 * 16 * 49 * 4 + 6 * block + 2 * 4 * 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tries.flat.strength": (1.0,)}, "expected equally many of each"),
        ({"teachers.depth3.mlp_ratio": 3}, "differ in depth alone"),
        ({"path.blocks": 2}, "path.blocks is 2, expected fewer than 2"),
        ({"quarter": 81.0}, "quarter is 81, expected at most given.images, 80"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        scalekd.check(small(**changes))


def test_keys_of_tries_and_class_tokens_are_looked_at():
    config = small(**{f"teachers.{name}.pooling": "cls" for name in ("depth2", "depth3", "depth6")})
    with pytest.raises(UserError, match="expected 'gap'"):
        scalekd.check(config)
    config = config_file.get_config()
    config.tries.kd = {"learning_rate": (1e-3,)}
    with pytest.raises(UserError, match=r"tries\.kd has"):
        scalekd.check(config)
