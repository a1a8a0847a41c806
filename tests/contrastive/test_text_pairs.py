"""Pairs of texts against what a reader of the paper would do by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rml import contrastive
from rml.contrastive import Texts

WIDTH = 24


def make(lengths, width=WIDTH) -> Texts:
    """Texts whose tokens say where they stand: 100 r + place + 1, and -1 behind the end."""
    tokens = 100 * np.arange(len(lengths))[:, None] + np.arange(width) + 1
    tokens = np.where(np.arange(width) < np.asarray(lengths)[:, None], tokens, -1)
    return Texts(jnp.asarray(tokens), jnp.asarray(lengths))


def rows(texts: Texts) -> list[list[int]]:
    """Each text as a list."""
    tokens, lengths = np.asarray(texts.tokens), np.asarray(texts.lengths)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


# As many texts always, and few largest ratios: each number and each width is compiled.
lengths_drawn = st.lists(st.integers(1, WIDTH), min_size=5, max_size=5)
ratios = st.tuples(st.floats(0.01, 1), st.sampled_from([0.03, 0.3, 0.77, 1.0])).map(
    lambda drawn: (max(0.01, drawn[0] * drawn[1]), drawn[1])
)


@pytest.mark.slow
@settings(max_examples=25)
@given(lengths_drawn, st.integers(0, 1000), ratios)
def test_a_crop_is_a_contiguous_part_of_its_text(lengths, seed, ratio):
    texts = make(lengths)
    low, high = ratio
    spans = contrastive.crop(jax.random.key(seed), texts, min_ratio=low, max_ratio=high)
    assert spans.tokens.shape[1] == max(1, int(high * WIDTH))
    for text, span in zip(rows(texts), rows(spans), strict=True):
        start = text.index(span[0])
        assert span == text[start : start + len(span)]
        # float32 ratios: one token of rounding.
        assert max(1, int(low * len(text)) - 1) <= len(span) <= max(1, int(high * len(text)) + 1)


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "width"), [(0.29, 100), (0.58, 50), (0.57, 100), (0.41, 300)])
def test_spans_fit_their_array_where_the_ratio_is_rounded(ratio, width):
    texts = make([width, width // 2], width=width)
    cut = contrastive.crop(jax.random.key(0), texts, min_ratio=ratio, max_ratio=ratio)
    assert cut.lengths[0] == cut.tokens.shape[1] == round(ratio * width)
    tokens, mask = contrastive.with_ends(cut, first=900, last=901, padding=0)
    assert (np.asarray(tokens) == 901).sum(1).tolist() == [1, 1]
    assert (np.asarray(tokens)[np.asarray(mask)] > 0).all()


def test_spans_fit_their_array_where_other_numbers_have_64_bits():
    with jax.enable_x64(True):
        texts = make([300, 150], width=300)
        cut = contrastive.crop(jax.random.key(0), texts, min_ratio=0.21, max_ratio=0.21)
        assert cut.lengths.tolist() == [62, 31]  # 0.21 of 300 tokens are 63 in float64
        assert cut.tokens.shape == (2, 62)
        tokens, mask = contrastive.with_ends(cut, first=900, last=901, padding=0)
        assert (np.asarray(tokens) == 901).sum(1).tolist() == [1, 1]
        assert np.asarray(mask).sum(1).tolist() == [64, 33]


@pytest.mark.slow
def test_crops_are_uniform_and_the_two_of_a_pair_independent():
    n, length = 20_000, 20
    texts = Texts(jnp.tile(jnp.arange(length), (n, 1)), jnp.full(n, length))
    first, second = contrastive.pairs(
        "crops", jax.random.key(0), texts, min_ratio=0.25, max_ratio=0.5
    )
    sizes = np.asarray(first.lengths)
    # Shares uniform in [0.25, 0.5), rounded down: 5, ..., 9 tokens, equally often.
    counts = np.bincount(sizes, minlength=11)[5:10]
    assert counts.sum() == n
    assert stats.chisquare(counts).pvalue > 1e-3
    starts = np.asarray(first.tokens[:, 0])[sizes == 6]
    assert stats.chisquare(np.bincount(starts, minlength=15)).pvalue > 1e-3
    for one, other in ((first.lengths, second.lengths), (first.tokens, second.tokens)):
        pair = np.asarray(one).reshape(n, -1)[:, 0], np.asarray(other).reshape(n, -1)[:, 0]
        assert abs(np.corrcoef(*pair)[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.slow
@settings(max_examples=25)
@given(lengths_drawn, st.integers(0, 1000), ratios)
def test_inverse_cloze_splits_the_text_into_span_and_rest(lengths, seed, ratio):
    texts = make(lengths)
    options = dict(min_ratio=ratio[0], max_ratio=ratio[1])
    span, rest = contrastive.inverse_cloze(jax.random.key(seed), texts, **options)
    for text, inner, outer in zip(rows(texts), rows(span), rows(rest), strict=True):
        if len(inner) == len(text):  # nothing would be left
            assert outer == text
            continue
        start = text.index(inner[0])
        assert inner == text[start : start + len(inner)]
        assert outer == text[:start] + text[start + len(inner) :]


@pytest.mark.slow
def test_inverse_cloze_keeps_the_span_as_often_as_asked():
    n = 5_000
    texts = make([20] * n)
    _, rest = contrastive.pairs(
        "inverse_cloze", jax.random.key(1), texts, min_ratio=0.2, max_ratio=0.5, keep=0.1
    )
    kept = int(np.sum(np.asarray(rest.lengths) == 20))
    assert stats.binomtest(kept, n, 0.1).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_deletion_keeps_order_and_at_least_one_token(rate):
    n = 2_000
    texts = make([1, 2, 10] * n, width=10)
    left = contrastive.delete(jax.random.key(0), texts, rate=rate)
    for text, part in zip(rows(texts), rows(left), strict=True):
        assert part
        assert part == sorted(part)
        assert set(part) <= set(text)
    mean = np.asarray(left.lengths).reshape(n, 3)[:, 2].mean()
    # At least one of ten stays: 10 (1 - rate) + rate^10, with four standard errors.
    expected = 10 * (1 - rate) + rate**10
    assert abs(mean - expected) <= 4 * np.sqrt(10 * rate * (1 - rate) / n) + 1e-6


def test_replacing_and_masking_change_a_share_of_the_tokens():
    texts = make([WIDTH] * 400)
    inside = np.asarray(texts.tokens)
    for name, allowed in (("replace", range(5, 50)), ("mask", [3])):
        changed = contrastive.corrupt(
            name, jax.random.key(2), texts, rate=0.1, vocabulary=(3, 5, 50)
        )
        np.testing.assert_array_equal(changed.lengths, texts.lengths)
        new = np.asarray(changed.tokens)
        differs = new != inside
        assert set(new[differs].tolist()) <= set(allowed)
        assert stats.binomtest(int(differs.sum()), differs.size, 0.1).pvalue > 1e-4


@pytest.mark.slow
def test_shuffling_permutes_some_tokens_of_each_text_and_no_others():
    texts = make([1, 2, 9, WIDTH] * 50)
    mixed = contrastive.shuffle(jax.random.key(0), texts, rate=0.5)
    moved = [
        sum(a != b for a, b in zip(x, y, strict=True))
        for x, y in zip(rows(texts), rows(mixed), strict=True)
    ]
    assert [sorted(row) for row in rows(mixed)] == rows(texts)
    assert max(moved[3::4]) > 6
    assert np.mean(moved[3::4]) < WIDTH / 2
    everything = contrastive.shuffle(jax.random.key(0), make([WIDTH] * 2000), rate=1.0)
    # All tokens chosen: each place gets each token equally often.
    first = np.asarray(everything.tokens)[:, 0] % 100 - 1
    assert stats.chisquare(np.bincount(first, minlength=WIDTH)).pvalue > 1e-3


def test_ends_stand_around_the_text():
    tokens, mask = contrastive.with_ends(make([0, 1, 3], width=3), first=7, last=8, padding=9)
    expected = [[7, 8, 9, 9, 9], [7, 101, 8, 9, 9], [7, 201, 202, 203, 8]]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(mask, np.asarray(expected) != 9)


def test_pairs_are_a_function_of_the_key_under_jit():
    texts = make([10, 24, 3])
    build = jax.jit(
        lambda key: contrastive.pairs("crops", key, texts, min_ratio=0.1, max_ratio=0.5)
    )
    same, again, other = (build(jax.random.key(seed)) for seed in (0, 0, 1))
    assert [rows(t) for t in same] == [rows(t) for t in again] != [rows(t) for t in other]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, t: contrastive.crop(k, t, min_ratio=0.6, max_ratio=0.5), "0.6 and 0.5"),
        (lambda k, t: contrastive.crop(k, t, min_ratio=0.0, max_ratio=0.5), "0.0"),
        (lambda k, t: contrastive.delete(k, t, rate=1.5), "1.5"),
        (
            lambda k, t: contrastive.inverse_cloze(k, t, min_ratio=0.1, max_ratio=0.5, keep=-1.0),
            "keep",
        ),
        (lambda k, t: contrastive.replace(k, t, rate=0.1, low=5, high=5), "5 and 5"),
        (lambda k, t: contrastive.pairs("crop", k, t, min_ratio=0.1, max_ratio=0.5), "'crops'"),
        (
            lambda k, t: contrastive.corrupt("deleet", k, t, rate=0.1, vocabulary=(1, 2, 3)),
            "'delete'",
        ),
    ],
)
def test_wrong_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0), make([4, 5]))
