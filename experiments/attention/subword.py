"""Vocabularies of sub-words by frequency, by likelihood, and exactly, of docstrings and code.

Li, The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI,
arXiv:2410.18441, whose abstract alone speaks of sub-word encoding from the settings of BPE and with
the objective of WordPiece; model and searches are our reading. All vocabularies of a size become
unigram models in the same way, and are held against one another on documents that none has seen.
Beside ours stand the trainers of `tokenizers` and the commonest substrings. The exact program runs
on toys of a few real words. Ties of the trainer of WordPiece fall at random, all else is a function
of the seed. Sizes and margins are this repository's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.attention import subword_figures
from experiments.attention.subword_searches import toys, vocabularies
from experiments.common.claims import with_bounds
from rml import data
from rml.data.subword import (
    Unigram,
    count_words,
    fit_unigram,
    segment,
    smoothed,
    tokens_per_word,
    write_unigram,
)
from rml.errors import UserError
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2410.18441, abstract; model, data and margin are this repository's"
CLAIMS = (
    Claim("Held-out text takes 0.01 bits a character less by likelihood than by BPE's frequency",
          "gain_likelihood", ">=", 0.01, SOURCE, stated="2026-11-26", null="gain_substrings"),
    Claim("On toys merging by likelihood reaches the exact optimum to 2% of its nats",
          "gap_likelihood", "<=", 0.02, f"{SOURCE}; changed after the first measurement, in which "
          "the optimum was of ten candidates", stated="2026-11-27", null="gap_characters"),
)  # fmt: skip
CAPTIONS = subword_figures.CAPTIONS
PICTURE = "bits.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Searches vocabularies, fits unigram models, compares them on held-out documents, draws."""
    check(config)
    seen, held_out = documents(config)
    counts = count_words(seen)
    found = vocabularies(counts, seen, config.sizes)
    metrics: dict[str, float] = {"words": len(counts), "documents": len(held_out)}
    bits: dict[str, dict[int, np.ndarray]] = {}
    pieces: dict[str, dict[int, float]] = {}
    tested = [count_words([text]) for text in held_out]
    whole = sum(tested, Counter())
    for name, own in found.items():
        for size, vocabulary in own.items():
            model = smoothed(fit_unigram(counts, vocabulary, tolerance=config.tolerance))
            bits.setdefault(name, {})[size] = document_bits(model, tested)
            pieces.setdefault(name, {})[size] = tokens_per_word(model, whole)
            metrics[f"bits_{name}_{size}"] = float(bits[name][size].mean())
            metrics[f"pieces_{name}_{size}"] = pieces[name][size]
            if name == "likelihood":
                write_unigram(model, run.path / f"unigram_{size}" / "tokenizer.json")
        Progress().note(f"{name}: {metrics[f'bits_{name}_{config.claimed}']:.4f} bits a character")
    gaps = toys(config.toys, counts, seed=config.seed)
    metrics |= summarised(config, bits, pieces, gaps)
    subword_figures.of_bits(run, bits)
    subword_figures.of_pieces(run, pieces)
    subword_figures.of_gaps(run, gaps)
    return metrics


def check(config: Any) -> None:
    """Raises `UserError` unless the claimed size is among those that are measured."""
    if config.claimed not in config.sizes or list(config.sizes) != sorted(config.sizes):
        raise UserError(
            f"sizes is {tuple(config.sizes)}, expected to ascend with claimed={config.claimed}"
        )


def documents(config: Any) -> tuple[list[str], list[str]]:
    """Documents to learn from and held-out ones, of a split by the run's seed."""
    options = config.data
    texts = data.load_documents(options.name, options.train, data_dir=options.data_dir)
    order = np.random.default_rng(config.seed).permutation(len(texts))
    first = round(config.share * len(texts))
    texts = [texts[i] for i in order]
    held_out = [text for text in texts[first:] if count_words([text])]
    return texts[:first], held_out[: config.held_out]


def document_bits(model: Unigram, documents: Sequence[Mapping[str, int]]) -> np.ndarray:
    """Bits a character of every document, [documents]; each word is segmented once."""
    words = {word for counts in documents for word in counts}
    bits = {w: -segment(w, model.logs, unknown=model.unknown)[1] / np.log(2) for w in words}
    return np.array([
        sum(n * bits[word] for word, n in counts.items())
        / sum(n * len(word) for word, n in counts.items())
        for counts in documents
    ])  # fmt: skip


def summarised(
    config: Any, bits: Mapping[str, Mapping[int, np.ndarray]],
    pieces: Mapping[str, Mapping[int, float]], gaps: Mapping[str, np.ndarray],
) -> dict[str, float]:  # fmt: skip
    """Metrics at the claimed size, with intervals over documents or toys."""
    size = config.claimed
    frequency = bits["frequency"][size]
    metrics: dict[str, float] = {}
    for name in ("likelihood", "substrings", "bpe", "wordpiece", "unigram"):
        metrics |= with_bounds(f"gain_{name}", t_interval(frequency - bits[name][size]))
    for name, own in gaps.items():
        metrics |= with_bounds(f"gap_{name}", t_interval(own))
    share = pieces["frequency"][size]
    metrics["pieces_share"] = pieces["likelihood"][size] / share
    metrics["pieces_share_characters"] = pieces["characters"][size] / share
    return metrics
