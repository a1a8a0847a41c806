"""Pieces of documents, and the tokens that are no words."""

import numpy as np
import pytest

from rml.data import DataError, tokens
from rml.data.pieces import piece_batches, piece_spec, pieces
from rml.data.special import SpecialTokens

TEXTS = ["a b c d e f g h i j k", "one two", "x", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train_tokenizer(TEXTS * 3, vocabulary=300)


def test_documents_are_cut_into_pieces_without_special_tokens(tokenizer):
    whole = [one[1:-1] for one in tokens.encode(tokenizer, TEXTS, max_length=1000)]
    cut = pieces(tokenizer, TEXTS, length=8)
    rows = [row[:n].tolist() for row, n in zip(cut["tokens"], cut["length"], strict=True)]
    assert all(number >= len(tokens.SPECIAL) for row in rows for number in row)
    expected = []
    for one in whole:
        parts = [one[i : i + 8].tolist() for i in range(0, len(one), 8)]
        expected += [p for p in parts if len(p) >= 2]
    assert rows == expected
    with pytest.raises(DataError, match="2 documents"):
        pieces(tokenizer, ["", "x"], length=8)


@pytest.mark.parametrize("length", [2, 3, 16, 20])
def test_a_remainder_is_kept_from_a_quarter_of_the_length_on(length):
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    tokenizer = tokens.train_tokenizer([text], vocabulary=261)  # one token a character
    (numbers,) = tokens.encode(tokenizer, [text], max_length=1000, special=False)
    for count in range(2, len(numbers) + 1):
        lengths = pieces(tokenizer, [text[:count]], length=length)["length"].tolist()
        whole, rest = divmod(count, length)
        kept = [rest] if rest >= max(2, length / 4) or (rest > 1 and not whole) else []
        assert lengths == [length] * whole + kept
    with pytest.raises(DataError, match="length=1"):
        pieces(tokenizer, [text], length=1)


def test_batches_have_the_shapes_that_are_known_before(tokenizer):
    batch = next(iter(piece_batches(tokenizer, TEXTS, length=4, batch_size=2, seed=0)))
    spec = piece_spec(2, length=4)
    assert batch.keys() == spec.keys()
    for name, array in batch.items():
        assert (array.shape, array.dtype) == (spec[name].shape, spec[name].dtype)


def test_special_tokens_are_those_of_the_tokenizer(tokenizer):
    found = SpecialTokens.of(tokenizer)
    assert found == SpecialTokens.trained(tokenizer.get_vocab_size())
    (numbers,) = tokens.encode(tokenizer, ["one two"], max_length=1000)
    assert (numbers[0], numbers[-1]) == (found.first, found.last)
    assert (numbers[1:-1] >= found.words).all()
    assert found.ends == {"first": found.first, "last": found.last, "padding": found.padding}
    assert found.drawn == (tokenizer.token_to_id("[MASK]"), 5, tokenizer.get_vocab_size())
    assert found.padding == tokenizer.token_to_id("[PAD]")


def test_a_tokenizer_of_other_names_is_refused():
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"no token '\[CLS\]'"):
        SpecialTokens.of(bare)
    np.testing.assert_equal(SpecialTokens.trained(300).words, len(tokens.SPECIAL))


def test_of_a_tokenizer_with_special_tokens_at_the_end_no_word_is_drawn():
    from tokenizers import Tokenizer, models

    numbers = {name: number for number, name in enumerate((*tokens.SPECIAL[:4], "word", "[MASK]"))}
    special = SpecialTokens.of(Tokenizer(models.WordLevel(numbers, unk_token="[UNK]")))
    assert special.ends == {"first": 2, "last": 3, "padding": 0}
    with pytest.raises(DataError, match="last special token is number 5 of 6 tokens; expected wor"):
        _ = special.drawn
    assert SpecialTokens.of(
        Tokenizer(models.WordLevel(numbers | {"more": 6}, unk_token="[UNK]"))
    ).drawn == (5, 6, 7)
