"""The recipe on vocabularies of sub-words, on a few made-up documents."""

from types import SimpleNamespace

import numpy as np
import pytest

from configs.attention import subword as config_file
from experiments.attention import subword, subword_searches
from rml.data.subword import fit_unigram
from rml.data.subword_search import merged
from rml.errors import UserError
from tests.data.test_subword import best_of

SMALL = {
    "sizes": (40, 60), "claimed": 60, "toys.number": 2, "toys.words": 3, "toys.longest": 5,
    "toys.pieces": 1,
}  # fmt: skip
STEMS = ("load", "save", "train", "token", "score", "parse", "return", "value", "model", "array")
ENDS = ("", "s", "er", "ing", "ed", "able")


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(measure, monkeypatch, tmp_path):
    pytest.importorskip("tokenizers")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(STEMS) + rng.choice(ENDS) for _ in range(60)) for _ in range(20)]
    monkeypatch.setattr(subword.data, "load_documents", lambda *_, **__: texts)
    metrics, holds = measure("configs/attention/subword.py", SMALL)
    assert len(holds) == len(subword.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["documents"] == 4
    assert metrics["bits_characters_60"] > metrics["bits_frequency_60"]
    assert metrics["gain_likelihood"] == pytest.approx(
        metrics["bits_frequency_60"] - metrics["bits_likelihood_60"], abs=1e-9
    )
    # BPE is that of the trainer but for ties.
    assert metrics["bits_bpe_60"] == pytest.approx(metrics["bits_frequency_60"], rel=0.01)
    assert metrics["bits_bpe_60"] == pytest.approx(
        metrics["bits_frequency_60"] - metrics["gain_bpe"], abs=1e-9
    )
    assert 0 <= metrics["gap_likelihood"] < metrics["gap_characters"]
    assert (tmp_path / "run" / "unigram_60" / "tokenizer.json").is_file()
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(subword.CAPTIONS)


def test_trainers_give_equally_many_distinct_pieces():
    pytest.importorskip("tokenizers")
    texts = [" ".join(stem + end for stem in STEMS for end in ENDS)]
    characters = sorted({c for c in texts[0] if c != " "})
    for name in ("bpe", "wordpiece"):
        pieces = subword_searches.trained(name, texts, characters, 60)
        assert len(set(pieces)) == len(pieces) == 60, name
    # The texts have no more pieces than these.
    pieces = subword_searches.trained("wordpiece", ["ab"], ["a", "b"], 60)
    assert pieces == ["a", "b", "ab"]


def test_toys_are_held_against_the_optimum_over_all_vocabularies():
    words = ["zyxzy", "zxyzx"]  # the best pieces are last by alphabet
    options = SimpleNamespace(number=1, words=2, longest=5, pieces=1, seconds=10.0)
    gaps = subword_searches.toys(options, dict.fromkeys(words, 1), seed=0)
    rng = np.random.default_rng(0)
    toy = {str(word): int(rng.integers(1, 4)) for word in rng.choice(words, 2, False)}
    pieces = {word[a:b] for word in words for a in range(5) for b in range(a + 1, 6)}
    best = max(best_of(toy, {piece}) for piece in pieces)
    for name in ("frequency", "likelihood"):
        found = fit_unigram(toy, merged(toy, 4, score=name).pieces)
        assert gaps[name] == pytest.approx((best - found.nats) / -best)
    assert gaps["characters"] == pytest.approx((best - fit_unigram(toy, []).nats) / -best)


def test_the_claimed_size_is_measured():
    config = config_file.get_config()
    config.claimed = 300
    with pytest.raises(UserError, match="expected to ascend with claimed=300"):
        subword.check(config)
