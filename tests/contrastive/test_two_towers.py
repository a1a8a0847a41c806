"""The bound of CLIP's temperature through training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import parts
from configs.contrastive import clip_icons, siglip_icons
from experiments.contrastive import two_towers
from rml.losses.clip import MAX_LOG_SCALE
from rml.training import Loss, build_optimizer, gradient_task, make_mesh, use_mesh
from tests.system.two_steps import override

SMALL = {
    "data.name": "digits", "data.image_shape": (8, 8, 1), "augment.order": ("random_erase",),
    "model": dict(name="mlp", hidden=(12,), features=12), "head.layers": 1, "head.features": 8,
    "tokens.vocabulary": 300, "tokens.max_length": 4, "train.batch_size": 4,
    "text": dict(depth=1, heads=2, mlp=8, dropout=0.0, remat=False), "optimizer.warmup_steps": 1,
}  # fmt: skip
START = 4.5


@pytest.mark.slow
def test_a_temperature_at_its_bound_comes_back_at_once():
    options = parts.optimizer("adamw", learning_rate=1e-2, warmup_steps=0, weight_decay=0.0)
    options |= dict(schedule="constant", momentum=0.0)
    plain = gradient_task(
        init_variables=lambda key: {"params": {"log_scale": jnp.float32(START)}},
        loss=lambda params, state, slope: Loss(slope * params["log_scale"]),
        optimizer=build_optimizer(options, steps=400),
        batches=lambda: None, evaluate=lambda state: {}, batch_spec=None,
    )  # fmt: skip

    def course(task, slopes):
        def step(state, slope):
            state, _ = task.step(state, slope)
            return state, state.params["log_scale"]

        return jax.jit(lambda: jax.lax.scan(step, task.init(jax.random.key(0)), slopes)[1])()

    slopes = jnp.where(jnp.arange(320) < 300, -1.0, 1.0)
    held, free = course(two_towers.bounded(plain), slopes), course(plain, slopes)
    below = np.asarray(free) < MAX_LOG_SCALE
    start = np.argmin(below)
    assert start > 5
    np.testing.assert_array_equal(held[:start], free[:start])  # to the bit
    np.testing.assert_array_equal(held[start:300], np.float32(MAX_LOG_SCALE))
    np.testing.assert_allclose(held[-1], MAX_LOG_SCALE - 0.2, atol=0.02)
    assert free[-1] > MAX_LOG_SCALE + 2


@pytest.mark.slow
@pytest.mark.parametrize("config", [clip_icons, siglip_icons])
def test_clip_alone_bounds_its_temperature_and_logs_what_it_used(config):
    config = override(config.get_config(), SMALL | {"loss.log_scale": 6.0})
    task = two_towers.task(config)
    batch = jax.tree.map(lambda own: jnp.ones(own.shape, own.dtype), task.batch_spec)

    step = jax.jit(task.step)
    with use_mesh(make_mesh()):
        state = jax.jit(lambda key: nn.meta.unbox(task.init(key)))(jax.random.key(0))
        metrics = step(state, batch)[1]
        above = jnp.full_like(state.params["log_scale"], 7.0)
        over = state.replace(params={**state.params, "log_scale": above})
        after = step(over, batch)[0].params
    clip = config.loss.name == "clip"
    np.testing.assert_allclose(metrics["log_scale"], MAX_LOG_SCALE if clip else 6.0, rtol=1e-6)
    np.testing.assert_allclose(after["log_scale"], MAX_LOG_SCALE if clip else 7.0, rtol=2e-3)
