import contextlib
import io
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rml.data import Arrays, DataError, batches, load_text, tokens
from rml.errors import install

TEXTS = ["Return the sum of two arrays.", "", "naïve café", "x " * 100, "Raise an error."]


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train_tokenizer(TEXTS * 3, vocabulary=300)


def test_encode_keeps_special_tokens_when_it_cuts(tokenizer):
    whole = tokens.encode(tokenizer, TEXTS, max_length=1000)
    cut = tokens.encode(tokenizer, TEXTS, max_length=6)
    for one, short, text in zip(whole, cut, TEXTS, strict=True):
        assert one.dtype == short.dtype == np.int32
        assert (one[0], one[-1]) == (short[0], short[-1]) == (2, 3)
        assert one[1:-1].tolist() == tokenizer.encode(text, add_special_tokens=False).ids
        assert short[:-1].tolist() == one[: len(short) - 1].tolist()
        assert len(short) == min(len(one), 6)
    assert [len(one) for one in whole][1] == 2
    bare = tokens.encode(tokenizer, TEXTS, max_length=3, special=False)
    assert [len(one) for one in bare][:2] == [3, 0]
    assert bare[0].tolist() == whole[0][1:4].tolist()
    assert tokens.encode(tokenizer, [], max_length=6) == []


def test_encode_leaves_the_tokenizers_settings_alone(tokenizer):
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    before = tokenizer.truncation, tokenizer.padding
    try:
        assert [len(one) for one in tokens.encode(tokenizer, TEXTS[:2], max_length=7)] == [7, 2]
        assert (tokenizer.truncation, tokenizer.padding) == before
        with pytest.raises(DataError, match="max_length=2 holds no text beside 2 special tokens"):
            tokens.encode(tokenizer, TEXTS, max_length=2)
    finally:
        tokenizer.no_truncation()
        tokenizer.no_padding()


def test_names_of_special_tokens_within_a_text_are_text(tokenizer):
    text = "a [MASK] of [PAD] and [SEP]"
    whole = tokens.train_tokenizer(TEXTS, vocabulary=300, lowercase=False)
    for special in (True, False):
        (numbers,) = tokens.encode(whole, [text], max_length=99, special=special)
        inner = numbers[1:-1] if special else numbers
        assert inner.min() >= len(tokens.SPECIAL)
        assert whole.decode(numbers.tolist()) == text
    for setting in (False, True):
        tokenizer.encode_special_tokens = setting
        tokens.encode(tokenizer, [text], max_length=9)
        assert tokenizer.encode_special_tokens == setting
    tokenizer.encode_special_tokens = False


def test_encode_from_several_threads(tokenizer):
    wrong = []

    def work(length):
        for _ in range(30):
            got = [len(one) for one in tokens.encode(tokenizer, TEXTS, max_length=length)]
            wrong.extend(n for n in got if n > length or (n < length and n not in whole))

    whole = {len(one) for one in tokens.encode(tokenizer, TEXTS, max_length=1000)}
    threads = [threading.Thread(target=work, args=(length,)) for length in (3, 5, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("texts", [["a", None], ["a", b"b"], ["a", 3]])
def test_what_is_no_string_is_named(tokenizer, texts):
    with pytest.raises(DataError, match=r"text 1 is (NoneType|bytes|int) .*, expected a string"):
        tokens.check_texts(texts)
    with pytest.raises(DataError, match="expected a list of texts, got one string 'abc'"):
        tokens.check_texts("abc")
    with pytest.raises(DataError, match=r"text 1 holds '\\ud800' at 2, half of a character"):
        tokens.check_texts(["é", "ab\ud800"])


@given(
    st.lists(st.integers(0, 700), max_size=200),
    st.sampled_from([64, 1000, 4096]),
    st.sampled_from([1, 3, 8]),
)
def test_buckets_hold_every_sequence_once_and_few_shapes(lengths, batch_tokens, multiple):
    lengths = np.array(lengths, int)
    buckets = tokens.length_buckets(lengths, batch_tokens=batch_tokens, multiple=multiple)
    members = [int(i) for bucket in buckets for i in bucket.members]
    assert sorted(members) == list(range(len(lengths)))
    for bucket in buckets:
        assert lengths[bucket.members].max() <= bucket.width
        assert len(bucket.members) <= bucket.rows
        assert bucket.rows % multiple == 0
        assert bucket.rows * bucket.width <= max(batch_tokens, multiple * bucket.width)
    full = {(bucket.rows, bucket.width) for bucket in buckets[:-1]}
    assert len(full) == len({width for _, width in full})  # one number of rows for each width
    assert all(len(bucket.members) == bucket.rows for bucket in buckets[:-1])


def test_widths_cover_every_length_closely():
    for length in range(1, 5000):
        width = tokens.width_of(length)
        assert length <= width <= max(length + 7, length * 1.26)
        assert tokens.width_of(width) == width
    assert len({tokens.width_of(length) for length in range(1, 513)}) <= 24
    [bucket] = tokens.length_buckets(np.array([97]), batch_tokens=512, max_width=100)
    assert bucket.width == 100


@pytest.mark.slow
def test_padding_of_pydocs_is_below_a_tenth(tfds_dir):
    """Of all tokens of the test docstrings, in batches that an encoder of 256 tokens gets."""
    texts = load_text("pydocs", "test").texts
    tokenizer = tokens.train_tokenizer(texts, vocabulary=4096)
    lengths = np.array([len(one) for one in tokens.encode(tokenizer, texts, max_length=256)])
    buckets = tokens.length_buckets(lengths, batch_tokens=4096)
    waste = tokens.padding_waste(lengths, buckets)
    filled = sum(
        (~tokens.pad([np.ones(lengths[i], np.int32) for i in b.members], width=b.width,
                     rows=b.rows)[1]).sum()
        for b in buckets
    )  # fmt: skip
    assert waste == pytest.approx(filled / (filled + lengths.sum()))
    assert waste < 0.10
    assert len({(b.rows, b.width) for b in buckets}) <= 24
    # In the order of the data set, batches of one width would be mostly padding.
    assert 1 - lengths.sum() / (256 * len(lengths)) > 0.4


def test_pad(tokenizer):
    filled, mask = tokens.pad([np.array([5, 6]), np.array([], int)], width=3, rows=4, pad_id=9)
    assert filled.tolist() == [[5, 6, 9], [9] * 3, [9] * 3, [9] * 3]
    assert mask.tolist() == [[True, True, False]] + [[False] * 3] * 3
    assert tokens.pad([np.array([1]), np.array([2, 3])])[0].tolist() == [[1, 0], [2, 3]]
    with pytest.raises(ValueError, match=r"1 sequences of up to 2 tokens do not fit \[1, 1\]"):
        tokens.pad([np.array([1, 2])], width=1)


TRAIN = """
import hashlib
from rml.data import tokens
texts = [f"word{i % 7} other{i % 11} naïve {i}" for i in range(500)]
print(hashlib.sha256(tokens.train_tokenizer(texts, vocabulary=500).to_str().encode()).hexdigest())
"""


@pytest.mark.slow
def test_training_a_tokenizer_is_deterministic():
    """Also in another process, whose hashes of strings differ."""
    other = subprocess.Popen([sys.executable, "-c", TRAIN], stdout=subprocess.PIPE, text=True)
    found = set()
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(TRAIN, {})
        found.add(printed.getvalue())
    assert found == {other.communicate(timeout=120)[0]}
    assert other.returncode == 0


def test_a_trained_tokenizer_is_kept_and_loses_nothing(tmp_path):
    texts = ["Return Ünïcode × 2", "日本語", "tab\tand  spaces\n"]
    tokenizer = tokens.train_tokenizer(
        texts, vocabulary=400, lowercase=False, path=tmp_path / "new" / "tokenizer.json"
    )
    again = tokens.load_tokenizer(tmp_path / "new" / "tokenizer.json")
    for text in [*texts, "words never seen 🙂"]:
        numbers = tokens.encode(again, [text], max_length=100)[0]
        assert numbers.tolist() == tokenizer.encode(text).ids
        assert again.decode(numbers.tolist()) == text
    for number, token in enumerate(tokens.SPECIAL):
        assert again.token_to_id(token) == number
    folded = tokens.train_tokenizer(texts, vocabulary=400)
    assert folded.encode("RETURN").ids == folded.encode("return").ids
    assert folded.get_vocab_size() <= 400


def test_tokenizers_that_cannot_be_trained_or_read(tmp_path):
    with pytest.raises(DataError, match="got 2, none with a word"):
        tokens.train_tokenizer(["", " "])
    with pytest.raises(DataError, match="vocabulary=100 is too small, expected at least 261"):
        tokens.train_tokenizer(["a"], vocabulary=100)
    with pytest.raises(DataError, match=r"there is no file .*absent"):
        tokens.load_tokenizer(tmp_path / "absent")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match=r"broken\.json is no tokenizer\.json"):
        tokens.load_tokenizer(tmp_path / "broken.json")


@pytest.mark.slow
def test_missing_tokenizers_name_the_extra(fork):
    code = """
import sys
sys.modules["tokenizers"] = None
from rml.data import DataError, tokens
try:
    tokens.train_tokenizer(["a"])
except DataError as error:
    print(error)
"""
    assert install("pretrained") in fork("-c", code).communicate(timeout=120)[0]


@pytest.mark.parametrize("how", [{}, {"in_memory_bytes": 0, "num_threads": 2}])
def test_texts_are_served_in_batches(tokenizer, how):
    texts = [f"text {'a' * i}" for i in range(10)]
    source = tokens.token_source(
        tokenizer, texts, max_length=12, label=np.arange(10) % 3, name="mine"
    )
    whole = tokens.encode(tokenizer, texts, max_length=12)

    def stream(**options):
        return iter(batches(source, seed=3, **{"batch_size": 4, **how, **options}))

    first, second = next(stream()), next(stream())
    assert {key: (a.shape, a.dtype) for key, a in first.items()} == {
        "tokens": ((4, 12), np.int32), "length": ((4,), np.int32), "index": ((4,), np.int32),
        "label": ((4,), np.int32),
    }  # fmt: skip
    assert all(np.array_equal(first[key], second[key]) for key in first)
    keys = ("tokens", "length", "index", "label")
    for row, length, index, label in zip(*(first[key] for key in keys), strict=True):
        assert row[:length].tolist() == whole[index].tolist()
        assert not row[length:].any()
        assert label == index % 3
    parts = [next(stream(part=part, parts=2)) for part in range(2)]
    for key, array in first.items():
        assert np.array_equal(np.concatenate([part[key] for part in parts]), array)
    seen = [i for batch in stream(repeat=False, batch_size=5) for i in batch["index"].tolist()]
    assert sorted(seen) == list(range(10))


def test_arrays_must_fit_each_other(tokenizer):
    with pytest.raises(DataError, match=r"'mine' split 'all' has arrays with \{'a': 2, 'b': 3\}"):
        Arrays({"a": np.zeros(2), "b": np.zeros((3, 4))}, name="mine")
    with pytest.raises(DataError, match=r"with no rows"):
        Arrays({})
    with pytest.raises(DataError, match=r"'tokens': 0"):
        tokens.token_source(tokenizer, [], max_length=8)
    with pytest.raises(DataError, match=r"'label': 1"):
        tokens.token_source(tokenizer, ["a", "b"], max_length=8, label=np.zeros(1, int))
