"""TempScale and its rivals on a small random encoder, whose attention weights are looked at."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.evaluation import attention_maps
from rml.models import Bert, ClipText, Llama, ModernBert, ViT
from rml.models.attention import attend
from rml.models.pretrained import load
from rml.models.text_encoder import TextEncoder
from rml.retrieval.tempscale import (
    Tuned,
    choose_temperature,
    chunked_encode,
    fit_whitening,
    scale_by_length,
    temper,
    tuned_encode,
    whiten,
)

BERT = Bert(vocabulary=30, width=16, depth=2, heads=2, mlp=24, positions=16)
ENCODER = TextEncoder(BERT, normalize=True)
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 30, (3, 9)), jnp.int32)
ONE = (np.array([0]), np.array([0]), np.array([1]))
MASK = jnp.asarray(np.arange(9) < np.array([[9], [5], [2]]))
# Mean vectors of Yuqi-Zhou/Length_Collapse at 6943293, `BertAttention` with temperature 0.6 in both
# layers of transformers' BERT with the weights of tests/models/golden/bert, in float64.
AUTHORS = np.array([
    [1.473856, -0.621570, -0.994736, 0.701988, -0.862810, -0.714164, 1.054842, -0.496176],
    [1.431779, -0.698941, -0.939050, 0.640759, -0.878654, -0.706122, 1.112463, -0.428446],
    [1.705062, -0.642020, -0.452628, 0.545316, -1.090825, -0.747279, 0.724392, -0.517829],
])  # fmt: skip

plain = jax.jit(ENCODER.apply)


def vectors(encoder, variables):
    return np.asarray(jax.jit(encoder.apply)(variables, TOKENS, MASK))


@pytest.fixture(scope="module")
def variables():
    shapes = nn.unbox(jax.eval_shape(ENCODER.init, jax.random.key(0), TOKENS, MASK))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        size = 0.4 if leaf.ndim > 2 else 0.02  # attention far from uniform
        values = size * rng.normal(size=leaf.shape) + (path[-1].key == "scale")
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def weights(variables):
    """Attention weights [layers, b, heads, t, t] at a temperature, or of the encoder itself."""

    own = {"params": variables["params"]["backbone"]}

    @jax.jit
    def found(temperature=None):
        encoder = ENCODER if temperature is None else temper(ENCODER, temperature)
        return encoder.backbone.apply(own, TOKENS, MASK, return_attention=True).attention

    return lambda *temperature: np.asarray(found(*temperature))


def sharpened(weights, temperature):
    """What division of the logits by a temperature makes of their softmax."""
    powers = weights ** (1 / temperature)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.slow
def test_a_temperature_divides_the_logits(variables, weights):
    smooth, sharp = weights(), weights(0.6)
    assert np.abs(sharp[0] - smooth[0]).max() > 0.1
    np.testing.assert_allclose(sharp[0], sharpened(smooth[0], 0.6), atol=1e-5)
    assert sharp[:, 2, :, :, 2:].max() == 0  # padding stays hidden
    same = vectors(temper(ENCODER, 1.0), variables)
    np.testing.assert_array_equal(plain(variables, TOKENS, MASK), same)


def test_it_gives_the_numbers_of_the_authors_code():
    pretrained = load(f"hf:{Path(__file__).parents[1] / 'models' / 'golden' / 'bert'}")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 36, (3, 9)), jnp.int32)
    encode = jax.jit(tuned_encode(TextEncoder(pretrained.module)))
    params = {"params": {"backbone": pretrained.variables["params"]}}
    found = encode(Tuned(params, 0.6), tokens, MASK)
    np.testing.assert_allclose(found, AUTHORS, atol=5e-6)
    assert np.abs(encode(Tuned(params, 1.0), tokens, MASK) - AUTHORS).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [(0.5, 2.0), ((0.5, 2.0), (2.0, 0.5))])
def test_layers_and_heads_have_temperatures_of_their_own(variables, temperature):
    """A temperature is the same as queries divided by it."""
    temperature = jnp.asarray(temperature)
    by_head = jnp.broadcast_to(temperature.reshape(2, -1), (2, 2))
    scaled = jax.tree.map(lambda x: x, variables)
    query = scaled["params"]["backbone"]["blocks"]["attention"]["query"]
    query["kernel"] = jax.tree.map(lambda x: x / by_head[:, None, :, None], query["kernel"])
    query["bias"] = jax.tree.map(lambda x: x / by_head[..., None], query["bias"])
    found = vectors(temper(ENCODER, temperature), variables)
    np.testing.assert_allclose(found, plain(scaled, TOKENS, MASK), atol=2e-6)
    assert np.abs(found - plain(variables, TOKENS, MASK)).max() > 1e-3


@pytest.mark.slow
def test_limits_are_uniform_and_one_hot(weights):
    flat, hard = weights(1e6), weights(1e-4)
    assert float(attention_maps(jnp.asarray(flat[:, 0])).filter_rate.max()) < 1e-4
    largest = weights()[0, 0].argmax(-1)
    np.testing.assert_allclose(hard[0, 0], np.eye(9)[largest], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "value"), [(temper, 0.6), (scale_by_length, 4.0)])
def test_padding_changes_nothing(variables, change, value):
    encoder = change(ENCODER, value)
    tokens = np.pad(TOKENS, ((0, 0), (0, 3)), constant_values=7)
    mask = np.pad(MASK, ((0, 0), (0, 3)))
    found = jax.jit(encoder.apply)(variables, tokens, mask)
    np.testing.assert_allclose(found, vectors(encoder, variables), atol=2e-6)


@pytest.mark.slow
def test_attentions_of_layers_are_changed_one_by_one(variables):
    """An encoder tempered twice has the product of the temperatures, in each layer its own."""
    layers = jnp.asarray([0.5, 2.0])
    one = temper(ENCODER, layers)
    for twice in (temper(one, 1.5), temper(temper(ENCODER, 1.5), layers)):
        attention = twice.backbone.attention
        assert len(set(attention)) == 2
        expected = vectors(temper(ENCODER, 1.5 * layers), variables)
        np.testing.assert_allclose(vectors(twice, variables), expected, atol=2e-6)
    # Layers that shared an attention still do, so that a model is not told that they differ.
    for change in (temper, scale_by_length):
        own = change(TextEncoder(BERT.clone(attention=(attend, attend))), 1.5).backbone.attention
        assert len(own) == 2
        assert len(set(own)) == 1


def test_backbones_without_such_an_attention_are_named():
    sizes = {"vocabulary": 9, "width": 8, "depth": 2, "heads": 2}
    modern = ModernBert(mlp=8, local=(True, False), **sizes)
    clip = ClipText(projection=4, **sizes)
    vit = ViT(width=8, depth=2, heads=2, patch_size=2)
    for backbone, own in ((clip, "ClipText has attention=None"), (vit, "ViT has attention='xla'")):
        for change in (temper, scale_by_length):
            with pytest.raises(ValueError, match=f"{own}, expected what attends"):
                change(TextEncoder(backbone), 2.0)
    with pytest.raises(ValueError, match="ModernBert has one attention for all layers"):
        temper(TextEncoder(modern), jnp.asarray([0.5, 2.0]))
    assert callable(temper(TextEncoder(modern), 0.5).backbone.attention)
    llama = Llama(mlp=8, **sizes)
    assert len(temper(TextEncoder(llama), jnp.asarray([0.5, 2.0])).backbone.attention) == 2


@pytest.mark.slow
def test_the_scale_by_length_is_a_temperature_of_each_text(variables):
    found = vectors(scale_by_length(ENCODER, 4.0), variables)
    encode = jax.jit(tuned_encode(ENCODER))
    for row, number in enumerate((9, 5, 2)):
        tuned = Tuned(variables, np.log(4.0) / np.log(number))
        own = np.asarray(encode(tuned, TOKENS, MASK))
        np.testing.assert_allclose(found[row], own[row], atol=2e-6)


@pytest.mark.slow
def test_one_program_serves_all_values(variables):
    for change in (temper, scale_by_length):
        encode = jax.jit(tuned_encode(ENCODER, change))
        found = [encode(Tuned(variables, value), TOKENS, MASK) for value in (2.0, 3.5)]
        expected = vectors(change(ENCODER, 3.5), variables)
        np.testing.assert_allclose(found[1], expected, atol=2e-6)
        assert np.abs(found[0] - found[1]).max() > 1e-3
        assert encode._cache_size() == 1


@pytest.mark.slow
def test_chunks_are_weighted_by_their_tokens(variables):
    def alone(start, stop):
        """Vectors of a part of every text, its positions from 0."""
        rolled, here = (np.roll(x, -start, axis=1) for x in (TOKENS, MASK))
        return np.asarray(plain(variables, rolled, here & (np.arange(9) < stop - start)))

    found = np.asarray(jax.jit(chunked_encode(ENCODER, 5))(variables, TOKENS, MASK))
    both = (5 * alone(0, 5) + 4 * alone(5, 9))[0]
    np.testing.assert_allclose(found[0], both / np.linalg.norm(both), atol=2e-6)
    np.testing.assert_allclose(found[1], alone(0, 5)[1], atol=2e-6)
    whole = jax.jit(chunked_encode(ENCODER, 9))(variables, TOKENS, MASK)
    np.testing.assert_allclose(whole, plain(variables, TOKENS, MASK), atol=2e-6)


@pytest.mark.slow
def test_a_text_in_one_chunk_needs_no_positions_beyond_its_own(variables):
    longer = BERT.positions + 1
    found = jax.jit(chunked_encode(ENCODER, longer))(variables, TOKENS, MASK)
    np.testing.assert_allclose(found, plain(variables, TOKENS, MASK), atol=2e-6)


@pytest.mark.slow
def test_whitening_evens_the_directions_out():
    x = np.float32(RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4)) + 5)
    values = np.linalg.eigvalsh(np.cov(np.asarray(x, float).T, bias=True))
    fit = jax.jit(fit_whitening)
    for shrinkage in (0.0, 0.3, 1.0):
        center, matrix = map(np.asarray, fit(x, shrinkage=shrinkage))
        np.testing.assert_allclose(center, x.mean(0), rtol=1e-5)
        spread = np.linalg.eigvalsh(np.cov(np.asarray((x - center) @ matrix, float).T, bias=True))
        drawn = (1 - shrinkage) * values + shrinkage * values.mean()
        np.testing.assert_allclose(spread, np.sort(values / drawn * values.mean()), rtol=1e-3)
    only_centred = np.asarray(jax.jit(whiten)(x, fit(x, shrinkage=1.0)))
    expected = x - x.mean(0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(only_centred @ only_centred.T, expected @ expected.T, atol=1e-5)


@pytest.mark.parametrize(("row", "number"), [([2.0, -1.0, 0.5], 4), ([0.1, 0.3, 0.1], 7)])
def test_whitening_of_embeddings_that_are_all_the_same(row, number):
    x = np.tile(np.array([row], np.float32), (number, 1))
    fitted = jax.tree.map(np.asarray, jax.jit(fit_whitening)(x))
    np.testing.assert_array_equal(fitted.center, x[0])
    np.testing.assert_allclose(fitted.matrix @ fitted.matrix.T, np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(jax.jit(whiten)(x, fitted), np.zeros((number, 3)))


def test_whitening_of_one_direction_is_its_sign():
    x = np.array([[1.0], [2.0], [6.0]], np.float32)
    fitted = jax.jit(fit_whitening)(x)
    assert abs(float(fitted.matrix[0, 0])) == pytest.approx(1)
    np.testing.assert_allclose(np.abs(jax.jit(whiten)(x, fitted)), np.ones((3, 1)), rtol=1e-6)


@pytest.mark.slow
def test_the_chosen_temperature_ranks_answers_best():
    """Documents turn with the temperature: at 2 the answers are nearest, at 3 second at best."""
    turned = {"q": 0.0, "r": np.pi / 2, "a": 2.0, "b": np.pi / 2 + 2, "c": 3.1, "d": np.pi}

    def embed(temperature, texts):
        angles = [turned[t] - (temperature if t in "abc" else 0.0) for t in texts]
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    documents, relevant = (
        ["c", "d", "b", "a"],
        (np.array([0, 1]), np.array([3, 2]), np.ones(2, int)),
    )

    def oracle(temperature, k):
        scores = embed(temperature, ["q", "r"]) @ embed(temperature, documents).T
        ranks = [
            (-row).argsort(kind="stable").tolist().index(a)
            for row, a in zip(scores, (3, 2), strict=True)
        ]
        return np.mean([1 / np.log2(2 + rank) if rank < k else 0.0 for rank in ranks])

    grid = (3.0, 2.0, 2.5, 0.5)
    for k in (1, 10):
        found = choose_temperature(embed, ["q", "r"], documents, relevant, grid, k=k)
        np.testing.assert_allclose(found.ndcg, [oracle(t, k) for t in grid], rtol=1e-6)
        assert found.temperature == 2.0 == grid[int(np.argmax(found.ndcg))]
    assert len(set(found.ndcg.round(6))) == 2
    asked = []
    choose_temperature(
        embed, ["q", "r"], documents, relevant, grid,
        embed_queries=lambda t, texts: asked.append((t, texts)) or embed(t, texts),
    )  # fmt: skip
    assert asked == [(t, ["q", "r"]) for t in grid]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temper(ENCODER, 0.0), r"temperature=0\.0, expected above 0"),
        (lambda: temper(ENCODER, jnp.ones(3)), "3 temperatures for 2 layers"),
        (lambda: temper(ENCODER, jnp.ones((2, 3))), r"shape \(2, 3\), expected \(2, 2\)"),
        (lambda: chunked_encode(TextEncoder(BERT, pooling="cls"), 4), "pooling='cls' of chunks"),
        (lambda: fit_whitening(jnp.ones((1, 4))), r"shape \(1, 4\), expected at least two"),
        (lambda: fit_whitening(jnp.eye(4), shrinkage=3), "shrinkage is 3, expected a number bet"),
        (lambda: fit_whitening(jnp.eye(4), shrinkage=-0.1), "shrinkage is -0.1, expected a number"),
        (lambda: whiten(jnp.ones((2, 1)), fit_whitening(jnp.eye(4))), r"x \(2, 1\) .* center \(4,"),
        (lambda: scale_by_length(ENCODER, 1.0), r"reference=1\.0 tokens, expected more than 1"),
        (lambda: chunked_encode(ENCODER, 4.0), "size is 4.0, expected a whole number"),
        (lambda: chunked_encode(ENCODER, 0), "size=0 tokens of a chunk"),
        (
            lambda: choose_temperature(None, "q", "d", ONE, (1,), k=0),
            "k is 0, expected a number at",
        ),
        (
            lambda: choose_temperature(None, "q", "d", ONE, (1,), k=1.0),
            "k is 1.0, expected a whole",
        ),
        (lambda: choose_temperature(vectors, "q", "d", ONE, ()), "grid has no temp"),
        (lambda: choose_temperature(vectors, "q", "d", ONE, (1, 0)), r"grid=.* above 0"),
        (lambda: choose_temperature(vectors, "qr", "d", ONE, (1,)), "judgement"),
    ],
)
def test_wrong_numbers_are_named(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()
