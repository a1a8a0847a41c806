"""Blocks drawn by distance: the law, the draws, the pairing, unbiased sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention import block_law
from rml.attention.block_law import (
    Law,
    block_law_part,
    causal_weights,
    draw_pattern,
    keep_probabilities,
    paired_rows,
)
from rml.errors import UserError
from rml.ops.attention_parts import Visible


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("budget", [1.5, 5.0, 11.0])
def test_laws_fall_as_stated_and_keep_their_budget(budget):
    n, distance = 16, np.arange(16)
    for kind, shape in (
        ("harmonic", 1 / (1 + distance)), ("geometric", 0.7**distance), ("uniform", np.ones(n)),
    ):  # fmt: skip
        keep = keep_probabilities(n, Law(kind, budget, 0.7))
        assert keep[0] == 1
        # Every chance is rounded up to a number that is drawn.
        step = 2.0**-23
        assert not (keep / step % 1).any()
        assert 0 <= keep.sum() - budget <= n * step
        first = 1 + np.argmax(keep[1:] < 1)
        c = keep[first] / shape[first]
        np.testing.assert_allclose(np.minimum(1, c * shape[1:]), keep[1:], atol=1.5 * step)
    triangle = keep_probabilities(n, Law("harmonic", 3.0), (n - distance) / n)
    assert (triangle * (n - distance)).sum() == pytest.approx(3.0 * n)
    np.testing.assert_array_equal(keep_probabilities(4, Law(budget=4.0)), np.ones(4))


@pytest.mark.parametrize("n", [1, 6, 7])
def test_rows_of_equal_work_hold_the_lower_triangle_once(n):
    rows = paired_rows(n)
    assert rows.shape == ((n + 1) // 2, n + 1, 2)
    pairs = rows[rows[..., 0] >= 0]
    assert sorted(map(tuple, pairs)) == [(q, k) for q in range(n) for k in range(q + 1)]
    full = rows[: n // 2]
    assert (full >= 0).all()
    for i, row in enumerate(full):
        assert set(row[:, 0]) == {i, n - 1 - i}


def test_draws_have_the_laws_chances_and_no_future():
    keep = np.array([1.0, 0.6, 0.3, 0.1, 0.05])
    drawn = np.asarray(draw_pattern(jax.random.key(0), keep, heads=4000))
    assert not np.triu(drawn, 1).any()
    for q in range(5):
        for k in range(q + 1):
            assert drawn[:, q, k].mean() == pytest.approx(keep[q - k], abs=0.035)
    # Heads and pairs draw apart from one another.
    assert abs(np.corrcoef(drawn[:, 3, 2], drawn[:, 2, 1])[0, 1]) < 0.06
    both = np.asarray(draw_pattern(jax.random.key(0), keep, heads=2000, causal=False))
    assert both[:, 1, 3].mean() == pytest.approx(0.3, abs=0.045)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_small_chances_are_drawn_as_often_as_their_weight_says(causal, monkeypatch):
    """Each of the least numbers that can be drawn is drawn once, by a head of its own."""
    keep, step = keep_probabilities(9, Law("geometric", 1.00001, 0.1)), 2.0**-23
    assert (keep[5:] < 40 * step).all()
    assert keep[-1] == step
    numbers = jax.random.uniform(jax.random.key(0), (1000,)) / step
    assert not (numbers % 1).any()
    monkeypatch.setattr(
        block_law.jax.random, "uniform",
        lambda key, shape: jnp.broadcast_to(step * jnp.arange(shape[0])[:, None, None], shape),
    )  # fmt: skip
    drawn = np.asarray(draw_pattern(jax.random.key(0), keep, heads=64, causal=causal))
    bias = block_law.reweighting(keep, 1)(jnp.arange(9), jnp.arange(9))
    sums = (drawn * np.exp(bias)).sum(axis=0) * step
    far = np.abs(np.arange(9)[:, None] - np.arange(9)) >= 5
    far = np.tril(far) if causal else far
    np.testing.assert_allclose(sums[far], 1.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_the_budget_is_the_mean_over_blocks_of_queries(causal):
    """Of values that name their block, those with a weight were kept."""
    heads, n, block = 300, 6, 2
    value = np.repeat(np.eye(n, dtype=np.float32), block, axis=0)[None, None]
    zeros = jnp.zeros((1, heads, n * block, 3)), jnp.zeros((1, 1, n * block, 3))
    run = jax.jit(partial(
        block_law.block_law_attention, visible=Visible(causal=causal), rng=jax.random.key(1),
        block=block, law=Law("harmonic", 2.5),
    ))  # fmt: skip
    out = np.asarray(run(*zeros, value))
    kept = (out[0, :, ::block] > 0).sum(axis=-1)
    assert kept.mean() == pytest.approx(2.5, abs=0.06)


@pytest.mark.slow
def test_it_attends_exactly_to_what_is_kept_and_reweights_by_the_chance():
    """Against float64 under the same pattern, a short last block and padding included."""
    query, key, value = draw(0, 2, 4, 22, 6), draw(1, 2, 2, 22, 6), draw(2, 2, 2, 22, 5)
    here = np.arange(22) < np.array([[22], [13]])
    law, rng = Law("harmonic", 2.6, reweight=True), jax.random.key(3)
    visible = Visible(jnp.asarray(here), causal=True)
    run = jax.jit(partial(block_law_part, visible=visible, rng=rng, scale=0.7, block=4, law=law))
    out, lse = run(query, key, value)
    keep = keep_probabilities(6, law)
    pattern = np.asarray(draw_pattern(rng, keep, heads=4))
    i, j = np.indices((22, 22))
    seen = pattern[:, i // 4, j // 4] & (j <= i)
    own = np.repeat(key, 2, axis=1).astype(np.float64)
    logits = 0.7 * query.astype(np.float64) @ own.swapaxes(2, 3)
    logits -= np.log(keep[np.abs(i // 4 - j // 4)])
    raised = np.where(seen & here[:, None, None], np.exp(logits), 0.0)
    total = raised.sum(axis=-1)
    some = total > 0
    wanted = raised @ np.repeat(value, 2, axis=1) / np.where(some, total, 1.0)[..., None]
    np.testing.assert_allclose(out, wanted, atol=3e-6)
    np.testing.assert_allclose(lse[some], np.log(total[some]), atol=3e-6)
    assert np.isneginf(lse[~some]).all()


@pytest.mark.slow
def test_reweighted_sums_are_unbiased():
    query, key, value = (jnp.asarray(0.3 * draw(seed, 1, 64, 24, 4)) for seed in range(3))
    visible, whole = Visible(causal=True), Law(budget=6.0)

    @partial(jax.jit, static_argnames="law")
    def sums(rng, law):
        """Denominators and numerators of the softmax of the last block's queries."""
        out, lse = block_law_part(query, key, value, visible, rng=rng, block=4, law=law)
        total = jnp.exp(lse)[0, :, 20:]
        return total, total[..., None] * out[0, :, 20:]

    rngs = jax.random.split(jax.random.key(5), 40)
    exact, upper = (np.asarray(x) for x in sums(rngs[0], whole))
    shares = {}
    for reweight in (True, False):
        law = Law("harmonic", 3.0, reweight=reweight)
        total, above = (
            np.mean(x, axis=0) for x in zip(*(sums(rng, law) for rng in rngs), strict=True)
        )
        shares[reweight] = (total / exact).mean(), (above * upper).sum() / (upper**2).sum()
    assert shares[True] == pytest.approx((1.0, 1.0), abs=0.03)
    assert max(shares[False]) < 0.8


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (Law("linear"), "unknown law 'linear'"),
        (Law(budget=0.5), "budget is 0.5, expected at least 1"),
        (Law("geometric", gamma=1.0), "gamma is 1.0, expected between 0 and 1"),
    ],
)
def test_wrong_laws_are_named(law, message):
    with pytest.raises(UserError, match=message):
        keep_probabilities(8, law)


@pytest.mark.parametrize("attend", [block_law_part, block_law.block_law_attention])
def test_an_empty_block_is_named(attend):
    arrays = [jnp.zeros((1, 1, 4, 2))] * 3
    with pytest.raises(UserError, match="block is 0, expected at least 1"):
        attend(*arrays, rng=jax.random.key(0), block=0)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_blocks_and_of_their_tokens_are_whole():
    for of_blocks in (causal_weights, paired_rows, lambda n: keep_probabilities(n, Law())):
        assert len(of_blocks(0)) == 0
        for wrong, message in ((-1, "a number at least 0"), (2.5, "a whole number")):
            with pytest.raises(ValueError, match=f"^blocks is {wrong}, expected {message}$"):
                of_blocks(wrong)
    arrays = [jnp.zeros((1, 1, 4, 2))] * 3
    with pytest.raises(ValueError, match=r"^block is 1\.5, expected a whole number$"):
        block_law_part(*arrays, rng=jax.random.key(0), block=1.5)
