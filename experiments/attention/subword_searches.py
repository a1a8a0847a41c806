"""Vocabularies by several searches, on a corpus and on toys of a few of its words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rml.data.subword import fit_unigram
from rml.data.subword_search import candidates, exact, merged
from rml.data.tokens import import_tokenizers

UNKNOWN = "[UNK]"
"""What trainers call the token of what is unknown."""


def vocabularies(
    counts: Mapping[str, int], texts: Sequence[str], sizes: Sequence[int]
) -> dict[str, dict[int, list[str]]]:
    """Finds pieces by search and by size: so many distinct ones, characters included.

    There are fewer where a search finds no more; of "characters" there are these alone.
    """
    characters = sorted({c for word in counts for c in word})
    found: dict[str, dict[int, list[str]]] = {}
    for name in ("frequency", "likelihood"):
        whole = merged(counts, max(sizes), score=name).pieces
        found[name] = {size: list(whole[:size]) for size in sizes}
    common: Counter[str] = Counter()
    for piece in candidates(counts, longest=8, least=2):
        common[piece] = 0
    for word, n in counts.items():
        for begin in range(len(word)):
            for end in range(begin + 2, min(len(word), begin + 8) + 1):
                if word[begin:end] in common:
                    common[word[begin:end]] += n
    ranked = [piece for piece, _ in common.most_common(max(sizes))]
    for size in sizes:
        found.setdefault("substrings", {})[size] = characters + ranked[: size - len(characters)]
    for name in ("bpe", "wordpiece", "unigram"):
        found[name] = {size: trained(name, texts, characters, size) for size in sizes}
    found["characters"] = dict.fromkeys(sizes, characters)
    return found


def trained(name: str, texts: Sequence[str], characters: list[str], size: int) -> list[str]:
    """Trains a tokenizer of `tokenizers` until so many distinct pieces are found, where there are.

    WordPiece's pieces that continue a word are pieces like others without their mark, so that a
    vocabulary of its trainer holds some twice. More are asked for until enough distinct ones are
    there; the last ones beyond them are left out.

    Args:
      name: "bpe", "wordpiece" or "unigram".
      texts: Texts to learn from.
      characters: Characters of the texts, which are pieces.
      size: Number of pieces, characters included.
    """
    asked = size + 1  # beyond the pieces there is the token of what is unknown
    while True:
        found = _trained(name, texts, asked)
        pieces = (piece.removeprefix("##") for piece in found if piece != UNKNOWN)
        longer = list(dict.fromkeys(piece for piece in pieces if len(piece) > 1))
        missing = size - len(characters) - len(longer)
        if missing <= 0 or len(found) < asked:
            return characters + longer[: size - len(characters)]
        asked += missing


def _trained(name: str, texts: Sequence[str], asked: int) -> list[str]:
    """Trains for so many tokens, which are returned in the order of their numbers."""
    tokenizers = import_tokenizers()
    kinds: dict[str, Any] = {
        "bpe": (tokenizers.models.BPE(), tokenizers.trainers.BpeTrainer),
        "wordpiece": (tokenizers.models.WordPiece(), tokenizers.trainers.WordPieceTrainer),
        "unigram": (tokenizers.models.Unigram(), tokenizers.trainers.UnigramTrainer),
    }
    model, trainer = kinds[name]
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own = trainer(vocab_size=asked, show_progress=False, special_tokens=[UNKNOWN])
    tokenizer.train_from_iterator(texts, own)
    table = tokenizer.get_vocab()
    return sorted(table, key=table.get)


def toys(options: Any, counts: Mapping[str, int], *, seed: int) -> dict[str, np.ndarray]:
    """By search the nats that it is below the optimum, over those of the optimum, of every toy.

    Args:
      options: Number of toys, words of each, their longest, pieces beyond the characters, and
        seconds of each exact program, whose candidates are all substrings of the words.
      counts: A corpus from which words are drawn.
      seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    words = [word for word in counts if word.isalpha() and 4 <= len(word) <= options.longest]
    found: dict[str, list[float]] = {}
    for _ in range(options.number):
        toy = {str(w): int(rng.integers(1, 4)) for w in rng.choice(words, options.words, False)}
        letters = {c for word in toy for c in word}
        pieces = candidates(toy, longest=options.longest, least=1)
        size = len(letters) + options.pieces
        best = exact(toy, size, pieces, seconds=options.seconds).nats
        chosen = {
            name: merged(toy, size, score=name).pieces for name in ("frequency", "likelihood")
        } | {"characters": tuple(letters)}
        for name, own in chosen.items():
            gap = (best - fit_unigram(toy, own).nats) / abs(best)
            found.setdefault(name, []).append(gap)
    return {name: np.array(own) for name, own in found.items()}
