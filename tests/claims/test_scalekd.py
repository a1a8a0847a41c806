"""ScaleKD's and One-for-All's trial on little data; `make claims` measures students that learn."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.distillation import scalekd as config_file
from experiments.common.many import replaced
from experiments.distillation import scalekd
from experiments.distillation.scalekd import TRIAL, Lessons
from rml.distillation import ExitNetwork, Network, Outputs, Projected, mimic, through_teacher
from rml.models import ViT
from tests.claims.drawn_students import draw, shapes, two_steps
from tests.system.two_steps import override
from tests.trials.conformance import conform_trial, refuse

WIDTH, TOKENS = 4, 16
SMALL = {
    "data.name": "mnist5k", "data.train": "train[:2%]", "data.validation": "train[2%:3%]",
    "data.teacher": "train[10%:15%]", "data.test": "test[:8%]", "train.steps": 2,
    "train.batch_size": 8, "train.checkpoint_every": 0, "train.log_every": 1,
    "optimizer.warmup_steps": 1, "teaching.optimizer.warmup_steps": 1, "teaching.train.steps": 2,
    "teaching.train.checkpoint_every": 0,
    "evaluation.batch_size": 32, "given.images": 80.0, "seeds": 2, "tuning_seeds": 0,
    "student.widths": (2, 2, 3), "student.features": 4, "exits.width": 4, "exits.heads": 2,
    "projectors.heads": 2, "teachers.vit.width": WIDTH, "teachers.vit.heads": 2,
    "teachers.vit.depth": 2,
}  # fmt: skip


def small(**changes):
    return override(config_file.get_config(), SMALL | changes)


def of_arm(name, **changes):
    """The config of an arm."""
    return replaced(small(), {**TRIAL.arms[name].changes, **changes})


@pytest.mark.slow
def test_conforms(tmp_path):
    longer = TRIAL.arms["kd_longer"]
    changes = {**longer.changes, "train.steps": 3}
    arms = {**TRIAL.arms, "kd_longer": longer._replace(changes=changes)}
    metrics = conform_trial(replace(TRIAL, arms=arms, go=()), small(), tmp_path)
    assert metrics["gigaflops_kd"] < metrics["gigaflops_scalekd"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", "both"), ("path.blocks", 3), ("given.own", 2.0), ("given.gamma", 0.0)],
)
def test_one_wrong_value_a_key_is_refused_before_work(key, value, tmp_path):
    changes = SMALL | {key: value}
    said = refuse("configs/distillation/scalekd.py", key, changes[key], tmp_path)
    assert "\n" not in said


@pytest.fixture
def lessons():
    """What a drawn ViT says of twelve images."""
    rng = np.random.default_rng(0)
    tail = ViT(
        width=WIDTH, depth=1, heads=2, mlp_ratio=2, patch_size=7, pooling="gap",
        positions="learned",
    )  # fmt: skip
    template = nn.meta.unbox(
        jax.eval_shape(tail.init, jax.random.key(0), jnp.zeros((2, 28, 28, 1)))
    )["params"]
    own = {"params": draw({name: template[name] for name in ("blocks", "norm")}, 3)}
    images = rng.integers(0, 255, (12, 28, 28, 1)).astype(np.uint8)
    part = {"image": images, "label": np.arange(12) % 10}
    return Lessons(
        jnp.asarray(images), jnp.asarray(part["label"]),
        jnp.asarray(rng.standard_normal((12, 10)), jnp.float32),
        *jnp.asarray(rng.standard_normal((2, 12, TOKENS, WIDTH)), jnp.float32),
        partial(through_teacher, tail, own, start=0), {"test": part}, {"test": np.ones(12)},
    )  # fmt: skip


def test_a_null_is_told_what_the_teacher_says_of_other_images(lessons):
    rows = jnp.array([3, 11, 0])
    own, others = (scalekd.taught(of_arm(arm), lessons, rows) for arm in ("scalekd", "shuffled"))
    for known in (own, others):
        np.testing.assert_array_equal(known.labels, [3, 1, 0])
        np.testing.assert_array_equal(known.images, lessons.images[rows])
    for key in ("logits", "third", "last"):
        theirs = np.asarray(getattr(lessons, key))
        np.testing.assert_array_equal(getattr(own, key), theirs[[3, 11, 0]])
        np.testing.assert_array_equal(getattr(others, key), theirs[[0, 3, 11]])


def test_without_the_teachers_blocks_tokens_stay_as_they_are(lessons):
    tokens = lessons.third[:2]
    own, pathless = (
        scalekd.taught(of_arm(arm), lessons, jnp.arange(2)).path(tokens)
        for arm in ("scalekd", "pathless")
    )
    np.testing.assert_array_equal(pathless, tokens)
    np.testing.assert_allclose(own, lessons.path(tokens), rtol=1e-6)
    assert np.abs(own - tokens).max() > 0.1


def test_each_arm_is_the_loss_that_it_names(lessons):
    rng = np.random.default_rng(1)
    z, t = rng.standard_normal((2, 12, 10))
    views = rng.standard_normal((2, 2, 12, TOKENS, WIDTH))
    exits = rng.standard_normal((2, 12, 10))
    third, last = np.asarray(lessons.third), np.asarray(lessons.last)
    known = lessons._replace(logits=jnp.asarray(t, jnp.float32))
    labels = np.arange(12) % 10

    def found(arm):
        config = of_arm(arm)
        logits = jnp.asarray(z, jnp.float32)
        made = Outputs(logits, logits)
        if config.kind == "exits":
            made = made._replace(exits=jnp.asarray(exits, jnp.float32))
        elif config.kind != "plain":
            made = Projected(logits, logits, *(jnp.asarray(x, jnp.float32) for x in views))
        return np.asarray(scalekd.value(config, made, known))

    def logs(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def stage(own, target, direct=3.92, alternative=2.94):
        own, target = (jnp.asarray(x, jnp.float32) for x in (own, target))
        whole, varying = (mimic(x, target, remove_mean=view == 1) for view, x in enumerate(own))
        return direct * np.asarray(whole) + alternative * np.asarray(varying)

    one = np.eye(10)[labels]
    ce = -(one * logs(z)).sum(-1)
    kl = (np.exp(logs(t)) * (logs(t) - logs(z))).sum(-1)
    strength = scalekd.SCALE["given.strength"]
    half, whole = (ce + kl) / 2, strength * (stage(views[0], last) + stage(views[1], last))
    direct = strength * sum(stage(own, last, alternative=0) for own in views)

    def enhanced(gamma):
        weights = (np.exp(logs(t)) + one) ** gamma - one
        return ce - sum((weights * logs(own)).sum(-1) for own in (z, *exits))

    def same(arm, expected):
        np.testing.assert_allclose(found(arm), expected, rtol=2e-5, atol=1e-5)

    same("label", -((0.9 * one + 0.01) * logs(z)).sum(-1))
    for arm in ("kd", "kd_longer", "kd_again"):
        same(arm, 0.1 * ce + 0.9 * kl)
    same("fitnet", ce + ((views[1][0] - last) ** 2).mean((1, 2)))
    same("ofa", enhanced(1.5))
    same("ofa_plain", enhanced(1.0))
    same("exits", ce - 0.3 * sum((one * logs(own)).sum(-1) for own in exits))
    for arm in ("scalekd", "linear", "shuffled", "linear_again"):
        same(arm, half + whole)
    same("direct", half + direct)
    same("pathless", half + strength * (stage(views[0], third) + stage(views[1], last)))
    same("labelled", ce + whole)


def test_kinds_of_students_differ_in_what_stands_beside_them():
    made = {
        arm: scalekd.student(of_arm(arm, **{"given.scale": 2.5}))
        for arm in ("kd", "ofa", "linear", "scalekd")
    }
    assert isinstance(made["kd"], Network)
    assert isinstance(made["ofa"], ExitNetwork)
    assert [(made[a].projector, made[a].scale) for a in ("linear", "scalekd")] == [
        ("linear", 2.5), ("attention", 2.5)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_step_teaches_the_network_and_its_projectors(lessons):
    problem = scalekd.fit(of_arm("scalekd"), lessons)
    moved = two_steps(problem)
    for part in ("encoder", "classifier", "third", "fourth"):
        assert max(jax.tree.leaves(moved[part])) > 1e-4


def test_another_seed_draws_other_weights_and_other_batches(lessons):
    config = of_arm("kd")
    own, again = (
        scalekd.fit(replaced(config, {"given.again": share}), lessons) for share in (0.0, 1.0)
    )
    rows = [next(iter(problem.batches()))["row"] for problem in (own, again)]
    assert not np.array_equal(*rows)
    first, other = (
        jax.tree.leaves(nn.meta.unbox(problem.init(jax.random.key(0))).params)
        for problem in (own, again)
    )
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_images_are_scored_by_the_student_alone(lessons):
    config = of_arm("kd")
    module = scalekd.student(config)
    variables = draw(shapes(module, config), 0)
    state = type("State", (), {"variables": variables})
    part = lessons.parts["test"]
    found = scalekd.score(config, lessons, state, "test")
    logits = module.apply(variables, jnp.asarray(part["image"]) / 255, train=False).logits
    np.testing.assert_array_equal(found, np.argmax(logits, -1) == part["label"])
    teacher = scalekd.score(of_arm("teacher"), lessons, {}, "test")
    np.testing.assert_array_equal(teacher, lessons.right["test"])
