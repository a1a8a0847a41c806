"""Logits that fall with distance: the definition in float64, gradients, shifts, decoding."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention.harmonic_bias import (
    alibi_attention,
    distance_laws,
    harmonic_attention,
    head_slopes,
)
from rml.errors import UserError
from rml.models import Llama
from rml.models.attention import attend
from rml.ops.attention_parts import Visible
from rml.ops.block_sparse import block_sparse_attention
from rml.ops.blocked_attention import attend_in_blocks

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

    def total(*arrays):
        visible = Visible(causal=True, start=START)
        out = block_sparse_attention(
            *arrays, pattern[:, :3], visible, block=5, scale=0.7, bias=laws.bias
        ).out
        return out.sum(), out

    grads, found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(QUERY, KEY, VALUE)
    wanted = reference("bias", "harmonic", 1.0, seen=seen)
    np.testing.assert_allclose(found, wanted, atol=3e-6)
    assert all(np.isfinite(own).all() and np.abs(own).max() > 0 for own in grads)


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


def decoder(attention):
    """A decoder of one block, its variables, and a text of nine tokens."""
    module = Llama(
        vocabulary=11, positions=32, width=8, depth=1, heads=2, mlp=8, tied=True,
        attention=attention,
    )  # fmt: skip
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (1, 9)))
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens))
    rng = np.random.default_rng(1)
    draws = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)
    return module, draws, tokens


def token_by_token(module, variables, tokens, cache):
    """States of tokens that are read one after another."""

    def step(cache, token):
        states = module.apply(variables, token[:, None], cache=cache)
        return states.cache, states.last[:, 0]

    return jax.lax.scan(step, cache, tokens.T)[1].swapaxes(0, 1)


@pytest.mark.slow
def test_a_decoder_reads_token_by_token_as_it_reads_at_once():
    law = distance_laws(2, form="bias", strength=2.0)
    module, variables, tokens = decoder(functools.partial(attend, **law._asdict()))

    @jax.jit
    def both():
        ours = token_by_token(module, variables, tokens, module.init_cache(1, 9))
        return ours, module.apply(variables, tokens)

    np.testing.assert_allclose(*both(), atol=2e-5)


@pytest.mark.slow
def test_a_text_goes_on_as_alone_behind_padding_on_its_left_alone():
    laws = distance_laws(2, form="alibi", strength=2.0)
    module, variables, tokens = decoder(functools.partial(attend, **laws._asdict()))

    @jax.jit
    def read_and_last(read, mask):
        cache = module.init_cache(1, 1 + read.shape[1])
        cache = module.apply(variables, read, mask, cache=cache).cache
        return module.apply(variables, tokens[:, 8:], cache=cache).last

    def after(left, right):
        """The state of the ninth token, behind eight and padding."""
        widths = ((0, 0), (left, right))
        return read_and_last(np.pad(tokens[:, :8], widths), np.pad(np.ones((1, 8), bool), widths))

    alone = after(0, 0)
    np.testing.assert_allclose(after(3, 0), alone, atol=2e-5)
    assert jnp.abs(after(0, 3) - alone).max() > 0.01


def of_blocks(laws):
    """Attention a block at a time, as it stands in a model."""

    def attend(query, key, value, visible):
        arrays = (x.swapaxes(1, 2) for x in (query, key, value))
        return attend_in_blocks(*arrays, visible, **laws._asdict()).out.swapaxes(1, 2), None

    return attend


@pytest.mark.slow
@pytest.mark.parametrize("form", ["factor", "alibi"])
@pytest.mark.parametrize("blocks", [True, False])
def test_sinks_beside_a_window_that_moves_are_refused(form, blocks):
    """A cache's places are then not those of the text; a window alone moves all of them alike."""
    laws = distance_laws(2, form=form)
    attention = of_blocks(laws) if blocks else functools.partial(attend, **laws._asdict())
    module, variables, tokens = decoder(attention)
    cache = module.init_cache(1, window=4, sinks=2)
    with pytest.raises(ValueError, match=r"no sinks=2 beside a window whose start is an array"):
        jax.eval_shape(lambda: module.apply(variables, tokens, cache=cache))
    exact = module.clone(attention=attend)
    jax.eval_shape(lambda: exact.apply(variables, tokens, cache=cache))

    @jax.jit
    def both():
        ours = token_by_token(module, variables, tokens, module.init_cache(1, window=4))
        return ours, module.clone(window=4).apply(variables, tokens)

    np.testing.assert_allclose(*both(), atol=2e-5)


def test_sinks_of_a_whole_text_have_their_distance():
    visible = Visible(causal=True, window=3, sinks=2, start=START)
    i, j = START + np.arange(QUERIES)[:, None], np.arange(KEYS)
    seen = np.broadcast_to((i - j < 3) | (j < 2), (HEADS, QUERIES, KEYS))
    arrays = [jnp.asarray(x) for x in (QUERY, KEY, VALUE)]
    run = functools.partial(alibi_attention, scale=0.7, strength=1.7, block=5)
    found = jax.jit(lambda *arrays: run(*arrays, visible))(*arrays)
    wanted = reference("alibi", "geometric", 1.7, seen=seen)
    np.testing.assert_allclose(found, wanted, atol=3e-6)
    with pytest.raises(ValueError, match="sinks=2 beside a window whose start is an array"):
        alibi_attention(*arrays, visible._replace(start=jnp.int32(START)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"form": "sum"}, UserError, "unknown form 'sum'"),
        ({"slopes": "equal"}, UserError, "unknown slopes 'equal'"),
        ({"strength": -1.0}, ValueError, "strength is -1.0, expected a number at least 0"),
        ({"strength": math.nan}, ValueError, "strength is nan, expected a number at least 0"),
        ({"strength": math.inf}, ValueError, "strength is inf, expected a finite number"),
        ({"heads": 0}, ValueError, "heads is 0, expected a number above 0"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        distance_laws(**{"heads": 2, **options})
