"""The feed-forward of live rows, statistics and the predictor, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models.block_hooks import Activations
from rml.sparsity import (
    FeedForward,
    Predictor,
    activation_statistics,
    bytes_read,
    dense_ffn,
    expected_union,
    feed_forward_of,
    fit_predictor,
    live_pairs,
    predict,
    predictor_scores,
    sparse_ffn,
    weights_read,
)

RNG = np.random.default_rng(0)
F, D = 200, 24
GIVEN = [RNG.normal(size=(F, D)) / 4 for _ in range(3)]
WEIGHTS = FeedForward(*(jnp.asarray(x, jnp.float32) for x in GIVEN))
TOKENS = RNG.normal(size=(4, D))


def definition(x, least):
    gate = GIVEN[0] @ x
    gate = gate / (1 + np.exp(-gate))
    kept = np.where(np.abs(gate) >= least, gate, 0)
    return (kept * (GIVEN[1] @ x)) @ GIVEN[2], int((kept != 0).sum())


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 70, 0, 999])
def test_live_rows_give_what_all_give(budget):
    # The same program for few, many, no and all live channels, within the budget and beyond.
    sparse = jax.jit(lambda x, least: sparse_ffn(x, WEIGHTS, least, budget=budget))
    dense = jax.jit(lambda x, least: dense_ffn(x, WEIGHTS, least))
    counts = []
    for x in TOKENS[:2]:
        for share in (0.0, 0.3, 0.7, 0.9, 1.0):
            size = np.abs((g := GIVEN[0] @ x) / (1 + np.exp(-g)))
            least = np.quantile(size, share) * RNG.uniform(0.9, 1.1, F) if 0 < share < 1 else share
            least = np.broadcast_to(np.inf if share == 1 else least, (F,))
            wanted, count = definition(x, least)
            counts.append(count)
            args = jnp.asarray(x, jnp.float32), jnp.asarray(least, jnp.float32)
            np.testing.assert_allclose(sparse(*args), wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(dense(*args), wanted, rtol=1e-4, atol=1e-5)
    assert min(counts) == 0
    assert max(counts) == F


def test_a_relu_needs_no_threshold_and_layers_are_found():
    kernels = {"gate": GIVEN[0].T, "mlp_in": GIVEN[1].T, "mlp_out": GIVEN[2]}
    blocks = {
        name: {"kernel": jnp.asarray(np.stack([-own, own]), jnp.float32)}
        for name, own in kernels.items()
    }
    own = feed_forward_of({"blocks": blocks}, 1)
    for found, given in zip(own, GIVEN, strict=True):
        np.testing.assert_allclose(found, given, rtol=1e-6)
    x = TOKENS[2]
    wanted = (np.maximum(GIVEN[0] @ x, 0) * (GIVEN[1] @ x)) @ GIVEN[2]
    found = sparse_ffn(jnp.asarray(x, jnp.float32), own, activation="relu", budget=F)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    blocks["gate"]["bias"] = jnp.zeros((2, F))
    with pytest.raises(ValueError, match="the MLP has biases"):
        feed_forward_of({"blocks": blocks}, 1)
    with pytest.raises(ValueError, match="budget=-1, expected at least 0"):
        sparse_ffn(jnp.asarray(x, jnp.float32), own, budget=-1)


def test_what_is_read_is_counted():
    # 33 live channels are as many rows of two matrices, beside the whole gate.
    assert bytes_read(33, d_ff=200, width=24) == (200 + 2 * 33) * 24 * 4
    assert bytes_read(0, d_ff=200, width=24, itemsize=2) == 200 * 24 * 2
    both = bytes_read(np.array([33, 34]), d_ff=200, width=24, budget=33)
    np.testing.assert_array_equal(both, [(200 + 2 * 33) * 24 * 4, 3 * 200 * 24 * 4])
    live = jnp.array([0.5, 0.11])
    np.testing.assert_allclose(weights_read(live), [2 / 3, 1.22 / 3], rtol=1e-6)
    np.testing.assert_allclose(weights_read(live, gate_dense=False), live)
    np.testing.assert_allclose(expected_union(jnp.array([[0.5, 0.1]]), 2), [(0.75 + 0.19) / 2])


def test_statistics_count_text_alone():
    gate, up = RNG.normal(size=(2, 2, 3, 5))
    gate[np.abs(gate) < 0.6] = 0
    gate[0, 1, 2], up[0, 1, 2] = 1, 0
    mask = np.array([[True, True, False], [True, False, False]])
    hidden = gate * up
    arrays = (jnp.zeros((2, 3, 4)),) * 3 + tuple(
        jnp.asarray(x, jnp.float32) for x in (gate, up, hidden)
    )
    for given, text in ((jnp.asarray(mask), mask), (None, np.ones_like(mask))):
        own = Activations(*arrays, given)
        found, pairs = activation_statistics(own), live_pairs(own)
        g, h = gate[text], hidden[text]
        np.testing.assert_allclose(found.hidden_size, np.abs(h).mean(), rtol=1e-5)
        np.testing.assert_allclose(found.gate_size, np.abs(g).mean(), rtol=1e-5)
        np.testing.assert_allclose(found.zeros, (h == 0).mean(), rtol=1e-5)
        np.testing.assert_allclose(found.gate_zeros, (g == 0).mean(), rtol=1e-5)
        np.testing.assert_allclose(found.live, (h != 0).mean(0), rtol=1e-5)
        live = (h != 0).astype(float)
        np.testing.assert_allclose(pairs, live.T @ live / len(live), rtol=1e-5)
        assert found.zeros > found.gate_zeros
    nothing = Activations(*arrays, jnp.zeros((2, 3), bool))
    assert activation_statistics(nothing).hidden_size == 0
    # Shares of ones are rounded: no zeros are none only where zeros are counted.
    ones = Activations(*(jnp.ones((1, 511, 7)),) * 6, None)
    for found in (activation_statistics(ones), jax.jit(activation_statistics)(ones)):
        assert found.zeros == found.gate_zeros == 0


@pytest.mark.slow
def test_a_predictor_of_a_low_rank_law_finds_what_is_live():
    down, up = RNG.normal(size=(D, 3)), RNG.normal(size=(3, 40))
    inputs = RNG.normal(size=(600, D)).astype(np.float32)
    live = inputs @ down @ up > 4.0
    own = fit_predictor(
        jnp.asarray(inputs[:500]), jnp.asarray(live[:500]), rank=3, steps=400, learning_rate=0.05,
        batch_size=64, key=jax.random.key(0),
    )  # fmt: skip
    assert own.down.shape == (D, 3)
    assert own.up.shape == (3, 40)
    scores = predictor_scores(predict(own, jnp.asarray(inputs[500:])) > 0, jnp.asarray(live[500:]))
    assert scores.recall > 0.9
    assert abs(scores.sparsity - (1 - live.mean())) < 0.03
    with pytest.raises(ValueError, match="rank=0, expected at least 1"):
        fit_predictor(
            jnp.asarray(inputs), jnp.asarray(live), rank=0, steps=1, learning_rate=0.1,
            batch_size=2, key=jax.random.key(0),
        )  # fmt: skip


def test_a_predictor_and_its_scores_are_of_the_same_tokens(unchecked):
    live = jnp.ones((6, 4), bool)
    options = {"rank": 1, "steps": 1, "learning_rate": 0.1, "batch_size": 2}
    for inputs in ((5, 3), (1, 3), (6,)):
        with pytest.raises(ValueError, match=rf"inputs \({inputs[0]}, ?.*live \(6, 4\)"):
            fit_predictor(jnp.ones(inputs), live, **options, key=jax.random.key(0))
    for other in ((1, 4), (6, 1), (4,)):
        with pytest.raises(ValueError, match=r"predicted \(.*live \(6, 4\)"):
            predictor_scores(jnp.ones(other, bool), live)


def test_scores_of_predictions_are_those_of_the_definition():
    predicted = jnp.array([[True, True, False, False], [False, False, False, True]])
    live = jnp.array([[True, False, True, False], [False, False, False, True]])
    scores = predictor_scores(predicted, live)
    np.testing.assert_allclose(scores, [2 / 3, 5 / 8], rtol=1e-6)
    assert predictor_scores(predicted, jnp.zeros_like(live)).recall == 1
    own = Predictor(jnp.eye(2), 2 * jnp.eye(2), jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(predict(own, jnp.array([[3.0, 4.0]])), [[7.0, 7.0]])
