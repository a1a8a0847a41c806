"""Words as pieces under a unigram model: segmentation, fitting, a file that `tokenizers` reads.

A vocabulary 𝒱 holds all characters and some longer pieces. A piece has the probability c / Σ c of
its count c, a word the probability of its best segmentation. The likelihood of a corpus is

    L(𝒱) = Σ_words n_word max_segmentations Σ_pieces log p(piece).

`rml.data.subword_search` finds vocabularies with much of it.

Source: our reading of Li, The Nature of Mathematical Modeling and Probabilistic Optimization
Engineering in Generative AI, arXiv:2410.18441, abstract: sub-word encoding from the settings of BPE
and with the objective of WordPiece. The unigram model is of Kudo, Subword Regularization,
arXiv:1804.10959, whose expectations are replaced by best segmentations.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rml.data.duplicates import in_words
from rml.data.errors import DataError
from rml.data.tokens import import_tokenizers

WORD = re.compile(rf"[{in_words()}]+|[^{in_words()}\s]+")
"""What is a word, as for the pre-tokenizer Whitespace of `tokenizers`, where ² and ½ are signs."""
PENALTY = 10.0
"""Nats that an unknown character costs beyond the least likely piece, as in `tokenizers`."""
ROUNDS = 50
"""Most segmentations of the corpus while a model is fitted."""
Counts = Mapping[str, int]
"""How often each word stands in a corpus."""


class Unigram(NamedTuple):
    """A vocabulary with the logarithm of each piece's probability.

    Attributes:
      logs: Log-probabilities by piece, in nats; -inf of pieces that no best segmentation has.
      counts: Number of times, by piece, that it stands in the best segmentations of the corpus.
      nats: L, the logarithm of the corpus's likelihood.
    """

    logs: dict[str, float]
    counts: dict[str, float]
    nats: float

    @property
    def unknown(self) -> float:
        """Logarithm that stands for a character which is no piece."""
        return min(value for value in self.logs.values() if value > -np.inf) - PENALTY


def count_words(texts: Iterable[str], *, lowercase: bool = True) -> Counter[str]:
    """Counts the words of texts: runs of letters and digits, runs of other marks."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(WORD.findall(text.lower() if lowercase else text))
    return found


def segment(
    word: str,
    logs: Mapping[str, float],
    *,
    unknown: float = -np.inf,
    longest: int | None = None,
) -> tuple[list[str], float]:
    """Finds the most likely segmentation of a word, by dynamic programming over its places.

    Args:
      word: The word.
      logs: Logarithm of each piece's probability. One of -inf is no piece.
      unknown: The same of a character that is no piece.
      longest: Most characters of a piece, beyond which none is looked for; those of the word if
        not given.

    Returns:
      The pieces, of several best ones those whose last piece is longest, and the sum of their
      logarithms; no pieces and -inf where there is no segmentation.
    """
    n = len(word)
    longest = n if longest is None else longest
    best, start = [0.0] + [-np.inf] * n, [0] * (n + 1)
    for end in range(1, n + 1):
        for begin in range(max(0, end - longest), end):
            own = logs.get(word[begin:end], -np.inf)
            if own == -np.inf:
                if end - begin > 1:
                    continue
                own = unknown
            if best[begin] + own > best[end]:
                best[end], start[end] = best[begin] + own, begin
    if n and best[n] == -np.inf:
        return [], -np.inf
    pieces, end = [], n
    while end:
        pieces.append(word[start[end] : end])
        end = start[end]
    return pieces[::-1], best[n]


def fit_unigram(counts: Counts, pieces: Collection[str], *, tolerance: float = 1e-9) -> Unigram:
    """Fits the probabilities of a vocabulary by best segmentations until L stops rising.

    Every round segments all words by the probabilities that there are, and sets p = c / Σ c. L
    never falls. It begins with how often each piece occurs at all. The end depends on the
    beginning: it is a local optimum over probabilities and segmentations together.

    Args:
      counts: The corpus.
      pieces: The vocabulary; characters of the corpus are added where they are missing.
      tolerance: Share of L by which it must rise for another round.

    Returns:
      The model, its probabilities of the last segmentation.

    Raises:
      DataError: There is no word.
    """
    if not counts:
        raise DataError("a vocabulary is fitted to words, got none")
    known = {*pieces, *(character for word in counts for character in word)}
    longest = max(map(len, known))
    found: dict[str, float] = dict.fromkeys(sorted(known), 0.0)
    for word, n in counts.items():
        for begin in range(len(word)):
            for end in range(begin + 1, min(len(word), begin + longest) + 1):
                if word[begin:end] in known:
                    found[word[begin:end]] += n
    nats = -np.inf
    for _ in range(ROUNDS):
        logs = _logs(found)
        new = dict.fromkeys(found, 0.0)
        for word, n in counts.items():
            for piece in segment(word, logs, longest=longest)[0]:
                new[piece] += n
        own = _nats(new)
        if own <= nats + tolerance * abs(own) and nats > -np.inf:
            break
        found, nats = new, own
    return Unigram(_logs(found), found, nats)


def smoothed(model: Unigram, *, count: float = 0.5) -> Unigram:
    """Adds a count to that of every piece of a model, so that none is impossible."""
    counts = {piece: own + count for piece, own in model.counts.items()}
    return model._replace(logs=_logs(counts))


def bits_per_character(model: Unigram, counts: Counts) -> float:
    """Computes bits a character of words by their best segmentations under a model."""
    nats, characters = 0.0, 0
    for word, (_, own) in _best(model, counts):
        nats -= counts[word] * own
        characters += counts[word] * len(word)
    return nats / np.log(2) / max(characters, 1)


def tokens_per_word(model: Unigram, counts: Counts) -> float:
    """Computes the mean number of pieces of a word's best segmentation."""
    pieces = sum(counts[word] * len(own) for word, (own, _) in _best(model, counts))
    return pieces / max(sum(counts.values()), 1)


def unigram_tokenizer(
    model: Unigram, *, lowercase: bool = True, special: Sequence[str] = ("[PAD]", "[UNK]")
) -> Any:
    """Makes a `tokenizers.Tokenizer` of a model, which other libraries load.

    Args:
      model: Its pieces get the smoothed probabilities where they have none.
      lowercase: Whether the tokenizer leaves out case.
      special: Tokens before all pieces, "[UNK]" among them.

    Returns:
      The tokenizer; `save(path)` writes the file.

    Raises:
      DataError: If `tokenizers` is missing or "[UNK]" is not among the special tokens.
    """
    if "[UNK]" not in special:
        raise DataError(f"special={tuple(special)}, expected '[UNK]' among it")
    tokenizers = import_tokenizers()
    logs = model.logs if min(model.logs.values()) > -np.inf else smoothed(model).logs
    table = [(token, 0.0) for token in special] + list(logs.items())
    unigram = tokenizers.models.Unigram(table, special.index("[UNK]"))
    tokenizer = tokenizers.Tokenizer(unigram)
    if lowercase:
        tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def write_unigram(model: Unigram, path: str | Path, **options: Any) -> None:
    """Writes a model as a `tokenizer.json`, see `unigram_tokenizer`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    unigram_tokenizer(model, **options).save(str(path))


def _best(model: Unigram, counts: Counts) -> Iterator[tuple[str, tuple[list[str], float]]]:
    """The best segmentation of each word under a model, and its logarithm."""
    unknown, longest = model.unknown, max(map(len, model.logs))
    for word in counts:
        yield word, segment(word, model.logs, unknown=unknown, longest=longest)


def _logs(counts: Mapping[str, float]) -> dict[str, float]:
    total = np.log(sum(counts.values()))
    return {piece: np.log(own) - total if own else -np.inf for piece, own in counts.items()}


def _nats(counts: Mapping[str, float]) -> float:
    own = np.array([value for value in counts.values() if value])
    return float(own @ np.log(own / own.sum()))
