"""Encoders give the outputs of their stages, and the same features with them as without."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml import models

ENCODERS = {
    "mlp": (models.MLP(hidden=(6, 5), features=4, norm="batch"), [(2, 6), (2, 5)]),
    "convnet": (models.ConvNet(widths=(3, 4), features=5), [(2, 4, 4, 3), (2, 2, 2, 4)]),
    "resnet": (
        models.ResNet(depths=(1, 2), width=3, stem="cifar", classes=2),
        [(2, 8, 8, 3), (2, 4, 4, 6)],
    ),
    "vit": (models.ViT(width=8, depth=3, heads=2, patch_size=4), [(2, 5, 8)] * 3),
    "vit-unrolled": (
        models.ViT(width=8, depth=2, heads=2, patch_size=4, scan=False, pooling="gap", classes=3),
        [(2, 4, 8)] * 2,
    ),
    "mixer": (
        models.Mixer(width=8, depth=2, token_hidden=3, channel_hidden=5, patch_size=4),
        [(2, 4, 8)] * 2,
    ),
}


@pytest.fixture(params=ENCODERS)
def case(request):
    """An encoder with variables drawn by NumPy, images, and the shapes of its stages."""
    module, shapes = ENCODERS[request.param]
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((2, 8, 8, 1)), jnp.float32)
    template = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), images))
    ends = {"params": (-0.5, 0.5), "batch_stats": (0.5, 1.0)}
    variables = {
        name: jax.tree.map(
            lambda x, ends=ends[name]: jnp.asarray(rng.uniform(*ends, x.shape), x.dtype), tree
        )
        for name, tree in template.items()
    }
    return request.param, module, variables, images, shapes


@pytest.mark.slow
def test_stages_come_beside_the_same_features(case):
    name, module, variables, images, shapes = case
    plain, found = jax.jit(lambda v, x: (module.apply(v, x), module.apply(v, x, stages=True)))(
        variables, images
    )
    assert isinstance(found, models.Stages)
    np.testing.assert_array_equal(found.features, plain)
    assert [stage.shape for stage in found.stages] == shapes
    assert all(float(jnp.std(stage)) > 0 for stage in found.stages)
    features = recomputed(name, module, variables, found.stages[-1])
    np.testing.assert_allclose(features, plain, rtol=2e-4, atol=1e-5)


def recomputed(name, module, variables, last):
    """Features from the last stage, by NumPy: it is the last one, and whole."""
    params, x = jax.tree.map(np.asarray, variables["params"]), np.asarray(last, np.float64)
    if name == "mlp":
        return x @ params["out"]["kernel"] + params["out"]["bias"]
    if name == "convnet":
        return x.reshape(2, -1) @ params["out"]["kernel"] + params["out"]["bias"]
    if name == "resnet":
        return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + module.epsilon)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    x = x[:, 0] if getattr(module, "pooling", "gap") == "cls" else x.mean(1)
    return x @ params["head"]["kernel"] + params["head"]["bias"] if module.classes else x
