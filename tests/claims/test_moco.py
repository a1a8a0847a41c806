"""MoCo's claims in quick form, and what one of its steps does to its state.

`make claims` measures the claims in full.
"""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.encoders import ProjectedEncoder
from experiments.contrastive import moco_v2
from rml import models
from rml.contrastive import apply_in_groups, apply_to_views
from rml.errors import UserError


@pytest.mark.usefixtures("optimised_steps")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "steps", "optimizer"),
    [("v2", 210, {}), ("v3", 200, {"learning_rate": 3e-3, "warmup_steps": 20})],
)
def test_keys_of_a_momentum_encoder_teach_features(measure, version, steps, optimizer):
    # With few labels a probe of pixels is weak, and a small encoder is enough.
    changes = {
        "train.steps": steps, "train.batch_size": 96, "train.eval_every": 0,
        "train.checkpoint_every": 0, "data.train": "train[:10%]", "model.widths": (16, 32),
    }  # fmt: skip
    changes |= {f"optimizer.{key}": value for key, value in optimizer.items()}
    metrics, holds = measure(f"configs/contrastive/moco_{version}_mnist5k.py", changes)
    # So few steps are enough for the claims of the probe; the others are measured in full.
    assert metrics["linear_probe_over_pixels"] >= 0.05, metrics
    assert holds["linear_probe_over_untrained", ">="], metrics
    assert metrics["rankme"] > 10, metrics


@pytest.fixture(scope="module", params=["v2", "v3"])
def stepped(request):
    """State before and after one step on noise, with the metrics; batch of 32 8x8 images."""
    module = importlib.import_module(f"configs.contrastive.moco_{request.param}_mnist5k")
    config = module.get_config()
    config.data.image_shape = (8, 8, 1)
    config.train.batch_size = 32
    config.optimizer.update(dict(schedule="constant", warmup_steps=0))
    config.augment.order = ("random_erase",)
    experiment = importlib.import_module(f"experiments.{config.experiment}")
    task = experiment.task(config)
    before = jax.jit(lambda key: nn.meta.unbox(task.init(key)))(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
    after, metrics = jax.jit(task.step)(before, {"image": images, "label": np.zeros(32, np.int32)})
    return request.param, config, before, after, metrics


@pytest.mark.slow
def test_a_step_moves_the_momentum_encoder_towards_the_trained_one(stepped):
    _, config, before, after, metrics = stepped
    share = config.momentum.start
    assert metrics["momentum"] == np.float32(share)
    average = after.extra["momentum"]["params"]
    assert set(average) == {"encoder", "head"}
    for part in average:
        jax.tree.map(
            lambda new, old, online: np.testing.assert_allclose(
                new, share * np.float64(old) + (1 - share) * np.float64(online), atol=1e-6
            ),
            average[part], before.params[part], after.params[part],
        )  # fmt: skip
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), after.params, before.params)
    assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.slow
def test_a_step_enqueues_its_keys(stepped):
    version, config, before, after, _ = stepped
    if version == "v3":
        assert set(after.extra) == {"momentum"}
        return
    old, new = before.extra["queue"], after.extra["queue"]
    assert (old.pointer, new.pointer) == (0, 32)
    np.testing.assert_array_equal(new.keys[32:], old.keys[32:])
    np.testing.assert_allclose(np.linalg.norm(new.keys[:32], axis=1), 1, rtol=1e-5)
    assert np.all(np.abs(new.keys[:32] - old.keys[:32]).max(axis=1) > 1e-3)
    assert len(new.keys) == config.queue.size


@pytest.mark.slow
def test_groups_are_normalised_apart():
    model = ProjectedEncoder(
        models.build("convnet", features=16), models.ProjectionHead(8, norm=True)
    )
    images = np.random.default_rng(0).standard_normal((12, 8, 8, 1)).astype(np.float32)
    images += np.arange(12.0, dtype=np.float32)[:, None, None, None]
    variables = jax.jit(
        lambda x: nn.meta.unbox(model.init(jax.random.key(1), x, train=True))
    )(images)  # fmt: skip
    apply = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    grouped = jax.jit(lambda x: apply_in_groups(model, variables, x, groups=3))
    out, changed = jax.device_get(grouped(images))
    parts = [jax.device_get(apply(part)) for part in np.split(images, 3)]
    np.testing.assert_allclose(out, np.concatenate([p[0] for p in parts]), rtol=1e-4, atol=1e-5)
    mean = jax.tree.map(lambda *x: sum(x) / 3, *(p[1] for p in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), changed, mean)
    assert np.abs(out - np.asarray(apply(images)[0])).max() > 0.1


@pytest.mark.parametrize("groups", [-1, 0, 4, 12])
def test_groups_that_do_not_divide_the_images_are_refused(groups):
    said = f"groups is {groups}, expected a divisor of the 6 images"
    with pytest.raises(ValueError, match=said):
        apply_in_groups(_Dropped(), {}, jnp.ones((6, 4, 4, 1)), groups=groups)


class _Dropped(nn.Module):
    """Half of the numbers."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))


def test_views_and_groups_drop_units_of_their_own():
    ones, keys = np.ones((6, 4, 4, 1), np.float32), {"dropout": jax.random.key(2)}
    out, views = jax.device_get(jax.jit(lambda x: (
        apply_in_groups(_Dropped(), {}, x, groups=3, rngs=keys)[0],
        apply_to_views(_Dropped(), {}, jnp.stack([x] * 3), rngs=keys)[0],
    ))(ones))  # fmt: skip
    for parts in (out.reshape(3, 2, -1), views):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert np.any(parts[i] != parts[j])


@pytest.mark.parametrize(
    ("changes", "message"),
    [(dict(groups=7), "groups is 7, expected to divide the batch of 256"),
     (dict(key_statistics="shufle"), "'shufle'; did you mean 'shuffle'")],
)  # fmt: skip
def test_wrong_batch_norm(changes, message):
    config = importlib.import_module("configs.contrastive.moco_v2_mnist5k").get_config()
    config.batch_norm.update(changes)
    with pytest.raises(UserError, match=message):
        moco_v2.task(config)
