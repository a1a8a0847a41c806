"""Terminator's recipe on tiny models without training; `make claims` measures models that learn."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import terminator as config_file
from configs.attention import terminator_cifar10 as cifar_file
from configs.attention import terminator_sequence as sequence_file
from experiments.attention import terminator, terminator_measures, terminator_sides
from experiments.attention.pixel_sequences import PixelSequence
from experiments.attention.terminator_sides import (
    PROGRAMS,
    SIDES,
    TUNED,
    Trained,
    configured,
    steps_to,
)
from experiments.common.many import many
from rml.errors import UserError
from rml.training import build_optimizer
from tests.system.two_steps import override

SMALL = {
    "data.image_shape": (8, 8, 1), "data.train": "train[:2%]", "data.validation": "train[-2%:]",
    "data.test": "test[:5%]", "models.terminator.factors": (12,), "models.terminator.layers": (1,),
    "models.terminator.local_sizes": (1, 3, 1, 3), "models.terminator.hidden": 2,
    "models.terminator.local_hidden": 2, "models.resnet.width": 4, "models.resnet.depths": (1,),
    "models.convnet.widths": (4, 4), "train.batch_size": 8, "evaluation.batch_size": 32,
}  # fmt: skip


def drawn(task):
    """A state of a task, drawn by NumPy: compiling many draws is slow."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    draw = lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), leaf.dtype)  # noqa: E731
    return SimpleNamespace(variables=jax.tree.map(draw, shapes.variables))


@pytest.fixture
def untrained(monkeypatch):
    """Random models in the place of trained ones, with accuracies that tell configs apart."""

    starts = {}

    def together(configs, run, model):
        if model not in starts:
            starts[model] = drawn(terminator_sides.task(configs[0], model))
        start = starts[model]
        lead = 0.3 * (model != "resnet")
        found = [config.optimizer.learning_rate + lead * config.kar for config in configs]
        return [start] * len(configs), found

    monkeypatch.setattr(terminator_sides, "_together", together)
    named = np.arange(50) % 3 > 0
    monkeypatch.setattr(terminator_sides, "right", lambda *_: named)
    course = np.linspace(0.1, 0.9, 30)
    monkeypatch.setattr(terminator_sides, "_course", lambda run, i: (course, 0.5))


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(untrained, measure, tmp_path):
    metrics, holds = measure("configs/attention/terminator.py", SMALL)
    assert len(holds) == len(terminator.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    # The better of equally many tries is taken, of rates and of optimisers.
    assert metrics["rate_terminator"] == 9.72e-2
    assert metrics["kar_terminator"] == 1.0 > metrics["kar_resnet"]
    assert metrics["rate_resnet"] == 3e-1
    assert {metrics[f"tries_{side}"] for side in TUNED} == {10.0}
    edges = [f"rate_at_edge_{side}_{name}" for side in TUNED for name in ("kar", "adamw")]
    assert {metrics[name] for name in edges} == {1.0}
    # One state stands for all sides of a program.
    assert metrics["slow_gain"] == metrics["seed_gain"] == 0.0
    assert metrics["steps_over_resnet"] == 1.0
    assert metrics["feature_mean"] < 1e-4 < metrics["feature_mean_resnet"]
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(terminator.CAPTIONS)


@pytest.mark.slow
def test_sides_of_one_program_differ_in_numbers_and_share_it():
    config = override(config_file.get_config(), SMALL)
    configs = [configured(config, SIDES[side], "kar", 1e-3) for side in PROGRAMS["terminator"]]
    task = many(terminator_sides.task, configs)
    state = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    _, metrics = jax.eval_shape(task.step, state, task.batch_spec)
    assert {metrics[f"{name}/"].shape for name in ("penalty", "accuracy", "loss")} == {
        (len(configs),)
    }


def test_an_ablation_changes_one_thing_of_the_side_that_it_is_compared_with():
    values = {
        name: {"loss.slow": 1.0, **own.changes} for name, own in SIDES.items() if not own.both
    }
    for name, own in SIDES.items():
        if own.like is not None:
            before = {"loss.slow": 1.0, **SIDES[own.like].changes}
            assert len(values[name].items() - before.items()) == 1


def test_runs_of_both_optimisers_are_one_program():
    config = override(config_file.get_config(), {"optimizer.warmup_steps": 0})
    params = {"w": jnp.asarray([1.0, -2.0])}
    grads = [{"w": jnp.asarray(own)} for own in ([0.3, -0.1], [-0.2, 0.4])]

    @jax.jit
    def both(kar):
        config.kar = kar
        own = terminator_sides.either(config).transform
        state, found = own.init(params), []
        for grad in grads:
            step, state = own.update(grad, state, params)
            found.append(step["w"])
        return jnp.stack(found)

    with config.ignore_type():
        one, other = both(jnp.float32(1.0)), both(jnp.float32(0.0))
    # Three signs, of which two are of averages of what was before; AdamW's first step is one rate.
    np.testing.assert_allclose(one[0], [-1e-3, 1e-3], rtol=1e-3)
    np.testing.assert_allclose(one[1], [-1e-3, 1e-3], rtol=1e-3)
    decayed = 1e-3 * (np.array([-1.0, 1.0]) - 1e-2 * np.array([1.0, -2.0]))
    np.testing.assert_allclose(other[0], decayed, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("file", [config_file, sequence_file, cifar_file])
def test_the_residual_net_has_at_least_twice_the_parameters(file):
    config = file.get_config()
    terminator.check(config)
    images, found = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32), {}
    for name in config.models:
        net = terminator_sides.build_model(config, name)
        params = terminator_measures.shapes_of(net, images)["params"]
        found[name] = sum(x.size for x in jax.tree.leaves(params))
    assert found["terminator"] <= found["resnet"] / 2
    assert found["terminator"] == pytest.approx(found["convnet"], rel=0.1)


def test_kernels_are_counted_as_numbers_of_their_own():
    config = override(config_file.get_config(), SMALL)
    net = terminator_sides.build_model(config, "terminator")
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    params = terminator_measures.shapes_of(net, images)["params"]
    slow, free = terminator_measures.slow_share(params)
    total = sum(x.size for x in jax.tree.leaves(params))
    # Global 64, HI 64 and 1, HCI 1, local 1, 9, 1 and 9; a channel each.
    kernels = 64 + 64 + 1 + 1 + 1 + 9 + 1 + 9
    fast = total * (1 - slow)
    assert free == pytest.approx(kernels / (kernels + fast))
    # Two RGUs of 4 layers and 64 places, mixer, 4 local ones, bottleneck, offset, classifier.
    assert fast == pytest.approx(2 * (8 + 64) + 2 + 4 * 3 + (10 * 12 + 12) + 1 + 130)


@pytest.mark.slow
def test_how_soon_training_is_nearly_over():
    course = np.concatenate([np.linspace(0, 1, 101), np.ones(19)])
    assert steps_to(course, 0.95) == 96
    found = {(side, "kar"): Trained({}, np.ones(4), course, 1.0) for side in SIDES}
    found["no_slow_again", "kar"] = Trained({}, np.array([1, 1, 1, 0]), course, 1.0)
    found["resnet", "kar"] = Trained({}, np.array([1, 0, 0, 1]), np.ones(120), 0.5)
    for side in ("terminator", "resnet", "convnet"):
        found[side, "adamw"] = Trained({}, np.array([1, 1, 1, 0]), course, 1.0)
    # Each ablation stands beside the network that it differs from in one thing.
    found["no_slow", "kar"] = Trained({}, np.array([1, 1, 0, 1]), course, 1.0)
    found["no_hyper", "kar"] = Trained({}, np.array([1, 0, 0, 0]), course, 1.0)
    found["no_wide", "kar"] = Trained({}, np.array([0, 0, 1, 0]), course, 1.0)
    metrics = terminator.compared(found, dict.fromkeys(SIDES, "kar"), seed=0)
    assert metrics["terminator_over_resnet"] == 0.5
    assert metrics["seed_gain"] == 0.0
    assert metrics["slow_gain"] == 0.25
    assert metrics["hyper_gain"] == 0.5
    assert metrics["wide_gain"] == 0.75
    assert metrics["kar_gain_terminator"] == 0.25 == -metrics["kar_gain_resnet"]
    assert metrics["steps_over_resnet"] == 96
    assert metrics["seconds_over_resnet"] == 2


def test_pixels_are_read_row_after_row():
    images = np.arange(12.0).reshape(1, 2, 3, 2)
    read = PixelSequence(lambda x, train: x)(images)
    np.testing.assert_array_equal(read[0, :, 0], np.arange(0, 12, 2))
    config = override(sequence_file.get_config(), SMALL | {"models.terminator.hyper": 0.5})
    net = terminator_sides.build_model(config, "terminator")
    shape = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    params = terminator_measures.shapes_of(net, shape)["params"]
    assert terminator_sides.encoder_of(params)["block0"]["slow"]["position"].shape == (64,)


def test_neighbours_of_a_smooth_kernel_agree():
    waves = np.sin(np.arange(14) * 0.1)[None, :, None] * np.ones((14, 1, 3))
    assert terminator_measures.neighbours([jnp.asarray(waves)]) > 0.95
    turning = np.broadcast_to((-1.0) ** np.arange(14)[None, :, None], (14, 14, 3))
    assert terminator_measures.neighbours([jnp.asarray(turning)]) < -0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers.kar.rates": (1e-3,)}, "expected equally many of kar and adamw"),
        ({"optimizer.name": "lamb"}, "optimizer.name is lamb, expected adamw: it is not read"),
        ({"optimizer.learning_rate": 1e-2}, "optimizer.learning_rate is 0.01, expected 0.001: it"),
        ({"optimizer.momentum": 0.5}, "optimizer.momentum is 0.5, expected 0.9: it is not read"),
        ({"optimizer.b2": 0.9}, "optimizer.b2 is 0.9, expected 0.999: it is not read"),
        ({"optimizer.weight_decay": 0.0}, "optimizer.weight_decay is 0.0, expected 0.0001: it is"),
        ({"train.log_every": 121}, "train.log_every is 121, expected at most half of .*=240"),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = override(config_file.get_config(), changes)
    with pytest.raises(UserError, match=message):
        terminator.check(config)


def test_keys_that_are_refused_reach_no_optimiser(monkeypatch):
    built = []

    def recorded(own, *, steps):
        built.append(own)
        return build_optimizer(own, steps=steps)

    monkeypatch.setattr(terminator_sides, "build_optimizer", recorded)
    others = {"name": "lamb", "learning_rate": 0.5, "momentum": 0.1, "b2": 0.2, "weight_decay": 0.3}
    assert others.keys() == terminator_sides.UNREAD.keys()
    for changes in ({}, {f"optimizer.{name}": value for name, value in others.items()}):
        config = override(config_file.get_config(), changes)
        terminator_sides.either(configured(config, SIDES["terminator"], "kar", 1e-2))
    assert built[:2] == built[2:]


@pytest.mark.parametrize("file", [config_file, sequence_file, cifar_file])
def test_the_configs_set_nothing_that_is_not_read(file):
    terminator.check(file.get_config())
