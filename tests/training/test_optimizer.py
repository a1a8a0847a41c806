"""Schedules, masks and optimisers from a config, against closed forms and optax itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.errors import UserError
from rml.models import build
from rml.ops.trees import STACKED
from rml.training.optimizer import build_optimizer, build_schedule, decay_mask, kar

CONFIG = dict(
    name="adamw", learning_rate=0.4, schedule="warmup_cosine", warmup_steps=0, final_scale=0.0,
    weight_decay=0.0, momentum=0.9, b2=0.999, clip_norm=0.0, accumulate=1, ema_decay=0.0,
)  # fmt: skip


def config(**changes):
    return {**CONFIG, **changes}


def params():
    rng = np.random.default_rng(0)
    return {
        "dense": {
            "kernel": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32),
            "bias": jnp.asarray(rng.standard_normal(3), jnp.float32),
        }
    }


def gradients(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params())


def run(transform, steps=4):
    """Parameters after some steps with the same gradients for every optimiser."""
    value = params()
    state = transform.init(value)
    update = jax.jit(transform.update)
    for step in range(steps):
        updates, state = update(gradients(step + 1), state, value)
        value = optax.apply_updates(value, updates)
    return value


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)


def differ(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b),
                                                           strict=True))  # fmt: skip


def leaves(tree):
    """Names of the dictionaries on the way, to each leaf."""
    return {
        tuple(k.key for k in path if isinstance(k, jax.tree_util.DictKey)): value
        for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("final_scale", [0.0, 0.1])
def test_cosine_schedule(warmup, final_scale):
    total, peak = 110, 0.4
    schedule = build_schedule(config(warmup_steps=warmup, final_scale=final_scale), total)
    t = np.arange(total + 20)
    done = np.clip((t - warmup) / (total - warmup), 0, 1)
    end = final_scale * peak
    expected = np.where(
        t < warmup, peak * t / max(warmup, 1), end + (peak - end) * (1 + np.cos(np.pi * done)) / 2
    )
    np.testing.assert_allclose(jax.vmap(schedule)(t), expected, atol=1e-7)
    assert schedule(0) == (0.0 if warmup else np.float32(peak))
    assert schedule(warmup) == np.float32(peak)


def test_linear_schedule():
    schedule = build_schedule(
        config(schedule="warmup_linear", warmup_steps=10, final_scale=0.25), 110
    )
    got = [float(schedule(t)) for t in (0, 5, 10, 60, 110, 1000)]
    np.testing.assert_allclose(got, [0, 0.2, 0.4, 0.25, 0.1, 0.1], rtol=1e-6)


def test_constant_schedule_warms_up_too():
    schedule = build_schedule(config(schedule="constant", warmup_steps=4), 20)
    np.testing.assert_allclose([schedule(t) for t in (0, 2, 4, 20)], [0, 0.2, 0.4, 0.4], rtol=1e-6)


def test_a_run_that_is_all_warm_up_ends_at_the_peak():
    assert build_schedule(config(warmup_steps=20), 20)(20) == np.float32(0.4)


def test_accumulation_counts_updates_not_batches():
    """Four batches an update: the schedule spans a quarter of the steps."""
    optimizer = build_optimizer(config(accumulate=4, warmup_steps=10), steps=440)
    rates = [float(optimizer.schedule(t)) for t in (0, 3, 4, 40, 240, 440)]
    np.testing.assert_allclose(rates, [0, 0, 0.04, 0.4, 0.2, 0], atol=1e-7)


def test_accumulation_is_the_mean_gradient():
    settings = config(name="sgd", schedule="constant")
    accumulated = build_optimizer({**settings, "accumulate": 2}, steps=4).transform
    mean = jax.tree.map(lambda a, b: (a + b) / 2, gradients(1), gradients(2))
    plain = build_optimizer(settings, steps=2).transform
    updates, _ = plain.update(mean, plain.init(params()), params())
    same(run(accumulated, steps=2), optax.apply_updates(params(), updates))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "convnet", "vit_ti"])
def test_only_kernels_of_encoders_decay(model):
    variables = jax.eval_shape(build(model).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    mask = leaves(decay_mask(variables["params"]))
    assert {True, False} == set(mask.values())
    for path, decays in mask.items():
        assert decays == (path[-1] == "kernel" and "patches" not in path), path


def test_scanned_blocks_decay_as_their_single_layers_do():
    """Stacked on a layer axis, a bias is a matrix: its name tells, not its rank."""
    images = jnp.zeros((1, 32, 32, 3))

    def mask(scan):
        model = build("vit_ti", depth=2, scan=scan)
        return decay_mask(jax.eval_shape(model.init, jax.random.key(0), images)["params"])

    scanned, single = leaves(mask(True)["blocks"]), leaves(mask(False)["block0"])
    assert scanned == single
    assert {True, False} == set(scanned.values())


@pytest.mark.slow
def test_a_frozen_patch_projection_stays_to_the_bit():
    """MoCo v3's projection has gradient zero; decay alone would shrink it."""
    model = build("vit_ti", width=16, heads=2, depth=1, patch_size=8, freeze_patches=True)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    before = jax.jit(model.init)(jax.random.key(0), images)["params"]
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, images) ** 3)))(before)
    for name in ("adamw", "lars", "lamb", "sgd"):
        settings = config(name=name, weight_decay=0.5, schedule="constant")
        transform = build_optimizer(settings, steps=1).transform
        updates, _ = jax.jit(transform.update)(grads, transform.init(before), before)
        after = optax.apply_updates(before, updates)
        assert differ(after["patches"], before["patches"]) == 0, name
        assert differ(after["blocks"], before["blocks"]) > 0, name


MASK = {"dense": {"kernel": True, "bias": False}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adamw", lambda rate: optax.adamw(rate, b1=0.8, b2=0.99, weight_decay=0.1, mask=MASK)),
        ("lamb", lambda rate: optax.lamb(rate, b1=0.8, b2=0.99, weight_decay=0.1, mask=MASK)),
        ("lars", lambda rate: optax.lars(
            rate, 0.1, weight_decay_mask=MASK, trust_ratio_mask=MASK, momentum=0.8)),
        ("sgd", lambda rate: optax.chain(
            optax.add_decayed_weights(0.1, mask=MASK), optax.sgd(rate, momentum=0.8))),
    ],
)  # fmt: skip
def test_each_optimizer_is_the_one_of_optax(name, reference):
    settings = config(
        name=name, weight_decay=0.1, momentum=0.8, b2=0.99, warmup_steps=1, learning_rate=0.1
    )
    rate = optax.join_schedules(
        [optax.linear_schedule(0, 0.1, 1), optax.cosine_decay_schedule(0.1, 3)], [1]
    )
    got = run(build_optimizer(settings, steps=4).transform)
    same(got, run(reference(rate)))
    assert differ(got, params()) > 1e-3
    undecayed = run(build_optimizer({**settings, "weight_decay": 0.0}, steps=4).transform)
    assert differ(got["dense"]["kernel"], undecayed["dense"]["kernel"]) > 1e-6
    assert differ(got["dense"]["bias"], undecayed["dense"]["bias"]) == 0


def test_kar_adds_the_signs_of_the_gradient_and_of_two_averages_of_those_before():
    settings = config(name="kar", momentum=0.5, b2=0.95, learning_rate=0.1, schedule="constant")
    got = run(build_optimizer(settings, steps=4).transform)
    w = np.asarray(params()["dense"]["kernel"], np.float64)
    short, long = np.zeros_like(w), np.zeros_like(w)
    for step in range(4):
        g = np.asarray(gradients(step + 1)["dense"]["kernel"], np.float64)
        w = w - 0.1 * (np.sign(g) + np.sign(short) + np.sign(long))
        short, long = 0.5 * short + 0.5 * g, 0.95 * long + 0.05 * g
    np.testing.assert_allclose(got["dense"]["kernel"], w, atol=1e-6)


def test_kar_without_averages_takes_the_previous_sign_twice():
    got = run(kar(0.1, (0.0, 0.0)), steps=2)
    first, second = (np.sign(gradients(step)["dense"]["bias"]) for step in (1, 2))
    want = np.asarray(params()["dense"]["bias"]) - 0.1 * (first + second + 2 * first)
    np.testing.assert_allclose(got["dense"]["bias"], want, atol=1e-6)


def test_kar_has_no_weight_decay_and_decays_below_one():
    with pytest.raises(UserError, match=r"optimizer.weight_decay is 0.1, expected 0 with kar"):
        build_optimizer(config(name="kar", weight_decay=0.1), steps=1)
    with pytest.raises(UserError, match=r"betas of kar are \(0.9, 1.0\), expected two numbers in"):
        kar(0.1, (0.9, 1.0))
    with pytest.raises(UserError, match=r"betas of kar are .*, expected two, not 3"):
        kar(0.1, (0.5, 0.9, 0.95))


def test_sgd_is_the_textbook_update():
    """Momentum buffer u = 0.8 u + g + wd w, then w = w - rate u."""
    settings = config(
        name="sgd", weight_decay=0.1, momentum=0.8, learning_rate=0.1, schedule="constant"
    )
    got = run(build_optimizer(settings, steps=3).transform, steps=3)
    w = np.asarray(params()["dense"]["kernel"], np.float64)
    u = np.zeros_like(w)
    for step in range(3):
        u = 0.8 * u + np.asarray(gradients(step + 1)["dense"]["kernel"], np.float64) + 0.1 * w
        w = w - 0.1 * u
    np.testing.assert_allclose(got["dense"]["kernel"], w, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lars", "lamb", "adamw"])
def test_layers_of_one_leaf_move_as_single_ones_do(name):
    scales = [0.5, 1.0, 4.0]
    single = [jax.tree.map(lambda x, s=s: s * x, params()) for s in scales]
    stacked = {STACKED: jax.tree.map(lambda *own: jnp.stack(own), *single)}
    settings = config(name=name, weight_decay=0.1, schedule="constant")
    found = []
    for value in (stacked, *single):
        transform = build_optimizer(settings, steps=3).transform
        state = transform.init(value)
        for step in range(3):
            grads = jax.tree.map(lambda x, t=step: jnp.cos(3 * x + t), value)
            updates, state = jax.jit(transform.update)(grads, state, value)
            value = optax.apply_updates(value, updates)
        found.append(value)
    for i, alone in enumerate(found[1:]):
        same(jax.tree.map(lambda x, i=i: x[i], found[0][STACKED]), alone)


def test_clipping_bounds_the_global_norm():
    settings = config(name="sgd", momentum=0.0, learning_rate=0.25, schedule="constant")
    transform = build_optimizer({**settings, "clip_norm": 0.5}, steps=1).transform
    updates, _ = transform.update(gradients(1), transform.init(params()), params())
    assert optax.tree.norm(gradients(1)) > 2
    np.testing.assert_allclose(optax.tree.norm(updates), 0.25 * 0.5, rtol=1e-6)  # of gradients


@pytest.mark.parametrize(
    ("changes", "steps", "message"),
    [
        (dict(name="adam"), 10, "'adam'; did you mean 'adamw'"),
        (dict(schedule="cosine"), 10, "unknown optimizer.schedule 'cosine'"),
        (dict(learning_rat=0.1), 10, "'learning_rat'; did you mean 'learning_rate'"),
        (dict(warmup_steps=11), 10, "warmup_steps is 11, more than the 10 updates"),
        (dict(warmup_steps=6, accumulate=2), 10, "more than the 5 updates"),
        (dict(accumulate=0), 10, "accumulate is 0, expected at least 1"),
        (dict(ema_decay=1.0), 10, "ema_decay is 1.0"),
        (dict(accumulate=4), 3, "accumulate is 4, more than the 3 batches"),
        (dict(clip_norm=-1.0), 10, "clip_norm is -1.0, expected at least 0$"),
        (dict(momentum=1.0), 10, "momentum is 1.0, expected at least 0 and below 1"),
        (dict(b2=1.5), 10, "b2 is 1.5, expected at least 0 and below 1"),
        (dict(learning_rate=-0.1), 10, "learning_rate is -0.1, expected at least 0"),
        (dict(learning_rate=float("nan")), 10, "learning_rate is nan, expected at least 0"),
        (dict(weight_decay=-1.0), 10, "weight_decay is -1.0, expected at least 0"),
        (dict(final_scale=-0.1), 10, "final_scale is -0.1, expected at least 0"),
        (dict(final_scale=float("nan")), 10, "final_scale is nan, expected at least 0"),
        (dict(accumulate=1.9), 10, "accumulate is 1.9, expected a whole number"),
        (dict(warmup_steps=1.9), 10, "warmup_steps is 1.9, expected a whole number"),
        (dict(warmup_steps=float("inf")), 10, "warmup_steps is inf, expected a whole number"),
        (dict(learning_rate="0.1"), 10, "learning_rate is '0.1', expected a number"),
        (dict(ema_decay=None), 10, "ema_decay is None, expected a number"),
        (dict(name=["sgd"]), 10, "unknown optimizer.name"),
        (dict(schedule=None), 10, "unknown optimizer.schedule 'None'"),
        (dict(warmup_steps=-3), 10, "warmup_steps is -3, expected at least 0"),
        ({}, 0, "train.steps is 0"),
    ],
)
def test_wrong_configs(changes, steps, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(config(**changes), steps=steps)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sgd", "clip_norm"),
        ("adamw", "ema_decay"),
        ("adamw", "accumulate"),
        ("adamw", "warmup_steps"),
        ("kar", "weight_decay"),
    ],
)
def test_what_decides_the_parts_of_a_program_is_one_number_for_all_of_its_runs(name, key):
    def built(value):
        build_optimizer(config(name=name) | {key: value}, steps=10)

    built(0 if key != "accumulate" else 1)
    with pytest.raises(UserError, match=f"optimizer.{key} must be one number for runs of one"):
        jax.vmap(built)(jnp.array([0.0, 0.5]))


@pytest.mark.parametrize("name", ["adamw", "kar", "lamb", "lars", "sgd"])
def test_the_momentum_may_differ_among_runs_of_one_program(name):
    def moved(momentum):
        settings = config(name=name, learning_rate=0.1) | {"momentum": momentum}
        return run(build_optimizer(settings, steps=4).transform)

    momenta = [0.0, 0.8]
    found = jax.jit(jax.vmap(moved))(jnp.array(momenta))
    for i, momentum in enumerate(momenta):
        same(jax.tree.map(lambda x, i=i: x[i], found), moved(momentum))


def test_a_missing_key_is_named():
    settings = config()
    del settings["b2"]
    with pytest.raises(UserError, match="no 'b2'"):
        build_optimizer(settings, steps=10)
