"""MLP-Mixer beside a float64 oracle written from its equation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from rml.models import Mixer

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 8, 12, 2))
MIXER = Mixer(width=6, depth=2, token_hidden=5, channel_hidden=7, patch_size=4, classes=3)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def perceptron(x, p, name):
    for part, act in (("in", gelu), ("out", lambda y: y)):
        own = p[f"{name}_{part}"]
        x = act(x @ own["kernel"] + own["bias"])
    return x


def drawn(module, images):
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), images))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.uniform(-0.6, 0.6, x.shape), shapes)["params"]


def oracle(params, images):
    """Logits and the output of each block."""
    b, h, w, c = images.shape
    patches = images.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5)
    kernel = params["patches"]["kernel"].reshape(-1, 6)
    x = patches.reshape(b, -1, 16 * c) @ kernel + params["patches"]["bias"]
    outputs = []
    for i in range(2):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        x = x + perceptron(layer_norm(x, p["norm1"]).swapaxes(1, 2), p, "tokens").swapaxes(1, 2)
        x = x + perceptron(layer_norm(x, p["norm2"]), p, "channels")
        outputs.append(x)
    x = layer_norm(x, params["norm"]).mean(1)
    return x @ params["head"]["kernel"] + params["head"]["bias"], outputs


@pytest.mark.slow
def test_tokens_are_mixed_and_then_channels_with_their_gradient():
    params = drawn(MIXER, jnp.asarray(IMAGES, jnp.float32))
    weights = RNG.standard_normal((2, 3))

    @jax.jit
    def run(params, images):
        def total(params):
            found = MIXER.apply({"params": params}, images, stages=True)
            return jnp.sum(jnp.asarray(weights, jnp.float32) * found.features), found

        return jax.value_and_grad(total, has_aux=True)(params)

    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, IMAGES))
    (_, found), gradient = run(*single)
    logits, outputs = oracle(params, IMAGES)
    np.testing.assert_allclose(found.features, logits, rtol=2e-4, atol=1e-5)
    for one, truth in zip(found.stages, outputs, strict=True):
        np.testing.assert_allclose(one, truth, rtol=2e-4, atol=1e-5)
    direction = jax.tree.map(lambda x: RNG.standard_normal(x.shape), params)

    def along(t):
        moved = jax.tree.map(lambda x, d: x + t * d, params, direction)
        return np.sum(weights * oracle(moved, IMAGES)[0])

    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))
    np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-3)


def test_a_single_image_is_refused():
    with pytest.raises(ValueError, match="at least 8x8"):
        jax.eval_shape(MIXER.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 8, 1), "float32"))
