from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import Bert, HeadEdits, TextEncoder
from rml.models.attention import attend
from rml.models.text_encoder import pool
from rml.models.transformer import check_tokens
from tests.models.applied import apply

ROOT = Path(__file__).parents[2]
SMALL = {"vocabulary": 20, "width": 16, "depth": 2, "heads": 4, "mlp": 24, "positions": 8}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (3, 6)), jnp.int32)
MASK = jnp.arange(6) < jnp.array([6, 4, 0])[:, None]


def draw(module, *inputs):
    """Parameters of the right shapes, large enough that every part shows."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


@pytest.fixture(scope="module")
def variables():
    return draw(Bert(**SMALL), TOKENS)


@pytest.mark.slow
def test_padding_changes_no_text_and_is_finite(variables):
    bert = Bert(**SMALL)
    y = apply(bert, variables, TOKENS, MASK)
    assert np.isfinite(y).all()  # the last text is nothing but padding
    alone = apply(bert, variables, TOKENS[1:2, :4])
    np.testing.assert_allclose(y[1:2, :4], alone, rtol=1e-4, atol=1e-5)
    other = apply(bert, variables, jnp.where(MASK, TOKENS, 7), MASK)
    np.testing.assert_array_equal(y[MASK], other[MASK])

    def loss(v):
        return jnp.sum(bert.apply(v, TOKENS, MASK) ** 2)

    gradient = jax.jit(jax.grad(loss))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def unrolled(params):
    rest = {name: tree for name, tree in params.items() if name != "blocks"}
    for i in range(SMALL["depth"]):
        rest[f"block{i}"] = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], params["blocks"])
    return rest


@pytest.mark.slow
def test_scan_loop_and_remat_agree_in_values_and_gradients(variables):
    rng = np.random.default_rng(2)
    edits = HeadEdits(*(jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32) for _ in range(2)))

    def run(params, **options):
        def loss(params, edits):
            options_now = {"edits": edits, "return_hidden": True, "return_attention": True}
            states = Bert(**SMALL, **options).apply({"params": params}, TOKENS, MASK, **options_now)
            return jnp.sum(states.last**3), states

        value_and_grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, states), gradients = jax.jit(value_and_grad)(params, edits)
        return states, gradients

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # noqa: E731
    states, (gradient, edited) = run(variables["params"])
    for options in ({"remat": True}, {"scan": False}):
        params = variables["params"]
        params = unrolled(params) if "scan" in options else params
        other, (found, found_edits) = run(params, **options)
        jax.tree.map(close, states, other)
        jax.tree.map(close, edited, found_edits)
        jax.tree.map(close, unrolled(gradient) if "scan" in options else gradient, found)


@pytest.mark.slow
def test_states_hold_every_layer(variables):
    bert = Bert(**SMALL)
    states = apply(bert, variables, TOKENS, MASK, return_hidden=True, return_attention=True)
    assert states.hidden.shape == (3, 3, 6, 16)
    np.testing.assert_array_equal(states.hidden[-1], states.last)
    assert states.attention.shape == (2, 3, 4, 6, 6)
    np.testing.assert_allclose(states.attention.sum(-1), 1, rtol=1e-5)
    assert np.all(states.attention[:, 1, :, :, 4:] == 0)
    only = apply(bert, variables, TOKENS, MASK, return_attention=True)
    assert only.hidden is None
    plain = apply(bert, variables, TOKENS, MASK)
    np.testing.assert_allclose(plain, states.last, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_attention_may_be_replaced(variables):
    seen = []

    def mean(query, key, value, visible):
        seen.append((visible.keys.shape, visible.causal))
        return attend(jnp.zeros_like(query), key, value, visible)

    module = Bert(**SMALL, attention=mean)
    states = apply(module, variables, TOKENS, MASK, return_attention=True)
    np.testing.assert_allclose(states.attention[:, 1, :, :, :4], 0.25, rtol=1e-6)
    assert set(seen) == {((3, 6), False)}


@pytest.mark.slow
def test_head_edits_scale_and_shift_the_heads(variables):
    bert = Bert(**SMALL)
    plain = apply(bert, variables, TOKENS)
    shape = (2, 4, 4)
    same = HeadEdits(jnp.ones(shape), jnp.zeros(shape))
    np.testing.assert_allclose(apply(bert, variables, TOKENS, edits=same), plain, atol=1e-5)
    # Heads that are nothing but an offset: what attention saw no longer matters.
    blind = HeadEdits(jnp.zeros(shape), jnp.ones(shape))
    module = Bert(**SMALL, attention=lambda q, k, v, visible: (v, None))
    np.testing.assert_allclose(
        apply(bert, variables, TOKENS, edits=blind),
        apply(module, variables, TOKENS, edits=blind),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    # One head of one layer: the embeddings before it stay.
    one = HeadEdits(offset=jnp.zeros(shape).at[1, 2].set(1.0))
    a = apply(bert, variables, TOKENS, return_hidden=True).hidden
    b = apply(bert, variables, TOKENS, return_hidden=True, edits=one).hidden
    np.testing.assert_array_equal(a[:2], b[:2])
    assert np.abs(a[2] - b[2]).max() > 0.01


@pytest.mark.slow
def test_activation_and_segments_matter(variables):
    plain = apply(Bert(**SMALL), variables, TOKENS)
    relu = apply(Bert(**SMALL, activation="relu"), variables, TOKENS)
    assert np.abs(plain - relu).max() > 1e-3
    second = apply(Bert(**SMALL), variables, TOKENS, segments=jnp.ones_like(TOKENS))
    assert np.abs(plain - second).max() > 1e-3


def test_dropout_follows_the_embeddings_and_both_parts_of_every_layer():
    bert, dropped = Bert(**SMALL, dropout=0.5, scan=False), []

    def watch(call, inputs, options, context):
        out = call(*inputs, **options)
        if isinstance(context.module, nn.Dropout):
            dropped.append(out is not inputs[0])
        return out

    with nn.intercept_methods(watch):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        jax.eval_shape(lambda: bert.init(rngs, TOKENS, train=True))
    assert dropped == [True] * (1 + 2 * SMALL["depth"])


@pytest.mark.slow
def test_dropout_draws_while_training_alone(variables):
    bert = Bert(**SMALL, dropout=0.5)
    plain = apply(Bert(**SMALL), variables, TOKENS)
    np.testing.assert_array_equal(apply(bert, variables, TOKENS), plain)
    draws = [
        apply(bert, variables, TOKENS, train=True, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.1


@pytest.mark.slow
def test_bfloat16_compute_with_float32_parameters(variables):
    y = apply(Bert(**SMALL, dtype=jnp.bfloat16), variables, TOKENS, MASK)
    full = apply(Bert(**SMALL), variables, TOKENS, MASK)
    assert y.dtype == jnp.bfloat16
    # Two post-norm blocks of weights as large as these: a few roundings of 2 ** -8 each.
    assert np.linalg.norm(np.float32(y) - full) / np.linalg.norm(full) < 0.05


@pytest.mark.slow
def test_pooling():
    x = jnp.arange(24.0).reshape(2, 4, 3).repeat(2, axis=0)
    # Text on the left, on the right, with a gap, and none.
    mask = jnp.array([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
    rows = {"mean": (0.5, 2, 1), "cls": (0, 1, 0), "last": (1, 3, 2), "max": (1, 3, 2)}
    for name, expected in rows.items():
        found = jax.jit(pool, static_argnums=2)(x, mask, name)
        for i, row in enumerate(expected):
            base = x[i, 0]
            np.testing.assert_allclose(found[i], base + 3 * row)
        np.testing.assert_array_equal(found[3], 0)
        gradient = jax.jit(jax.grad(lambda x, name=name: jnp.sum(pool(x, mask, name) ** 2)))(x)
        assert jnp.isfinite(gradient).all()
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        pool(x, mask, "meen")


@pytest.mark.slow
def test_text_encoder_normalizes_and_gives_zeros_for_no_text(variables):
    encoder = TextEncoder(Bert(**SMALL), normalize=True)
    y = apply(encoder, {"params": {"backbone": variables["params"]}}, TOKENS, MASK)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), [1, 1, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"heads": 3}, (TOKENS,), "heads=3 must divide width=16"),
        ({"activation": "gelo"}, (TOKENS,), "did you mean 'gelu'"),
        ({}, (jnp.zeros((1, 9), jnp.int32),), "9 tokens are more than the 8 positions"),
    ],
)
def test_misuse(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Bert(**{**SMALL, **options}).init, jax.random.key(0), *inputs)


def test_tokens_and_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"mask of shape \(3, 5\) does not fit .* \(3, 6\)"):
        check_tokens(TOKENS, MASK[:, :5])
    with pytest.raises(ValueError, match=r"integer tokens \[b, t\], got float32\[3, 6\]"):
        check_tokens(TOKENS.astype(jnp.float32), None)


@pytest.mark.parametrize("shape", [(6,), (3, 1), (1, 6)])
def test_segments_of_another_shape_are_refused(unchecked, shape):
    with pytest.raises(ValueError, match=r"segments have shape .* expected that of tokens"):
        jax.eval_shape(
            lambda x: Bert(**SMALL).init(
                jax.random.key(0), x, segments=jnp.zeros(shape, jnp.int32)
            ),
            TOKENS,
        )


def test_edits_of_another_shape_are_refused(variables):
    edits = HeadEdits(scale=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"edits.scale must have .* \(2, 4, 4\), got \(2, 4\)"):
        Bert(**SMALL).apply(variables, TOKENS, edits=edits)


CHILD = """
import json
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, optax
from rml.models import Bert, Llama, TextEncoder
from rml.training import make_mesh
from rml.training.mesh import place, use_mesh

small = dict(vocabulary=24, width=16, depth=2, heads=4, mlp=32, dtype=jnp.float32)
models = {
    "bert": TextEncoder(Bert(**small)),
    "llama": TextEncoder(Llama(**small, kv_heads=2), pooling="last"),
}
tokens = jnp.asarray(np.random.default_rng(0).integers(0, 24, (8, 6)), jnp.int32)
mask = jnp.arange(6) < jnp.arange(1, 9)[:, None]
found = {}
for name, model in models.items():
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens, mask)["params"]
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    leaves = jax.tree.leaves(boxed, is_leaf=is_box)
    assert all(is_box(leaf) and len(leaf.names) == leaf.value.ndim for leaf in leaves), name
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype)
    params = jax.tree.map(draw, nn.unbox(boxed))

    def loss(params):
        y = model.apply({"params": params}, tokens, mask)
        return jnp.sum(y.astype(jnp.float32) ** 3 * jnp.arange(16))

    grads = jax.jit(jax.grad(loss))(params)
    mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
    places, rules = place(boxed, mesh)
    with use_mesh(mesh, rules):
        split = jax.device_put(params, places)
        meshed = jax.jit(jax.grad(loss))(split)
    found[name] = dict(
        split=sum(x.addressable_shards[0].data.size < x.size for x in jax.tree.leaves(split)),
        leaves=len(leaves),
        error=max(
            float(jnp.linalg.norm(a - jax.device_get(b)))
            for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(meshed))
        ) / float(optax.global_norm(grads)),
    )
print(json.dumps(found))
"""


@pytest.mark.slow
def test_text_models_on_eight_devices_equal_one(forked):
    for name, found in forked(CHILD, devices=8).items():
        assert found["split"] == found["leaves"], name  # every parameter has a split axis
        assert found["error"] < 1e-4, (name, found)  # float32: sums in another order
