"""ITI against attention, probes and means of NumPy and scikit-learn in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from rml.models import Bert, Llama
from rml.models.transformer import projections
from rml.sparsity import head_outputs, mean_differences, probe_scores, shifts

LLAMA = Llama(vocabulary=20, width=12, depth=2, heads=4, kv_heads=2, head_width=6, mlp=16)
BERT = Bert(vocabulary=20, width=16, depth=2, heads=4, mlp=24, positions=8, scan=False)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (3, 6)), jnp.int32)
MASK = np.arange(6) < np.array([6, 4, 2])[:, None]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "pooling"), [(LLAMA, "last"), (BERT, "mean")])
def test_outputs_are_those_of_attention(module, pooling):
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), TOKENS))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    given = (variables, TOKENS, jnp.asarray(MASK))
    found = jax.jit(functools.partial(head_outputs, module, pooling=pooling))(*given)
    for layer in range(2):
        parts = jax.jit(functools.partial(projections, module, layer=layer))(*given)
        q, k, v = (np.asarray(x, np.float64) for x in parts)
        share = q.shape[2] // k.shape[2]
        for b in range(3):
            for head in range(4):
                seen = np.tile(MASK[b], (6, 1))
                seen &= np.tri(6, dtype=bool) if module is LLAMA else True
                logits = q[b, :, head] @ k[b, :, head // share].T / np.sqrt(q.shape[-1])
                z = softmax(np.where(seen, logits, -np.inf), axis=-1) @ v[b, :, head // share]
                length = int(MASK[b].sum())
                wanted = z[length - 1] if pooling == "last" else z[:length].mean(0)
                np.testing.assert_allclose(found[layer, head, b], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_probes_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    wanted, held_wanted = rng.random(60) < 0.3, rng.random(50) < 0.4
    outputs, held = (rng.normal(size=(1, 3, n, 4)) * 5 + 2 for n in (60, 50))
    for x, y in ((outputs, wanted), (held, held_wanted)):
        x[0, 0] += 2.5 * y[:, None]
        x[0, 1, :, 1] = 100.0 * y
    found = probe_scores(*(jnp.asarray(x) for x in (outputs, wanted, held, held_wanted)), l2=0.05)
    for head in range(3):
        own, other = outputs[0, head], held[0, head]
        mean, scale = own.mean(0), own.std(0) + 1e-6
        fit = LogisticRegression(C=2 / (0.05 * 60), tol=1e-8).fit((own - mean) / scale, wanted)
        named = fit.predict((other - mean) / scale)
        np.testing.assert_allclose(
            found[0, head], balanced_accuracy_score(held_wanted, named), atol=1e-6
        )
    assert found[0, 1] == 1
    traced = probe_scores(
        *(jnp.asarray(x) for x in (outputs, wanted, held, held_wanted)), l2=jnp.float32(0.05)
    )
    np.testing.assert_array_equal(traced, found)
    same = probe_scores(*(jnp.asarray(x) for x in (0 * outputs, wanted, 0 * held, held_wanted)))
    np.testing.assert_allclose(same, 0.5)


@pytest.mark.slow
def test_shifts_go_from_the_mean_of_others_to_that_of_wanted():
    rng = np.random.default_rng(3)
    outputs, wanted = rng.normal(size=(2, 3, 30, 4)), rng.random(30) < 0.4
    way = mean_differences(jnp.asarray(outputs, jnp.float32), jnp.asarray(wanted))
    apart = outputs[:, :, wanted].mean(2) - outputs[:, :, ~wanted].mean(2)
    unit = apart / np.linalg.norm(apart, axis=-1, keepdims=True)
    spread = np.einsum("lhnk,lhk->lhn", outputs, unit).std(-1)
    np.testing.assert_allclose(way.unit, unit, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(way.deviation, spread, rtol=1e-4)
    heads = np.array([[True, False, True], [False, True, False]])
    edits = shifts(way, jnp.asarray(heads), strength=2.5)
    assert edits.scale is None
    offset = 2.5 * spread[..., None] * unit * heads[..., None]
    np.testing.assert_allclose(edits.offset, offset, rtol=1e-4, atol=1e-6)
    for some in ([True, True, False, False], [True] * 4, [False] * 4):
        still = mean_differences(jnp.ones((1, 1, 4, 2)), jnp.array(some))
        assert not still.unit.any()
        assert not still.deviation.any()


def test_outputs_that_are_all_the_same_have_a_slope_of_zero():
    wanted = jnp.array([True, False, False])
    still = jax.grad(lambda own: mean_differences(own, wanted).deviation.sum())
    np.testing.assert_array_equal(still(jnp.ones((1, 2, 3, 4))), np.zeros((1, 2, 3, 4)))


@pytest.mark.slow
def test_outputs_of_half_precision_are_widened_before_any_sum():
    rng = np.random.default_rng(4)
    wanted, held_wanted = rng.random(700) < 0.45, rng.random(300) < 0.4
    x, y = (
        jnp.asarray(3 + rng.normal(size=(2, 3, len(own), 4)) + 0.2 * own[:, None], jnp.bfloat16)
        for own in (wanted, held_wanted)
    )
    for function, outputs, rest in (
        (mean_differences, (x,), (wanted,)),
        (lambda x, y, *own: probe_scores(x, own[0], y, own[1]), (x, y), (wanted, held_wanted)),
    ):
        labels = tuple(map(jnp.asarray, rest))
        found = function(*outputs, *labels)
        expected = function(*(own.astype(jnp.float32) for own in outputs), *labels)
        for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert own.dtype == jnp.float32
            np.testing.assert_allclose(own, other, rtol=1e-6)
