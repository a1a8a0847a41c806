"""The contract of attention: hooks, one attention a layer, and what a layer's attention gets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import Bert, ClipText, Llama, ModernBert, ViT, projections
from rml.models.attention import attend, attend_by_kernel, attend_fused, tempered
from rml.ops.attention_parts import Visible

SMALL = {"vocabulary": 20, "width": 16, "depth": 3, "heads": 4, "mlp": 24}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 6)), jnp.int32)
MASK = jnp.arange(6) < jnp.array([[6], [4]])
RNG = np.random.default_rng(3)
QUERY, KEY, VALUE = (
    jnp.asarray(RNG.normal(size=(2, 5, heads, 6)), jnp.float32) for heads in (4, 2, 2)
)
HERE = jnp.arange(5) < jnp.array([[5], [3]])
CAUSAL = Visible(HERE, causal=True)


def drawn(module, *inputs):
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)


def oracle(divisor, bias):
    """Weights in float64, head by head and query by query."""
    weights, here = np.zeros((2, 4, 5, 5)), np.asarray(HERE)
    queries, all_keys = (np.asarray(x, np.float64) for x in (QUERY, KEY))
    for b, h, i in np.ndindex(2, 4, 5):
        keys = [j for j in range(i + 1) if here[b, j]]
        logits = np.array([queries[b, i, h] @ all_keys[b, j, h // 2] for j in keys])
        logits = logits / 6**0.5 / divisor[h] + [bias(h, i, j) for j in keys]
        weights[b, h, i, keys] = np.exp(logits) / np.exp(logits).sum()
    return weights


def test_a_temperature_divides_the_logits():
    divisors = np.array([0.5, 1.0, 2.0, 1e6], np.float32)

    @jax.jit
    def weights(query, key, value):
        attentions = attend, *(tempered(attend, own) for own in (1.0, divisors, 0.5))
        return [own(query, key, value, CAUSAL)[1] for own in attentions]

    plain, same, *found = weights(QUERY, KEY, VALUE)
    np.testing.assert_array_equal(same, plain)
    np.testing.assert_allclose(found[0], oracle(divisors, lambda *_: 0.0), atol=1e-6)
    np.testing.assert_allclose(found[1], oracle([0.5] * 4, lambda *_: 0.0), atol=1e-6)


def test_a_bias_is_a_function_of_places():
    slopes = np.array([1.0, 0.5, 0.25, 0.125], np.float32)

    def bias(queries, keys):
        return -slopes[:, None, None] * (queries[:, None] - keys) ** 2 / 4

    @jax.jit
    def both(query, key, value):
        last = attend(query[:, 3:], key, value, CAUSAL._replace(start=3), bias=bias)[0]
        return *attend(query, key, value, CAUSAL, bias=bias), last

    out, found, last = map(np.asarray, both(QUERY, KEY, VALUE))
    wanted = oracle([1.0] * 4, lambda h, i, j: -slopes[h] * (i - j) ** 2 / 4)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(last, out[:, 3:], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "visible",
    [
        Visible(),
        Visible(HERE),
        Visible(causal=True),
        CAUSAL,
        Visible(HERE, window=2),
        Visible(causal=True, window=2, sinks=1),
    ],
)
@pytest.mark.parametrize("first", [0, 2])
def test_a_kernel_is_given_what_a_query_sees(visible, first):
    """Of an odd number of tokens, all of them or those after the first ones."""
    visible = visible._replace(start=first)

    @jax.jit
    def outputs(*arrays):
        sees = visible.dense(5 - first, 5).any(-1)
        kernel = attend_by_kernel(*arrays, visible=visible, implementation="xla")
        return attend(*arrays, visible)[0], kernel, *attend_fused(*arrays, visible), sees

    *found, weights, sees = outputs(np.asarray(QUERY)[:, first:], KEY, VALUE)
    wanted, kernel, fused = map(np.asarray, found)
    sees = np.broadcast_to(sees, kernel.shape[:2])
    np.testing.assert_allclose(kernel[sees], wanted[sees], atol=1e-6)
    assert np.isfinite(kernel).all()
    np.testing.assert_array_equal(fused, wanted)
    assert weights is None


@pytest.mark.slow
@pytest.mark.parametrize("family", [Bert, Llama, ModernBert])
def test_what_attends_may_be_named(family):
    options = SMALL | {"depth": 2} | ({"local": (False, True)} if family is ModernBert else {})
    module = family(**options)
    variables = drawn(module, TOKENS)

    def outputs(attention):
        return jax.jit(module.clone(attention=attention).apply)(variables, TOKENS, MASK)

    plain = outputs("xla")
    np.testing.assert_array_equal(outputs("fused"), plain)
    np.testing.assert_array_equal(plain, outputs(attend))
    with pytest.raises(ValueError, match=r"unknown attention 'fuse': .*did you mean 'fused'"):
        outputs("fuse")


@pytest.mark.slow
@pytest.mark.parametrize("family", [Bert, Llama])
def test_each_layer_has_its_own_attention(family):
    def blind(query, key, value, visible):
        return jnp.zeros_like(query), None

    module = family(**SMALL | {"depth": 2})
    variables = drawn(module, TOKENS)
    params = dict(variables["params"])
    blocks = jax.tree.map(np.asarray, params.pop("blocks"))
    for i in range(2):
        params[f"block{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)

    def hidden(variables, **options):
        run = jax.jit(lambda v: module.clone(**options).apply(v, TOKENS, MASK, return_hidden=True))
        return np.asarray(run(variables).hidden)

    plain = hidden(variables)
    mixed = hidden(variables, attention=[attend, blind])
    np.testing.assert_allclose(mixed[:2], plain[:2], rtol=1e-4, atol=1e-5)
    assert np.abs(mixed[2] - plain[2])[MASK].max() > 1e-3
    loop = hidden({"params": params}, attention=(attend, blind), scan=False)
    np.testing.assert_allclose(mixed, loop, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="attention has 1 entries for depth=2"):
        hidden(variables, attention=[attend])


@pytest.mark.slow
def test_projections_are_what_a_layer_attends_with():
    seen = []

    def spy(*arrays):
        seen.append(arrays[:3])
        return attend(*arrays)

    module = Llama(**SMALL, kv_heads=2, scan=False, window=3, windowed=(True, False, True))
    variables = drawn(module, TOKENS)

    @jax.jit
    def spied(variables):
        module.clone(attention=spy).apply(variables, TOKENS, MASK)
        return seen[1]

    wanted = spied(variables)
    params = {k: x for k, x in variables["params"].items() if not k.startswith("block")}
    blocks = [variables["params"][f"block{i}"] for i in range(3)]
    params["blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    scanned = module.clone(scan=True, attention=(attend,) * 3)
    for read, its in ((module, variables), (scanned, {"params": params})):
        found = jax.jit(lambda v, read=read: projections(read, v, TOKENS, MASK, layer=1))(its)
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="layer=3, expected at least 0 and below depth=3"):
        projections(module, variables, TOKENS, layer=3)


@pytest.mark.slow
def test_towers_of_images_and_texts_take_an_attention():
    seen = []

    def spy(query, key, value, visible):
        seen.append(visible.causal)
        return attend(query, key, value, visible)

    options = {"width": 16, "depth": 1, "heads": 2, "scan": False}
    images = jnp.asarray(RNG.normal(size=(2, 8, 8, 3)), jnp.float32)
    for module, x in (
        (ViT(**options, patch_size=4), images),
        (ClipText(vocabulary=20, projection=8, **options), TOKENS),
    ):
        variables = drawn(module, x)
        plain = jax.jit(module.apply)(variables, x)
        ours = jax.jit(module.clone(attention=spy).apply)(variables, x)
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    assert seen == [False, True]
