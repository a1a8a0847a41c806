from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.attention import random_feature_attention as rfa
from rml.attention.models import draw_weights
from rml.attention.targets import draw_inputs


def bias(x):
    return np.concatenate([x, np.ones_like(x[..., :1])], -1)


def reference(query, keys, weights):
    """The definition in float64, one head, one example and one key at a time."""
    query, keys, weights = (np.asarray(x, np.float64) for x in (query, keys, weights))
    out = np.zeros((len(query), len(weights), weights.shape[1]))
    for n in range(len(query)):
        for m, w in enumerate(weights):
            for x in bias(keys[n]):
                out[n, m] += max(np.sum(w * np.outer(bias(query[n]), x)), 0) * x
    return out / (keys.shape[1] * np.sqrt(len(weights)))


@pytest.mark.slow
@settings(max_examples=6, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_features_are_the_definition(n, count, d, biased):
    rng = np.random.default_rng(n)
    shapes = (n, d), (n, count, d), (3, d + 1, d + 1)
    query, keys, weights = (rng.normal(size=shape).astype(np.float32) / 2 for shape in shapes)
    weights[:, range(d), range(d)] += biased
    found = jax.jit(rfa.rfa_features)(query, keys, weights)
    np.testing.assert_allclose(found, reference(query, keys, weights), atol=1e-6)


@pytest.mark.slow
def test_order_of_the_keys_is_immaterial_to_attention_only():
    query, keys = draw_inputs(jax.random.key(0), 5, keys=4, d=3)
    keys = np.asarray(keys)
    permuted = keys[:, [2, 0, 3, 1]]
    weights, mlp_weights = (
        rfa.rfa_weights(jax.random.key(1), 6, 3), rfa.rf_mlp_weights(jax.random.key(1), 6, 4, 3)
    )  # fmt: skip

    @jax.jit
    def features(keys):
        return (
            rfa.rfa_features(query, keys, weights), rfa.rf_mlp_features(query, keys, mlp_weights)
        )  # fmt: skip

    (found, flat), (same, other) = features(keys), features(permuted)
    np.testing.assert_allclose(found, same, atol=1e-6)
    assert np.abs(flat - other).max() > 0.01


@pytest.mark.slow
def test_masked_keys_are_absent():
    query, keys = draw_inputs(jax.random.key(0), 3, keys=4, d=3)
    weights = rfa.rfa_weights(jax.random.key(1), 6, 3)
    mask = np.arange(4) < np.array([4, 2, 0])[:, None]
    features = jax.jit(rfa.rfa_features)
    out = features(query, np.where(mask[..., None], keys, np.float32("nan")), weights, mask=mask)
    np.testing.assert_allclose(out[0], features(query, keys, weights)[0], atol=1e-6)
    np.testing.assert_allclose(out[1], features(query, keys[:, :2], weights)[1], atol=1e-6)
    assert not np.any(out[2])


def test_weights_have_the_stated_mean_and_deviation():
    for biased in (False, True):
        weights = np.asarray(rfa.rfa_weights(jax.random.key(0), 20000, 2, biased=biased))
        mean = np.diag([1.0, 1.0, 0.0]) * biased
        np.testing.assert_allclose(weights.mean(0), mean, atol=4 * 0.5 / np.sqrt(20000))
        np.testing.assert_allclose(weights.std(0), 0.5, rtol=0.02)


@pytest.mark.slow
def test_mlp_features_are_the_definition():
    query, keys = draw_inputs(jax.random.key(0), 5, keys=4, d=3)
    weights = rfa.rf_mlp_weights(jax.random.key(1), 7, 4, 3)
    x = np.concatenate([query, np.reshape(keys, (5, -1)), np.ones((5, 1))], 1).astype(np.float64)
    expected = np.maximum(x @ np.asarray(weights, np.float64).T, 0) / np.sqrt(7)
    np.testing.assert_allclose(rfa.rf_mlp_features(query, keys, weights), expected, atol=1e-6)


def test_wrong_shapes_are_named():
    query, keys = draw_inputs(jax.random.key(0), 5, keys=4, d=3)
    with pytest.raises(ValueError, match="weights of 4 x 4"):
        rfa.rfa_features(query, keys, jnp.ones((2, 3, 3)))
    with pytest.raises(ValueError, match="weights of 16 columns"):
        rfa.rf_mlp_features(query, keys, jnp.ones((2, 15)))
    with pytest.raises(ValueError, match="keys is 0, expected a number above 0"):
        rfa.rfa_features(query, keys[:, :0], jnp.ones((2, 4, 4)))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (partial(rfa.rfa_weights, heads=0, d=3), "heads is 0, expected a number above 0"),
        (partial(rfa.rfa_weights, heads=2, d=-1), "d is -1, expected a number above 0"),
        (partial(rfa.rfa_weights, heads=2, d=3, scale=-0.5), "scale is -0.5, expected a number at"),
        (partial(rfa.rfa_weights, heads=2, d=3, scale=np.nan), "scale is nan, expected a number"),
        (partial(rfa.rf_mlp_weights, neurons=0, keys=2, d=3), "neurons is 0, expected a number"),
        (partial(rfa.rf_mlp_weights, neurons=2, keys=2, d=0), "d is 0, expected a number above 0"),
        (partial(rfa.rf_mlp_weights, neurons=2, keys=-1, d=3), "keys is -1, expected a number at"),
        (partial(draw_weights, "rfa", count=0, keys=2, d=3, scale=0.5), "count is 0, expected"),
    ],
)
def test_weights_of_nothing_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw(key=jax.random.key(0))


@pytest.fixture(scope="module")
def layer():
    module = rfa.RandomFeatureAttention(features=2, heads=64)
    query, keys = draw_inputs(jax.random.key(0), 32, keys=4, d=3)
    return module, query, keys, jax.jit(module.init)(jax.random.key(1), query, keys)


@pytest.mark.slow
def test_the_layer_draws_its_heads_by_its_options():
    query, keys = draw_inputs(jax.random.key(0), 2, keys=4, d=3)
    for scale, biased in ((2.0, False), (0.1, True)):
        module = rfa.RandomFeatureAttention(features=2, heads=500, scale=scale, biased=biased)
        variables = nn.meta.unbox(jax.jit(module.init)(jax.random.key(1), query, keys))
        weights = np.asarray(variables["random"]["weights"])
        mean = np.diag([1.0, 1, 1, 0]) * biased
        np.testing.assert_allclose(weights.mean(0), mean, atol=5 * scale / np.sqrt(500))
        np.testing.assert_allclose((weights - mean).std(), scale, rtol=0.05)


@pytest.mark.slow
def test_the_layer_trains_its_values_alone(layer):
    module, query, keys, boxed = layer
    assert nn.get_partition_spec(boxed)["random"]["weights"][0] == "heads"
    assert nn.get_partition_spec(boxed)["params"]["values"][0] == "heads"
    variables = nn.meta.unbox(boxed)
    assert set(variables) == {"params", "random"}
    assert variables["params"]["values"].shape == (64, 4, 2)
    pooled = jax.jit(rfa.rfa_features)(query, keys, variables["random"]["weights"])
    expected = np.einsum("nme,mef->nf", pooled, variables["params"]["values"])
    found = jax.jit(module.apply)(variables, query, keys)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_the_layer_learns_inside_a_network(layer):
    module, query, keys, boxed = layer
    variables = nn.meta.unbox(boxed)
    labels = jnp.stack([keys.mean(1)[:, 0], (query[:, None] * keys).sum(-1).mean(1)], 1)
    optimizer = optax.adam(0.05)

    def loss(params):
        out = module.apply({"params": params, "random": variables["random"]}, query, keys)
        return jnp.mean((out - labels) ** 2)

    @jax.jit
    def step(params, state):
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    params, state = variables["params"], optimizer.init(variables["params"])
    values = []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.02 * values[0]
