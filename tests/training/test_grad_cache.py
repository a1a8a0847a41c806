import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.ntxent import nt_xent
from rml.training.grad_cache import grad_cache


def encode(params, batch, key=None):
    x, y = batch["x"], batch["y"]
    if key is not None:
        keep = jax.random.bernoulli(key, 0.8, x.shape)
        x, y = x * keep, y * keep
    return tuple(jnp.tanh(jnp.tanh(z @ params["v"]) @ params["w"]) for z in (x, y))


def loss(embeddings, log_temperature):
    return nt_xent(*embeddings, temperature=jnp.exp(log_temperature), block_size=8)


def make(normal, n, width=6):
    params = {"v": jnp.asarray(normal(0, 5, width)), "w": jnp.asarray(normal(1, width, 4))}
    return params, {"x": jnp.asarray(normal(2, n, 5)), "y": jnp.asarray(normal(3, n, 5))}


@pytest.mark.slow
@pytest.mark.parametrize("microbatch", [1, 4, 12])
def test_value_and_gradients_are_those_of_the_whole_batch(normal, microbatch):
    params, batch = make(normal, 12)
    cached = grad_cache(encode, loss, microbatch=microbatch)
    value, grads = jax.jit(jax.value_and_grad(cached, (0, 2)))(params, batch, -1.0)
    whole = jax.jit(jax.value_and_grad(lambda p, b, t: loss(encode(p, b), t), (0, 2)))
    expected, expected_grads = whole(params, batch, -1.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        grads,
        expected_grads,
    )


@pytest.mark.slow
def test_dropout_is_the_same_in_both_passes(normal):
    params, batch = make(normal, 12)
    cached = grad_cache(encode, loss, microbatch=4)
    f = jax.jit(lambda p, key: cached(p, batch, -1.0, key=key))
    key = jax.random.key(3)
    grad = jax.jit(jax.grad(f))(params, key)
    direction = jax.tree.map(lambda x: jnp.asarray(normal(5, *x.shape)), params)
    step = 1e-2
    ahead, behind = (
        f(jax.tree.map(lambda p, d, s=s: p + s * step * d, params, direction), key) for s in (1, -1)
    )
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), grad, direction)))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-2)
    assert f(params, jax.random.key(3)) != f(params, jax.random.key(4))


def test_each_microbatch_has_a_key_of_its_own():
    batch, key = {"x": jnp.zeros((6, 2))}, jax.random.key(3)

    def drawn(params, batch, key):
        return jax.random.uniform(key, batch["x"].shape)

    value = grad_cache(drawn, lambda embeddings: embeddings, microbatch=2)
    found = value({}, batch, key=key)
    # Microbatch s holds the rows s, s + 3.
    for s in range(3):
        expected = jax.random.uniform(jax.random.fold_in(key, s), (2, 2))
        np.testing.assert_array_equal(found[s::3], expected)


@pytest.mark.slow
def test_activations_are_those_of_one_microbatch(normal):
    params, batch = make(normal, 512, width=1024)

    def memory(microbatch):
        cached = grad_cache(encode, loss, microbatch=microbatch)
        compiled = jax.jit(jax.grad(cached)).lower(params, batch, -1.0).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 2 * 512 * 1024 * 4  # one hidden layer's activations of both views
    assert memory(512) > whole
    assert memory(16) < whole / 4


def test_misuse_is_named(normal):
    with pytest.raises(ValueError, match="positive"):
        grad_cache(encode, loss, microbatch=0)
    params, batch = make(normal, 12)
    with pytest.raises(ValueError, match="5 does not divide the batch of 12"):
        grad_cache(encode, loss, microbatch=5)(params, batch, 0.0)
    batch["x"] = batch["x"][:6]
    with pytest.raises(ValueError, match=r"\[6, 12\]"):
        grad_cache(encode, loss, microbatch=2)(params, batch, 0.0)
