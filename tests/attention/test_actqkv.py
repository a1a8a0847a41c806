"""ActQKV's probes and budgets against numpy, and against what the authors' code gives."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention import actqkv
from rml.attention.actqkv import Moments
from rml.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "actqkv.json").read_text())
"""Inputs and results of the authors' functions; their state was that of one layer and text."""

update_moments, activation_bias = jax.jit(actqkv.update_moments), jax.jit(actqkv.activation_bias)
probe_query = jax.jit(actqkv.probe_query, static_argnames="weighting")
window_attention = jax.jit(actqkv.window_attention)
retrieve = jax.jit(actqkv.retrieve, static_argnames=("count", "metric", "temperature"))
layer_budgets = jax.jit(actqkv.layer_budgets, static_argnames=("total", "least", "most"))


def windows(*sizes, seed=0, channels=6):
    rng = np.random.default_rng(seed)
    return [rng.normal(rng.normal(size=channels), 1.5, (n, channels)) for n in sizes]


def moments_of(parts):
    moments = actqkv.no_moments(parts[0].shape[1])
    for part in parts:
        moments = update_moments(moments, jnp.asarray(part, jnp.float32))
    return moments


@pytest.mark.slow
def test_moments_of_equal_windows_are_those_of_all_queries():
    parts = windows(8, 8, 8, 8)
    moments, queries = moments_of(parts), np.concatenate(parts)
    assert moments.windows == 4
    np.testing.assert_allclose(moments.mean, queries.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, queries.var(0, ddof=1), rtol=1e-5)


@pytest.mark.slow
def test_moments_of_unequal_windows_follow_the_authors_recursion():
    """Also after a thousand windows, from which on the thousandth's weight stays."""
    first, second, third = windows(7, 3, 1)
    mean, variance = first.mean(0), first.var(0, ddof=1)
    for c, q in ((1, second), (2, third)):
        b, u = len(q), q.mean(0)
        variance = (variance * (c - 1 / b) + q.var(0) + (u - mean) ** 2 / (1 + 1 / c)) / (
            c + 1 - 1 / b
        )
        mean = (c * mean + u) / (c + 1)
    moments = moments_of([first, second, third])
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-5)
    late = moments._replace(windows=jnp.float32(5000))
    found = update_moments(late, jnp.asarray(second, jnp.float32))
    np.testing.assert_allclose(found.mean, (1000 * mean + second.mean(0)) / 1001, rtol=1e-5)


@pytest.mark.slow
def test_moments_and_probes_are_those_of_the_authors_code():
    """Their probe is one of activation biases from the 1,001st window on, and of ones before."""
    moments = actqkv.no_moments(8)
    for window, truth in zip(GOLDEN["windows"], GOLDEN["moments"], strict=True):
        moments = update_moments(moments, jnp.asarray(window))
        for own, name in zip(moments, Moments._fields, strict=True):
            np.testing.assert_allclose(own, truth[name], rtol=1e-5, err_msg=name)
    late, query = GOLDEN["late"], jnp.asarray(GOLDEN["late"]["query"])
    moments = update_moments(moments._replace(windows=jnp.float32(1001)), query)
    for own, name in zip(moments, Moments._fields, strict=True):
        np.testing.assert_allclose(own, late["moments"][name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(activation_bias(query, moments), late["bias"], rtol=1e-4)
    np.testing.assert_allclose(probe_query(query, moments), late["probe"], rtol=1e-4)


@pytest.mark.slow
def test_masked_queries_count_nowhere():
    (query,) = windows(9)
    mask = jnp.arange(9) < 6
    padded = jnp.asarray(np.where(mask[:, None], query, 1e3), jnp.float32)
    moments = update_moments(actqkv.no_moments(6), padded, mask)
    truth = moments_of([query[:6]])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moments, truth)
    for name in actqkv.WEIGHTINGS:
        found = probe_query(padded, moments, mask, weighting=name)
        own = probe_query(padded[:6], moments, weighting=name)
        np.testing.assert_allclose(found, own, rtol=1e-5, err_msg=name)
    same = update_moments(moments, padded, jnp.zeros(9, bool))
    jax.tree.map(np.testing.assert_array_equal, same, moments)


@pytest.mark.slow
def test_probes_are_weighted_means_of_queries():
    before, query = windows(5, 5)
    moments = moments_of([before, query])
    mean, variance = (np.asarray(x, np.float64) for x in moments[1:])
    bias = ((query - mean) ** 2 / (variance + variance.mean() / 100)).mean(1)
    norm = np.linalg.norm(query, axis=1)
    weights = {"activation": bias, "mean": np.ones(5), "last": np.eye(5)[4], "norm": norm}
    assert set(weights) == set(actqkv.WEIGHTINGS)
    q = jnp.asarray(query, jnp.float32)
    np.testing.assert_allclose(activation_bias(q, moments), bias, rtol=1e-5)
    for name, own in weights.items():
        truth = own @ query / own.sum()
        found = probe_query(q, moments, weighting=name)
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5, err_msg=name)
        single = probe_query(q[2:3], moments, weighting=name)
        np.testing.assert_allclose(single, query[2], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_probe_by_attention_weighs_tokens_by_what_they_receive():
    rng = np.random.default_rng(3)
    query, logits = windows(5)[0], rng.normal(size=(2, 5, 5))
    mask = np.array([True, True, True, True, False])
    got = np.zeros((2, 5))
    for head, i in np.ndindex(2, 4):
        seen = np.exp(logits[head, i, : i + 1])
        got[head, : i + 1] += seen / seen.sum()
    found = window_attention(jnp.asarray(logits, jnp.float32), jnp.asarray(mask))
    np.testing.assert_allclose(found, got, rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 4, rtol=1e-6)
    q, moments = jnp.asarray(query, jnp.float32), moments_of([query])
    own = found.sum(0)
    probe = probe_query(q, moments, jnp.asarray(mask), weighting="attention", received=own)
    np.testing.assert_allclose(probe, got.sum(0) @ query / 8, rtol=1e-4, atol=1e-5)
    one = window_attention(jnp.zeros((1, 1)))
    np.testing.assert_array_equal(one, [1])


def test_a_probe_by_norms_has_a_slope_where_queries_are_zero():
    one = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    none = Moments(*jnp.zeros((3, 2)))
    slope = jax.jit(jax.grad(lambda q: probe_query(q, none, weighting="norm").sum()))
    np.testing.assert_allclose(slope(one), [[1, 1], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(slope(0 * one), [[0, 0], [1, 1]])  # the last is taken


@pytest.mark.slow
def test_queries_at_equal_distance_give_their_mean():
    """Also where they have never differed, when all biases are 0 and the last query is taken."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    moments = moments_of([signs])
    found = probe_query(jnp.asarray(signs, jnp.float32), moments)
    np.testing.assert_allclose(found, [0, 0], atol=1e-6)
    same = jnp.full((3, 2), 2.0)
    found = probe_query(same, update_moments(actqkv.no_moments(2), same))
    np.testing.assert_array_equal(found, [2, 2])
    none = Moments(*jnp.zeros((3, 2)))
    gradient = jax.jit(jax.grad(lambda q: probe_query(q, none).sum()))(same)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_representatives_are_means_of_the_keys_that_got_most():
    rng = np.random.default_rng(1)
    key, received = rng.normal(size=(2, 12, 2, 3)), rng.uniform(size=(2, 4, 12))
    mask = np.ones((2, 12), bool)
    mask[1, :7] = False  # of the first block nothing is left, of the second one key fewer than two
    run = jax.jit(actqkv.block_representatives, static_argnames=("block", "top"))
    given = key.astype(np.float32), received.astype(np.float32), mask
    found = np.asarray(run(*given, block=4, top=2))
    assert found.shape == (2, 3, 4, 3)
    for b, m, h in np.ndindex(2, 3, 4):
        places = [i for i in range(4 * m, 4 * m + 4) if mask[b, i]]
        best = sorted(places, key=lambda i: -received[b, h, i])[:2]
        truth = np.mean([key[b, i, h // 2] for i in best], axis=0) if best else np.zeros(3)
        np.testing.assert_allclose(found[b, m, h], truth, rtol=1e-5, err_msg=f"{b} {m} {h}")


@pytest.mark.slow
def test_retrieval_takes_the_greatest_cosines_and_measures_their_entropy():
    rng = np.random.default_rng(2)
    blocks, probe = rng.normal(size=(9, 5)), rng.normal(size=5)
    blocks[3] = 20 * probe + 30 * np.abs(probe).max() * rng.normal(size=5)  # long, not near
    there = np.arange(9) < 7
    found = retrieve(
        jnp.asarray(blocks, jnp.float32), jnp.asarray(probe, jnp.float32), jnp.asarray(there),
        count=8, metric="cosine", temperature=0.1,
    )  # fmt: skip
    cosine = blocks @ probe / np.linalg.norm(blocks, axis=1) / np.linalg.norm(probe)
    np.testing.assert_array_equal(found.blocks[:7], np.argsort(-cosine[:7]))
    np.testing.assert_allclose(found.scores[:7], np.sort(cosine[:7])[::-1], rtol=1e-5)
    assert found.scores[7] == -np.inf
    p = np.exp(cosine[:7] / 0.1)
    p /= p.sum()
    np.testing.assert_allclose(found.information, -(p * np.log(p)).sum() / np.log(7), rtol=1e-5)
    product = retrieve(
        jnp.asarray(blocks, jnp.float32), jnp.asarray(probe, jnp.float32), jnp.asarray(there),
        count=7,
    )  # fmt: skip
    dots = blocks[:7] @ probe / np.sqrt(5)
    np.testing.assert_allclose(product.scores, np.sort(dots)[::-1], rtol=1e-5)
    assert product.blocks[0] == np.argmax(dots) != np.argmax(cosine[:7])
    alone = retrieve(
        jnp.asarray(blocks, jnp.float32), jnp.asarray(probe, jnp.float32), count=1,
        there=jnp.arange(9) < 1,
    )  # fmt: skip
    assert alone.information == 1


def in_turn(information, total):
    """The authors' rule without clips: each layer's share of what is left, rounded."""
    left, found = total, []
    for i in range(len(information)):
        found.append(round(information[i] / sum(information[i:]) * left))
        left -= found[-1]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.6])
def test_budgets_are_proportional_and_add_up(spread):
    information = 1 - spread * np.random.default_rng(3).uniform(size=30)
    own = jnp.asarray(information, jnp.float32)
    found = np.asarray(layer_budgets(own, total=46 * 30, least=0, most=92))
    assert found.sum() == 46 * 30
    np.testing.assert_allclose(found, 46 * information / information.mean(), atol=1)
    np.testing.assert_allclose(found, in_turn(information, 46 * 30), atol=1)
    bound = np.asarray(layer_budgets(own, total=46 * 30, least=40, most=52))
    assert bound.sum() == 46 * 30
    assert bound.min() >= 40
    assert bound.max() <= 52
    assert (np.diff(bound[np.argsort(information)]) >= -1).all()
    if spread == 0:
        np.testing.assert_array_equal(found, 46)


@pytest.mark.slow
@pytest.mark.parametrize("row", GOLDEN["budgets"], ids=range(len(GOLDEN["budgets"])))
def test_budgets_are_those_of_the_authors_code_but_for_rounding(row):
    """Where no bound binds; they share equally until each layer has been called 100 times."""
    information = np.array(row["information"] if row["calls"] >= 100 else [1.0] * 12)
    assert in_turn(information, row["total"]) == row["budgets"]
    own = layer_budgets(jnp.asarray(information, jnp.float32), total=row["total"], least=0, most=92)
    assert own.sum() == sum(row["budgets"])
    np.testing.assert_allclose(own, row["budgets"], atol=1)
    assert len(set(row["budgets"])) > 8 or np.ptp(information) < 0.1  # one row has many budgets


@pytest.mark.slow
@pytest.mark.parametrize("total", [6, 7, 14, 15])
def test_budgets_add_up_where_all_layers_are_bound(total):
    found = layer_budgets(jnp.array([1.0, 0.5, 0.1]), total=total, least=2, most=5)
    assert found.sum() == total
    assert found.min() >= 2
    assert found.max() <= 5
    if total == 7:
        np.testing.assert_array_equal(found, [3, 2, 2])
    undecided = layer_budgets(jnp.zeros(3), total=total, least=2, most=5)
    assert undecided.sum() == total


def test_misuse_is_named():
    query, moments = jnp.ones((2, 3)), actqkv.no_moments(3)
    with pytest.raises(UserError, match="unknown weighting 'median'"):
        actqkv.probe_query(query, moments, weighting="median")
    with pytest.raises(ValueError, match="weighting 'attention' needs received"):
        actqkv.probe_query(query, moments, weighting="attention")
    with pytest.raises(UserError, match="unknown metric 'l2'"):
        actqkv.retrieve(query, query[0], count=1, metric="l2")
    with pytest.raises(ValueError, match="total=16 blocks for 3 layers of least=2 to most=5, exp"):
        actqkv.layer_budgets(jnp.ones(3), total=16, least=2, most=5)
