"""Thresholds and probes of a decoder's blocks, against its definition in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import Llama, Probe, Thresholds, block_hooks, rope
from rml.models.layers import activation

SMALL = {"vocabulary": 20, "width": 16, "depth": 2, "heads": 4, "mlp": 24, "kv_heads": 2}
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 20, (2, 6)), jnp.int32)
MASK = jnp.arange(6) < jnp.array([[6], [4]])
LEAST = Thresholds(
    gate=jnp.asarray(RNG.uniform(0, 0.6, (2, 24)), jnp.float32),
    hidden=jnp.asarray(RNG.uniform(0, 0.4, (2, 24)), jnp.float32),
    query=jnp.array([0.4, 0.8]), key=jnp.array([0.5, 0.3]), value=jnp.array([0.2, 0.7]),
    output=jnp.array([0.6, 0.1]),
)  # fmt: skip
NONE = jax.tree.map(jnp.zeros_like, LEAST)


@pytest.fixture(scope="module")
def variables():
    shapes = nn.unbox(jax.eval_shape(Llama(**SMALL).init, jax.random.key(0), TOKENS))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


@pytest.fixture(scope="module")
def read(variables):
    """Reads with thresholds, and gives all that blocks computed, and their own arrays."""
    probe = Probe(lambda activations, own: (activations._replace(mask=None), own), jnp.arange(2.0))
    module = Llama(**SMALL)
    return jax.jit(
        lambda thresholds: module.apply(
            variables, TOKENS, MASK, thresholds=thresholds, probe=probe, return_hidden=True
        )
    )


def silu(x):
    return x / (1 + np.exp(-x))


def cut(x, least):
    return np.where(np.abs(x) >= least, x, 0)


def attended(block, layer, x):
    """Outputs of heads [b, t, 16] with thresholds on what projections read."""
    q, k, v = (
        np.einsum("btd,dhk->bhtk", cut(x, least[layer]), block[name]["kernel"])
        for name, least in (("query", LEAST.query), ("key", LEAST.key), ("value", LEAST.value))
    )
    positions = jnp.maximum(jnp.cumsum(MASK, 1) - 1, 0)
    turn = rope.frequencies(4, 10_000.0, scaling=None, trained=2048, length=6)
    q, k = (
        np.asarray(
            rope.rotate(jnp.asarray(a.swapaxes(1, 2), jnp.float32), positions, turn, scale=1.0)
        ).swapaxes(1, 2)
        for a in (q, k)
    )
    logits = np.einsum("bhtk,bhsk->bhts", q, k.repeat(2, 1)) / 2
    seen = np.tril(np.ones((6, 6), bool)) & np.asarray(MASK)[:, None, None]
    weights = np.exp(np.where(seen, logits, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bhsk->bthk", weights, v.repeat(2, 1)).reshape(2, 6, 16)


@pytest.mark.slow
def test_a_block_with_thresholds_is_that_of_the_definition(variables, read):
    states = read(LEAST)
    seen, own = states.probed
    np.testing.assert_array_equal(own, [0.0, 1.0])
    text = np.asarray(MASK)
    for layer in range(2):
        block = jax.tree.map(
            lambda x, i=layer: np.asarray(x[i], np.float64), variables["params"]["blocks"]
        )
        x = np.asarray(states.hidden[layer], np.float64)

        def norm(x, scale):
            return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale

        a = norm(x, block["norm1"]["scale"])
        heads = attended(block["attention"], layer, a)
        x = x + cut(heads, LEAST.output[layer]) @ block["attention"]["out"]["kernel"].reshape(
            16, 16
        )
        y = norm(x, block["norm2"]["scale"])
        gate, up = silu(y @ block["gate"]["kernel"]), y @ block["mlp_in"]["kernel"]
        hidden = cut(cut(gate, LEAST.gate[layer]) * up, LEAST.hidden[layer])
        assert 0.2 < (hidden == 0).mean() < 0.9
        # Channels of a zero gate are zero in what the last matrix reads, and others are too.
        shut = np.abs(seen.gate[layer]) < LEAST.gate[layer]
        assert not np.asarray(seen.hidden[layer])[shut].any()
        assert 0 < shut.sum() < (seen.hidden[layer] == 0).sum()
        wanted = (a, heads, y, gate, up, hidden)
        for name, own in zip(seen._fields, wanted, strict=False):
            np.testing.assert_allclose(
                getattr(seen, name)[layer][text], own[text], rtol=1e-4, atol=1e-4, err_msg=name
            )
        out = x + hidden @ block["mlp_out"]["kernel"]
        np.testing.assert_allclose(states.hidden[layer + 1][text], out[text], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_thresholds_of_zero_and_a_probe_change_no_bit(variables, read):
    module = Llama(**SMALL)
    plain = jax.jit(lambda: module.apply(variables, TOKENS, MASK))()
    np.testing.assert_array_equal(read(NONE).last, plain)
    assert np.abs(np.asarray(read(LEAST).last - plain))[np.asarray(MASK)].max() > 0.1
    apart = Llama(**SMALL, scan=False)
    params = dict(variables["params"])
    blocks = params.pop("blocks")
    params |= {f"block{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(2)}
    probe = Probe(lambda activations, own: own * activations.hidden.sum(), jnp.array([2.0, 3.0]))
    found = jax.jit(
        lambda: apart.apply({"params": params}, TOKENS, MASK, thresholds=LEAST, probe=probe)
    )()
    wanted = read(LEAST).probed[0].hidden.sum((1, 2, 3)) * jnp.array([2.0, 3.0])
    np.testing.assert_allclose(found.probed, wanted, rtol=1e-4)


def test_bad_hooks_are_named(variables):
    module = Llama(**SMALL)
    with pytest.raises(ValueError, match=r"thresholds.gate must have shape \(2, 24\), got \(2,\)"):
        module.apply(variables, TOKENS, thresholds=Thresholds(gate=jnp.zeros(2)))
    with pytest.raises(ValueError, match=r"thresholds.query must have shape \(2,\)"):
        module.apply(variables, TOKENS, thresholds=Thresholds(query=jnp.zeros((2, 24))))
    cache = module.init_cache(2, 6)
    with pytest.raises(ValueError, match="a probe measures whole texts"):
        module.apply(variables, TOKENS, cache=cache, probe=Probe(lambda *_: None))


def test_what_is_not_a_number_stays():
    x = jnp.array([[jnp.nan, -0.1, 0.3, -2.0]])
    wanted = [[np.nan, 0, 0.3, 0]]
    for name in ("fatrelu:0", "fatrelu:0.2", "shifted_relu:0", "relu"):
        np.testing.assert_allclose(activation(name)(x), wanted, rtol=1e-6)
    np.testing.assert_array_equal(activation("top_relu:2")(x), np.float32(wanted))
    np.testing.assert_array_equal(
        block_hooks.cut(x, jnp.array([0.2, 0.1, jnp.inf, 2.1])), np.float32([[np.nan, -0.1, 0, 0]])
    )


def test_activations_with_a_number():
    x = jnp.array([-2.0, -0.1, 0.0, 0.05, 0.2, 3.0])
    np.testing.assert_allclose(activation("fatrelu:0.1")(x), [0, 0, 0, 0, 0.2, 3])
    np.testing.assert_allclose(activation("fatrelu:0.2")(x), [0, 0, 0, 0, 0.2, 3])
    np.testing.assert_array_equal(activation("fatrelu:0")(x), activation("relu")(x))
    np.testing.assert_allclose(activation("shifted_relu:0.1")(x), [0, 0, 0, 0, 0.1, 2.9], rtol=1e-6)
    np.testing.assert_allclose(activation("top_relu:1")(x), [0, 0, 0, 0, 0, 3])
    kept = silu(np.array([-2.0, 0, 0, 0, 0, 3.0]))
    np.testing.assert_allclose(activation("top_silu:2")(x), kept, rtol=1e-6)
    np.testing.assert_array_equal(activation("top_silu:6")(x), activation("silu")(x))
    for name, slope in (("fatrelu:0.1", [0, 0, 0, 0, 1, 1]), ("top_relu:1", [0, 0, 0, 0, 0, 1])):
        found = jax.grad(lambda x, name=name: activation(name)(x).sum())(x)
        np.testing.assert_array_equal(found, slope)
    with pytest.raises(ValueError, match="'fatrelu' needs a number of at least 0"):
        activation("fatrelu")
    with pytest.raises(ValueError, match="'fatrelu:-1' needs a number"):
        activation("fatrelu:-1")
    with pytest.raises(ValueError, match="unknown activation 'fatrel'"):
        activation("fatrel")
    with pytest.raises(ValueError, match="count=0, expected at least 1"):
        activation("top_relu:0")(x)
