"""Documents that are long enough."""

import numpy as np
import pytest

from rml.data import DataError
from rml.data.long_documents import long_documents
from rml.data.tokens import train_tokenizer

TEXTS = ["one two three four", "one two", "four three two one two", "two"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocabulary=280)


def test_long_documents_alone_are_kept_from_their_beginning(tokenizer):
    found = long_documents(tokenizer, TEXTS, length=3)
    assert found.dtype == np.int32
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    np.testing.assert_array_equal(found, [wanted[0][:3], wanted[2][:3]])
    np.testing.assert_array_equal(long_documents(tokenizer, TEXTS, length=3, most=1), found[:1])


def test_too_few_are_an_error(tokenizer):
    with pytest.raises(DataError, match="1 of 4 documents have 5 tokens, expected at least 2"):
        long_documents(tokenizer, TEXTS, length=5, most=2)
    with pytest.raises(DataError, match="the longest has 5"):
        long_documents(tokenizer, TEXTS, length=9)
