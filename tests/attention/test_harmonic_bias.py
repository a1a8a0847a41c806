"""Logits that fall with distance: the definition in float64, gradients, shifts, decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention.harmonic_bias import distance_laws, harmonic_attention, head_slopes
from rml.errors import UserError
from rml.models import Llama
from rml.models.attention import attend
from rml.ops.attention_parts import Visible
from rml.ops.block_sparse import block_sparse_attention

HEADS, QUERIES, KEYS = 4, 13, 18
START = 4
"""Place of the first query."""
LAWS = [("bias", "harmonic"), ("factor", "geometric"), ("alibi", "geometric")]


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


QUERY, KEY, VALUE = (
    draw(0, 2, HEADS, QUERIES, 6), draw(1, 2, 2, KEYS, 6), draw(2, 2, 2, KEYS, 6),
)  # fmt: skip


def reference(form, slopes, strength, query=QUERY, key=KEY, value=VALUE, seen=None):
    """Outputs by the definition in float64, a pair of tokens at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b, h, i in np.ndindex(query.shape[:3]):
        slope = strength * (1 / (h + 1) if slopes == "harmonic" else 2 ** (-8 * (h + 1) / HEADS))
        logits = np.full(key.shape[2], -np.inf)
        for j in range(START + i + 1):
            n = START + i - j
            logit = 0.7 * query[b, h, i] @ key[b, h // 2, j]
            if form == "factor":
                logit = logit / (1 + slope * n)
            else:
                fall = n if form == "alibi" else sum(1 / k for k in range(1, n + 1))
                logit = logit - slope * fall
            if seen is None or seen[h, i, j]:
                logits[j] = logit
        weights = np.exp(logits - logits.max())
        out[b, h, i] = weights @ value[b, h // 2] / weights.sum()
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("form", "slopes"), LAWS)
def test_blocks_and_a_matrix_are_the_definition_and_so_are_their_gradients(form, slopes):
    visible = Visible(causal=True, start=START)
    out = reference(form, slopes, 1.7)
    law = distance_laws(HEADS, form=form, slopes=slopes, strength=1.7)

    def blocks(query, key, value):
        return harmonic_attention(
            query, key, value, visible, scale=0.7, form=form, slopes=slopes, strength=1.7, block=5
        )

    def matrix(query, key, value):
        query = query * (0.7 * 6**0.5)  # its logits are divided by the root of the width
        arrays = (x.swapaxes(1, 2) for x in (query, key, value))
        return attend(*arrays, visible, **law._asdict())[0].swapaxes(1, 2)

    @jax.jit
    def both(*arrays):
        found = []
        for one in (blocks, matrix):
            value, backward = jax.vjp(one, *arrays)
            found.append((value, backward(jnp.cos(jnp.arange(value.size)).reshape(value.shape))))
        return found

    (ours, gradients), (dense, wanted) = both(QUERY, KEY, VALUE)
    np.testing.assert_allclose(ours, out, atol=3e-6)
    np.testing.assert_allclose(dense, out, atol=3e-6)
    # The gradient of the matrix is JAX's own; that of blocks is written by hand.
    for found, own in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, own, atol=1e-5)


@pytest.mark.slow
def test_a_pattern_of_blocks_reads_the_law_of_its_head():
    pattern = np.tril(np.ones((HEADS, 4, 4), bool), 1)
    pattern[1, 3, 0], pattern[2, 2, 1] = False, False
    seen = pattern.repeat(5, axis=1).repeat(5, axis=2)
    laws = distance_laws(HEADS, form="bias", slopes="harmonic")

    @jax.jit
    def run(*arrays):
        visible = Visible(causal=True, start=START)
        return block_sparse_attention(
            *arrays, pattern[:, :3], visible, block=5, scale=0.7, bias=laws.bias
        ).out

    wanted = reference("bias", "harmonic", 1.0, seen=seen)
    np.testing.assert_allclose(run(QUERY, KEY, VALUE), wanted, atol=3e-6)
    grads = jax.jit(jax.grad(lambda *arrays: run(*arrays).sum(), (0, 1)))(QUERY, KEY, VALUE)
    assert all(np.isfinite(found).all() and np.abs(found).max() > 0 for found in grads)


def test_slopes_of_heads():
    np.testing.assert_allclose(head_slopes(3, "harmonic"), [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(head_slopes(8, "geometric"), 0.5 ** np.arange(1, 9))


def test_only_distance_counts():
    """A law is the same of all pairs of one distance, in both directions, far away too."""
    places = jnp.arange(3000, 3007)
    for form in ("bias", "factor", "alibi"):
        laws = distance_laws(2, form=form)
        law = np.asarray((laws.factor or laws.bias)(places, places))
        np.testing.assert_array_equal(law, law.swapaxes(1, 2))
        np.testing.assert_array_equal(law[:, 0, 2], law[:, 4, 6])
        near = np.asarray((laws.factor or laws.bias)(jnp.arange(7), jnp.arange(7)))
        np.testing.assert_array_equal(law, near)
        assert (law[:, 3, 3] == (1.0 if form == "factor" else 0.0)).all()


@pytest.mark.slow
def test_a_decoder_reads_token_by_token_as_it_reads_at_once():
    law = distance_laws(2, form="bias", strength=2.0)
    module = Llama(
        vocabulary=11, positions=32, width=8, depth=1, heads=2, mlp=8, tied=True,
        attention=functools.partial(attend, **law._asdict()),
    )  # fmt: skip
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (1, 9)))
    variables = jax.jit(module.init)(jax.random.key(0), tokens)
    whole = jax.jit(module.apply)(variables, tokens)
    step = jax.jit(lambda cache, token: module.apply(variables, token, cache=cache))
    cache = module.init_cache(1, 9)
    for i in range(9):
        states = step(cache, tokens[:, i : i + 1])
        cache = states.cache
        np.testing.assert_allclose(states.last[:, 0], whole[:, i], atol=2e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"form": "sum"}, UserError, "unknown form 'sum'"),
        ({"slopes": "equal"}, UserError, "unknown slopes 'equal'"),
        ({"strength": -1.0}, ValueError, "strength=-1.0, expected at least 0"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        distance_laws(2, **options)
