"""`embed` against encoding all texts in one batch."""

import os
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.data import DataError, tokens
from rml.models import Bert
from rml.models.text_encoder import TextEncoder
from rml.retrieval import TextEmbedder, embed

WORDS = ["sum", "array", "return", "the", "of", "value", "index", "shape", "error", "file"]
MAX_LENGTH = 28


def make_texts(count):
    """Of 0 to 45 words, in no order."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 45) * (i % 7 > 0))) for i in range(count)]


@pytest.fixture(scope="module")
def texts():
    return make_texts(60)


@pytest.fixture(scope="module")
def tokenizer(texts):
    return tokens.train_tokenizer(texts, vocabulary=300)


def make_model():
    """A text encoder from random and its variables, boxed by their logical axes."""
    backbone = Bert(vocabulary=300, width=16, depth=2, heads=2, mlp=32, positions=MAX_LENGTH)
    encoder = TextEncoder(backbone, pooling="mean", normalize=True)
    one, rng = jnp.zeros((1, 2), jnp.int32), np.random.default_rng(1)
    # NumPy draws: compiling many threefry draws is slow.
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype),
        jax.eval_shape(encoder.init, jax.random.key(0), one, one == 0),
    )
    return encoder.apply, variables


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def at_once(model, tokenizer, texts):
    """Vectors of all texts in one batch, each padded to the longest."""
    apply, variables = model
    encoded = tokens.encode(tokenizer, texts, max_length=MAX_LENGTH)
    return np.asarray(jax.jit(apply)(variables, *tokens.pad(encoded)))


@pytest.mark.slow
def test_vectors_are_those_of_one_batch_in_the_order_of_the_texts(model, tokenizer, texts, at_once):
    for options in ({"batch_tokens": 128}, {}):
        got = embed(*model, tokenizer, texts, max_length=MAX_LENGTH, **options)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, at_once, atol=2e-6)
    backwards = embed(*model, tokenizer, texts[::-1], max_length=MAX_LENGTH)
    np.testing.assert_allclose(backwards[::-1], at_once, atol=2e-6)


@pytest.mark.slow
def test_an_embedder_is_the_function_that_its_parts_make(model, tokenizer, texts, at_once):
    apply, variables = model
    done = []
    encode = TextEmbedder(apply.__self__, variables, tokenizer, max_length=6, batch_tokens=64)
    found = encode(texts, progress=lambda count, of: done.append((count, of)))
    expected = embed(apply, variables, tokenizer, texts, max_length=6, batch_tokens=64)
    np.testing.assert_array_equal(found, expected)
    assert done[-1] == (60, 60)
    assert len(done) > 1
    assert np.abs(found - at_once).max() > 0.01


class Listed(nn.Module):
    """Vectors of tokens, times numbers that are a list."""

    numbers: list[float]

    @nn.compact
    def __call__(self, tokens, mask, *, train=False):
        return nn.Embed(300, 2)(tokens) * jnp.array(self.numbers)


def test_equal_models_are_one_function_and_one_with_a_list_is_its_own(tokenizer):
    bert = {"vocabulary": 300, "width": 16, "depth": 2, "heads": 2, "mlp": 32, "positions": 28}
    functions = [
        TextEmbedder(
            TextEncoder(Bert(**bert | {"depth": depth})), {}, tokenizer, max_length=8
        ).function
        for depth in (2, 2, 3)
    ]
    assert functions[0] == functions[1] != functions[2]
    encoder = TextEncoder(Listed([3.0, -1.0]))
    table = np.random.default_rng(0).normal(size=(300, 2))
    variables = {"params": {"backbone": {"Embed_0": {"embedding": jnp.asarray(table)}}}}
    found = TextEmbedder(encoder, variables, tokenizer, max_length=8)(["the sum"])
    rows = tokens.encode(tokenizer, ["the sum"], max_length=8)[0]
    np.testing.assert_allclose(found[0], table[rows].mean(0) * [3, -1], rtol=1e-5)


@pytest.mark.slow
def test_windows_join_without_a_seam(model, tokenizer, texts, at_once, monkeypatch):
    """Texts are tokenised a few at a time, and batches are filled from one window to the next."""
    monkeypatch.setattr(sys.modules["rml.embedding"], "WINDOW", 1)
    windows = []
    encode = tokens.encode

    def counted(tokenizer, texts, **options):
        windows.append(len(texts))
        return encode(tokenizer, texts, **options)

    monkeypatch.setattr(tokens, "encode", counted)
    rows = []

    def apply(variables, numbers, mask):
        rows.append(numbers.shape)
        return model[0](variables, numbers, mask)

    got = embed(apply, model[1], tokenizer, texts, max_length=MAX_LENGTH, batch_tokens=160)
    assert len(windows) > 5
    assert sum(windows) == len(texts)
    # One shape a width, and one more for the end (the first is that of the vectors' width).
    assert len(rows[1:]) <= len({width for _, width in rows[1:]}) + 1
    np.testing.assert_allclose(got, at_once, atol=2e-6)


@pytest.mark.slow
def test_programs_are_compiled_once_for_all_calls(model, tokenizer, texts):
    shapes = []

    def apply(variables, numbers, mask):
        shapes.append(numbers.shape)
        return model[0](variables, numbers, mask)

    for _ in range(3):
        embed(apply, model[1], tokenizer, texts, max_length=MAX_LENGTH, batch_tokens=512)
    # The vectors' width is asked for by the shape (1, 8) in each call; nothing is traced twice.
    traced = [shape for shape in shapes if shape != (1, 8)]
    assert len(traced) == len(set(traced))
    assert {width for _, width in traced} <= {*tokens.WIDTHS, MAX_LENGTH}


@pytest.mark.slow
def test_no_texts_empty_texts_and_progress(model, tokenizer, texts):
    assert embed(*model, tokenizer, [], max_length=MAX_LENGTH).shape == (0, 16)
    empty = embed(*model, tokenizer, ["", texts[1], ""], max_length=MAX_LENGTH)
    assert np.array_equal(empty[0], empty[2])
    np.testing.assert_allclose(np.linalg.norm(empty, axis=1), 1, atol=1e-5)
    seen = []
    embed(
        *model, tokenizer, texts, max_length=MAX_LENGTH, batch_tokens=128,
        progress=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert len(seen) > 3
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (60, 60)


@pytest.mark.slow
def test_mistakes_are_named(model, tokenizer, texts):
    with pytest.raises(DataError, match="expected a list of texts, got one string"):
        embed(*model, tokenizer, "one text", max_length=MAX_LENGTH)
    with pytest.raises(DataError, match="max_length=2 holds no text"):
        embed(*model, tokenizer, texts, max_length=2)


EIGHT = """
import json, sys
sys.path.insert(0, {here!r})
import test_embedding as t
from rml.data import tokens
from rml.retrieval import embed
from rml.training import make_mesh

texts = t.make_texts(60)
tokenizer = tokens.train_tokenizer(texts, vocabulary=300)
model = t.make_model()
one = embed(*model, tokenizer, texts, max_length=t.MAX_LENGTH)
apart = []
for shape in ({{"data": 8}}, {{"data": 2, "fsdp": 2, "model": 2}}):
    mesh = make_mesh(shape)
    got = embed(*model, tokenizer, texts, max_length=t.MAX_LENGTH, batch_tokens=64, mesh=mesh)
    apart.append(float(abs(got - one).max()))
print(json.dumps(apart))
"""


@pytest.mark.slow
def test_meshes_give_the_same_vectors(forked):
    assert max(forked(EIGHT.format(here=os.path.dirname(__file__)), devices=8)) < 2e-6
