"""Pieces of words: segmentation by enumeration, the optimum by brute force, `tokenizers` beside."""

import itertools

import numpy as np
import pytest

from rml.data.errors import DataError
from rml.data.subword import (
    bits_per_character,
    count_words,
    fit_unigram,
    segment,
    smoothed,
    tokens_per_word,
    unigram_tokenizer,
    write_unigram,
)
from rml.data.subword_search import candidates, exact, merged
from rml.data.tokens import load_tokenizer

TOY = {"banana": 3, "bandana": 2, "ananas": 1, "nab": 2}
TEXT = (
    "the theory of other things is there, and this other theory is then the thing that they "
    "think; three of them thought that the mother and the father gather other feathers together"
)


def segmentations(word):
    """All ways to cut a word."""
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(word)]
        yield [word[a:b] for a, b in itertools.pairwise(places)]


def nats_of(pieces):
    """L of the pieces of a corpus, each with its number."""
    total = sum(pieces.values())
    return sum(n * np.log(n / total) for n in pieces.values() if n)


def best_of(counts, known):
    """The greatest L over all segmentations of all words together."""
    known = known | {c for word in counts for c in word}
    choices = [[s for s in segmentations(word) if set(s) <= known] for word in counts]
    best = -np.inf
    for chosen in itertools.product(*choices):
        pieces = {}
        for own, n in zip(chosen, counts.values(), strict=True):
            for piece in own:
                pieces[piece] = pieces.get(piece, 0) + n
        best = max(best, nats_of(pieces))
    return best


def test_words_are_those_of_the_pretokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    text = "A b_c, (de)->f1! Äh\n\tx cafe\u0301 हिन्दी भाषा ❤\ufe0f"
    own = tokenizers.pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())
    assert sorted(count_words([text]).elements()) == sorted(word for word, _ in own)
    assert "A" in count_words([text], lowercase=False)


def test_the_best_segmentation_is_that_of_enumeration():
    rng = np.random.default_rng(0)
    word = "abacaba"
    pieces = {word[a:b] for a, b in itertools.combinations(range(8), 2)}
    logs = {piece: -float(len(piece)) * rng.uniform(0.5, 2) for piece in sorted(pieces)}
    found, nats = segment(word, logs)
    scores = {tuple(s): sum(logs[piece] for piece in s) for s in segmentations(word)}
    assert tuple(found) == max(scores, key=scores.get)
    assert nats == pytest.approx(max(scores.values()))
    assert segment("abz", {"a": -1.0, "b": -2.0, "ab": -2.5}, unknown=-9.0) == (["ab", "z"], -11.5)
    assert segment("z", {"a": -1.0}) == ([], -np.inf)
    assert segment("", logs) == ([], 0.0)


class Asked(dict):
    """Pieces that count how often one is looked up."""

    number = 0

    def get(self, *arguments):
        self.number += 1
        return super().get(*arguments)


def test_no_piece_is_looked_for_that_is_longer_than_all():
    word, model = "ababb" * 40, fit_unigram({"ababb": 3, "bab": 2}, ["abb"])
    expected = segment(word, model.logs, unknown=model.unknown)
    assert "abb" in expected[0]
    logs = Asked(model.logs)
    assert segment(word, logs, unknown=model.unknown, longest=3) == expected
    assert logs.number == 3 * 200 - 3
    logs = Asked(model.logs)
    assert tokens_per_word(model._replace(logs=logs), {word: 2}) == len(expected[0])
    assert logs.number == 3 * 200 - 3


def test_a_character_without_probability_is_an_unknown_one():
    model = fit_unigram({"ab": 10, "c": 3}, ["ab"])
    assert model.logs["a"] == model.logs["b"] == -np.inf
    assert segment("ba", model.logs, unknown=-9.0) == (["b", "a"], -18.0)
    assert segment("ba", model.logs) == ([], -np.inf)
    assert tokens_per_word(model, {"a": 1, "ab": 1, "ba": 1}) == pytest.approx(4 / 3)
    nats = -3 * model.unknown - np.log(10 / 13)
    assert bits_per_character(model, {"a": 1, "ab": 1, "ba": 1}) == pytest.approx(
        nats / np.log(2) / 5
    )


def test_characters_alone_give_their_entropy():
    model = fit_unigram(TOY, [])
    letters = {}
    for word, n in TOY.items():
        for c in word:
            letters[c] = letters.get(c, 0) + n
    p = np.array(list(letters.values())) / sum(letters.values())
    assert bits_per_character(model, TOY) == pytest.approx(-(p @ np.log2(p)))
    assert model.nats == pytest.approx(nats_of(letters))
    assert tokens_per_word(model, TOY) == pytest.approx((6 * 3 + 7 * 2 + 6 + 3 * 2) / 8)


def test_fitting_never_lowers_the_likelihood_and_ends_at_its_own_counts():
    model = fit_unigram(TOY, ["an", "ana", "ban", "nana"])
    again = {}
    for word, n in TOY.items():
        for piece in segment(word, model.logs)[0]:
            again[piece] = again.get(piece, 0) + n
    assert model.nats == pytest.approx(nats_of(model.counts))
    assert nats_of(again) == pytest.approx(model.nats)
    assert model.nats <= best_of(TOY, {"an", "ana", "ban", "nana"}) + 1e-9
    assert model.nats > fit_unigram(TOY, []).nats
    some = smoothed(model)
    assert sum(np.exp(list(some.logs.values()))) == pytest.approx(1.0)
    assert min(some.logs.values()) > -np.inf


def test_frequency_merges_the_pairs_of_the_trainer():
    tokenizers = pytest.importorskip("tokenizers")
    counts = count_words([TEXT])
    size = len({c for word in counts for c in word}) + 25
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    ours = merged(counts, size)
    table = tokenizer.get_vocab()
    assert list(ours.pieces) == sorted(table, key=table.get)


@pytest.mark.parametrize("counts", [TOY, {"aaaaa": 2, "----": 3, "-a--": 1, "baaa": 2, "aa": 1}])
def test_a_merge_adds_to_the_likelihood_what_it_says(counts):
    found = merged(counts, 10, score="likelihood")
    words = {word: list(word) for word in counts}

    def nats():
        pieces = {}
        for word, n in counts.items():
            for piece in words[word]:
                pieces[piece] = pieces.get(piece, 0) + n
        return nats_of(pieces)

    def joined(own, pair):
        out = []
        while own:
            both = tuple(own[:2]) == pair
            out.append("".join(pair) if both else own[0])
            own = own[2 if both else 1 :]
        return out

    assert len(found.pairs) >= 3
    for pair, gain in zip(found.pairs, found.gains, strict=True):
        before, old = nats(), dict(words)
        others = []
        for other in {p for own in words.values() for p in itertools.pairwise(own)}:
            words = {word: joined(own, other) for word, own in old.items()}
            others.append(nats() - before)
        words = {word: joined(own, pair) for word, own in old.items()}
        assert nats() - before == pytest.approx(gain)
        assert gain == pytest.approx(max(others))


def test_a_run_is_merged_half_as_often_as_it_is_long():
    found = merged({"aaaa": 1}, 3)
    # Two pieces "aa", then one "aaaa": as likely as four letters of one kind.
    assert found.pairs == (("a", "a"), ("aa", "aa"))
    assert found.gains == pytest.approx((0.0, 0.0))
    # Of five dashes four pair up: two pieces "--" and a dash.
    (gain,) = merged({"----": 1, "-": 1}, 2).gains
    assert gain == pytest.approx(2 * np.log(2) - 3 * np.log(3))


def test_exact_is_the_optimum_and_merging_stays_below():
    counts = {"abab": 2, "abc": 1, "cab": 2}
    pieces = candidates(counts, longest=3, least=2)
    assert pieces == ["ab", "aba", "ba", "bab", "ca", "cab"]
    for size in (4, 5):
        found = exact(counts, size, pieces)
        wanted = max(best_of(counts, set(own)) for own in itertools.combinations(pieces, size - 3))
        assert found.nats == pytest.approx(wanted, abs=1e-6)
        assert nats_of(found.counts) == pytest.approx(found.nats, abs=1e-6)
        likelihood, frequency = (
            fit_unigram(counts, merged(counts, size, score=score).pieces).nats
            for score in ("likelihood", "frequency")
        )
        assert found.nats >= likelihood - 1e-6
        assert likelihood >= frequency - 1e-6


def test_tokenizers_reads_the_file_and_cuts_as_we_do(tmp_path):
    pytest.importorskip("tokenizers")
    counts = count_words([TEXT])
    model = smoothed(fit_unigram(counts, merged(counts, 60, score="likelihood").pieces))
    write_unigram(model, tmp_path / "own" / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path / "own" / "tokenizer.json")
    words = ["Theory", "feathers", "thinker", "mothering"]
    for word in words:
        own, nats = segment(word.lower(), model.logs)
        theirs = tokenizer.encode(word).tokens
        assert sum(model.logs[piece] for piece in theirs) == pytest.approx(nats)
        assert "".join(theirs) == "".join(own)
    assert tokenizer.encode("the §").ids[-1] == tokenizer.token_to_id("[UNK]")
    with pytest.raises(DataError, match="expected '\\[UNK\\]' among it"):
        unigram_tokenizer(model, special=("[PAD]",))


def test_wrong_options_are_named():
    with pytest.raises(DataError, match="score is 'gain', expected one of"):
        merged(TOY, 10, score="gain")
    with pytest.raises(DataError, match="vocabulary=2, expected at least the 5 characters"):
        merged(TOY, 2)
    with pytest.raises(DataError, match="expected at least 5 characters"):
        exact(TOY, 3, [])
    with pytest.raises(DataError, match="got none"):
        fit_unigram({}, [])
