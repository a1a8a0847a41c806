"""A decoder's memory of blocks against a plain numpy one, and in its exact limit."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention.block_lookup import MemorySettings
from rml.attention.block_memory import block_memory
from rml.models import Llama, generate, read_in_chunks, rope
from rml.models.attention import attend
from rml.ops.attention_parts import Visible

SMALL = {"vocabulary": 20, "width": 16, "depth": 2, "heads": 4, "mlp": 24, "kv_heads": 2}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 41)), jnp.int32)
LEFT = jnp.arange(41) >= jnp.array([[0], [5]])
SETTINGS = MemorySettings(block=4, blocks=2, sinks=3, window=6, top=2)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(Llama(**SMALL).init, jax.random.key(0), TOKENS))
    return jax.tree.map(
        lambda x: jax.device_put((0.4 * rng.normal(size=x.shape)).astype(x.dtype)), shapes
    )


def turned(x, at):
    """One vector at a rotary position, in float64."""
    half = len(x) // 2
    angle = at * 10.0 ** -np.arange(half)
    a, b = x[:half], x[half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    )


def oracle(query, key, value, calls, settings, budget):
    """One text's outputs by loops over calls, heads, queries and keys, in float64.

    Args:
      query: [n, h, k], not rotated, as keys and values [n, g, k].
      calls: Numbers of tokens read at a time.
      settings: Of the memory, with all heads looking up together or each by itself.
      budget: Blocks that are looked up.

    Returns:
      Outputs [n, h, k], the blocks looked up in each call by each part, and the information of each
      call that had a choice, a mean over parts.
    """
    s, (n, h, k), g = settings, query.shape, key.shape[1]
    groups = np.split(np.arange(h), g if s.per_head else 1)
    received, out, looked, start = np.zeros((h, n)), np.zeros_like(query), [], 0
    information = []
    mean = variance = np.zeros((h, k))
    representative: dict[int, np.ndarray] = {}
    for c, t in enumerate(calls):
        far = np.stack([[turned(query[i, j], s.window) for j in range(h)]
                        for i in range(start, start + t)])  # fmt: skip
        u = far.mean(0)
        variance = (variance * (c - 1 / t) + far.var(0) + (u - mean) ** 2 * c / (c + 1)) / (
            c + 1 - 1 / t
        )
        mean = (c * mean + u) / (c + 1)
        whole = max(start - s.window - s.sinks, 0) // s.block
        chosen, entropies = {}, []
        for group in groups:
            own = far[:, group]
            damped = variance[group] + variance[group].mean() / 100
            bias = ((own - mean[group]) ** 2 / damped).mean((1, 2))
            if s.weighting == "attention":  # what the call's own queries give to each of its tokens
                bias = np.zeros(t)
                for i, j in itertools.product(range(t), group):
                    q = turned(query[start + i, j], start + i)
                    logits = [q @ turned(key[start + m, j // (h // g)], start + m) / np.sqrt(k)
                              for m in range(i + 1)]  # fmt: skip
                    bias[: i + 1] += np.exp(logits) / np.exp(logits).sum()
            probe = np.tensordot(bias / bias.sum(), own, 1).ravel()
            own = [representative[m][group].ravel() for m in range(whole)]
            length = np.sqrt(len(probe))
            if s.metric == "cosine" and own:
                length = np.linalg.norm(own, axis=1) * np.linalg.norm(probe)
            scores = np.array(own).reshape(whole, -1) @ probe / length if whole else []
            best = np.argsort(-np.array(scores))[:budget].tolist() if whole else []
            chosen |= dict.fromkeys(group.tolist(), best)
            if whole > 1:
                p = np.exp(scores / s.temperature)
                p /= p.sum()
                entropies.append(-(p * np.log(p)).sum() / np.log(whole))
        information += [np.mean(entropies)] if entropies else []
        looked.append([chosen[group[0]] for group in groups])
        for i, j in np.ndindex(t, h):
            at, logits, values, local = start + i, [], [], []
            for m in range(at + 1):
                block = (m - s.sinks) // s.block
                if s.sinks <= m < s.sinks + whole * s.block and block not in chosen[j]:
                    continue
                near = at - m < s.window
                distance = at - m if near or not s.clamped else s.window
                own = key[m, j // (h // g)]
                logits.append(turned(query[at, j], distance) @ own / np.sqrt(k))
                values.append(value[m, j // (h // g)])
                local.append(m if near else -1)
            weights = np.exp(np.array(logits) - max(logits))
            weights /= weights.sum()
            out[at, j] = weights @ np.array(values)
            for w, m in zip(weights, local, strict=True):
                received[j, m] += w * (m >= 0)
        start += t
        for m in range(max(start - s.window - s.sinks, 0) // s.block):
            if m not in representative:
                places = s.sinks + m * s.block + np.arange(s.block)
                representative[m] = np.stack([
                    key[places[np.argsort(-received[j, places])[: s.top]], j // (h // g)].mean(0)
                    for j in range(h)
                ])  # fmt: skip
    return out, looked, information


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"per_head": True, "blocks": 1, "temperature": 0.5},
        {"clamped": False, "metric": "cosine", "temperature": 0.1},
        {"per_head": True, "weighting": "attention", "block": 2, "blocks": 3},
        {"blocks": 0, "block": 1},
    ],
    ids=["heads", "true", "attention", "none"],
)
def test_a_layer_is_that_of_plain_loops(changes):
    settings = SETTINGS._replace(**changes)
    rng = np.random.default_rng(4)
    module = Llama(**SMALL | {"depth": 1}, head_width=4)
    query, key, value = (rng.normal(size=(1, 41, heads, 4)) for heads in (4, 2, 2))
    cache = block_memory(module, 1, 41, settings)
    calls, at = (7,) * 5 + (1,) * 6, 0

    @jax.jit
    def further(cache, query, key, value):
        mask, new = (
            jnp.arange(41)[None] < cache.length + query.shape[1],
            jnp.ones(query.shape[:2], bool),
        )
        rotate = functools.partial(
            rope.rotate, positions=cache.length + jnp.arange(query.shape[1])[None],
            frequency=10.0 ** -jnp.arange(2.0),
        )  # fmt: skip
        layer = cache.of_layer(jnp.int32(0))
        out, _, kept = layer.attend(attend, query, key, value, Visible(mask), rotate)
        return out, cache.after(jax.tree.map(lambda x: x[None], kept), mask, new)

    found, blocks = [], []
    for t in calls:
        part = (jnp.asarray(x[:, at : at + t], jnp.float32) for x in (query, key, value))
        out, cache = further(cache, *part)
        at += t
        found.append(out)
        blocks.append(cache.lookup.blocks[0, 0].tolist())
    truth, looked, information = oracle(
        query[0], key[0], value[0], calls, settings, settings.blocks
    )
    assert [[[i for i in part if i >= 0] for part in call] for call in blocks] == looked
    assert len({tuple(sorted(call[0])) for call in looked}) > 2 or not settings.blocks  # it chooses
    assert cache.calls == len(information) > 3
    assert np.std(information) > 1e-3
    np.testing.assert_allclose(cache.lookup.information[0, 0], np.mean(information), rtol=1e-4)
    np.testing.assert_allclose(jnp.concatenate(found, 1)[0], truth, atol=2e-5)


@pytest.mark.slow
def test_with_all_blocks_and_true_distances_it_is_the_whole_model(variables):
    """Whatever the probe and the size of chunks, where first tokens are padding, and onwards."""
    module = Llama(**SMALL)
    whole = jax.jit(module.apply)(variables, TOKENS, LEFT)
    settings = SETTINGS._replace(blocks=9, clamped=False, weighting="mean", per_head=True)
    cache = block_memory(module, 2, 44, settings)
    mask = LEFT[:, :-1]
    hidden, begun = read_in_chunks(module, variables, TOKENS[:, :-1], mask, cache=cache, chunk=8)
    np.testing.assert_allclose(hidden[mask], whole[:, :-1][mask], atol=2e-5)
    assert begun.bytes_read < begun.bytes
    np.testing.assert_array_equal(begun.read, LEFT.sum(1) - 1)
    last, _ = read_in_chunks(module, variables, TOKENS[:, -1:], cache=begun, chunk=8)
    np.testing.assert_allclose(last, whole[:, -1:], atol=2e-5)
    answer = jax.eval_shape(
        lambda cache: generate(module, variables, TOKENS[:, -1:], steps=3, cache=cache), begun
    )
    assert answer.shape == (2, 3)


@pytest.mark.slow
def test_state_is_of_each_layer_and_text_and_budgets_add_up(variables):
    module = Llama(**SMALL)
    settings = SETTINGS._replace(blocks=3, dynamic=True, least=1, temperature=0.05, window=12)
    empty = block_memory(module, 2, 41, settings)

    def read(tokens, mask, cache):
        for at in range(0, tokens.shape[1], 8):
            part = tokens[:, at : at + 8], mask[:, at : at + 8]
            _, cache = read_in_chunks(module, variables, *part, cache=cache, chunk=8)
        return cache

    def both_parts(tokens, mask):
        begun = read(tokens[:, :32], mask[:, :32], empty)
        return begun, read(tokens[:, 32:40], mask[:, 32:40], begun)

    begun, both = both_parts(TOKENS, LEFT)
    other = TOKENS.at[1].set(3)  # beside another text, and in its place
    _, beside = both_parts(other[::-1], LEFT[::-1])
    for own, there in zip(
        jax.tree.leaves(both.lookup), jax.tree.leaves(beside.lookup), strict=True
    ):
        np.testing.assert_allclose(own[:, 0], there[:, 1], atol=2e-5)
    np.testing.assert_array_equal(both.lookup.budget.sum(0), [6, 6])
    assert len(np.unique(both.lookup.budget)) > 1
    mean = both.lookup.moments.mean
    assert jnp.abs(mean[0] - mean[1]).max() > 1e-2
    assert both.calls == 2  # of five, those that begin when two blocks are whole
    assert (settings.most, begun.whole) == (5, 4)
    given = jnp.array([[5, 1], [2, 4]])  # of each layer and text
    last = read(TOKENS[:, 32:40], LEFT[:, 32:40], begun.replace(
        lookup=begun.lookup._replace(budget=given)
    ))  # fmt: skip
    for before, after in ((begun.lookup.budget, both), (given, last)):
        found = (after.lookup.blocks >= 0).sum(-1)[..., 0]
        np.testing.assert_array_equal(found, jnp.minimum(before, 4))


@pytest.mark.slow
def test_a_memory_continues_texts_alike_where_arrays_are_of_64_bits_by_default(variables):
    module = Llama(**SMALL)
    settings = SETTINGS._replace(dynamic=True, least=1)

    def continued():
        cache = block_memory(module, 2, 44, settings)
        answer = generate(module, variables, TOKENS, LEFT, steps=3, cache=cache)
        return np.asarray(answer), jax.tree.map(jnp.dtype, cache)

    alone, types = continued()
    with jax.enable_x64(True):
        found, wide_types = continued()
    np.testing.assert_array_equal(found, alone)
    assert wide_types == types


@pytest.mark.slow
def test_misuse_is_named(variables):
    module = Llama(**SMALL)
    for changes, message in (
        ({"block": 0}, "expected block, window and top of at least 1"),
        ({"blocks": -1}, "blocks and sinks of at least 0"),
        ({"temperature": 0.0}, "a temperature above 0"),
        ({"blocks": 10}, "has room for 9 blocks of 4 after 3 sinks, expected at least the 10"),
        ({"dynamic": True, "least": 3}, "least=3, expected 0 to blocks=2"),
        ({"weighting": "median"}, "unknown weighting 'median'"),
    ):
        with pytest.raises(ValueError, match=message):
            block_memory(module, 2, 41, SETTINGS._replace(**changes))
    with pytest.raises(ValueError, match="floating-point numbers, got int8"):
        block_memory(module, 2, 41, SETTINGS, jnp.int8)
    memory = block_memory(module, 2, 41, SETTINGS)
    with pytest.raises(ValueError, match="attends by itself, expected a model with the default"):
        module.clone(window=3).apply(variables, TOKENS, cache=memory)
    with pytest.raises(ValueError, match=r"counts positions itself, got some of shape \(1, 41\)"):
        module.apply(variables, TOKENS, cache=memory, positions=jnp.arange(41)[None])
    with pytest.raises(ValueError, match="has no room for tokens"):
        read_in_chunks(module, variables, jnp.ones((2, 42), int), cache=memory, chunk=8)
    begun = memory.replace(length=jnp.int32(9))
    with pytest.raises(ValueError, match="after the 9 that it holds"):
        read_in_chunks(module, variables, jnp.ones((2, 33), int), cache=begun, chunk=8)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        read_in_chunks(module, variables, TOKENS, cache=memory, chunk=0)
