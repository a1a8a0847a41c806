"""The recipe on vocabularies of sub-words, on a few made-up documents."""

import numpy as np
import pytest

from configs.attention import subword as config_file
from experiments.attention import subword
from rml.errors import UserError

SMALL = {
    "sizes": (40, 60), "claimed": 60, "toys.number": 2, "toys.words": 3, "toys.longest": 5,
    "toys.pieces": 1, "toys.candidates": 3,
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
    assert 0 <= metrics["gap_likelihood"] < metrics["gap_characters"]
    assert (tmp_path / "run" / "unigram_60" / "tokenizer.json").is_file()
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(subword.CAPTIONS)


def test_the_claimed_size_is_measured():
    config = config_file.get_config()
    config.claimed = 300
    with pytest.raises(UserError, match="expected to ascend with claimed=300"):
        subword.check(config)
