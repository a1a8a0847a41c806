"""Vocabularies of pieces of words, found by merging pairs or by an integer program.

* `merged`: from characters, the pair that scores highest becomes a piece. "frequency" scores by
  its count, which is byte-pair encoding (Sennrich et al., arXiv:1508.07909); "likelihood" by what
  the merge adds to the logarithm of the corpus's likelihood, the objective of WordPiece.
* `exact`: the optimum over all candidates and segmentations, of small corpora.

Source: our reading of Li, arXiv:2410.18441, abstract, see `rml.data.subword`.
"""

import itertools
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, sparse

from rml.data.errors import DataError
from rml.data.subword import Counts, Unigram

SCORES = ("frequency", "likelihood")


class Merges(NamedTuple):
    """What a search by merging finds.

    Attributes:
      pieces: Characters in their order, then the pieces in that of their merges.
      pairs: The pairs that were merged.
      gains: Gain in L of each merge under the segmentations that merging makes.
    """

    pieces: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    gains: tuple[float, ...]


def merged(counts: Counts, vocabulary: int, *, score: str = "frequency") -> Merges:
    """Merges the best pair of neighbouring pieces until a vocabulary has its size.

    Of equal pairs that of the earlier pieces is taken, characters in the order of their code
    points before all others, as the trainer of `tokenizers` does.

    Args:
      counts: The corpus.
      vocabulary: Number of pieces, characters included.
      score: "frequency" or "likelihood". The latter stops where no merge adds anything.

    Raises:
      DataError: The score is unknown, or there are more characters than pieces.
    """
    if score not in SCORES:
        raise DataError(f"score is {score!r}, expected one of {SCORES}")
    state = _Merging(counts)
    if len(state.pieces) > vocabulary:
        raise DataError(
            f"vocabulary={vocabulary}, expected at least the {len(state.pieces)} characters"
        )
    pairs, gains = [], []
    while len(state.pieces) < vocabulary and state.size:
        gain = state.gains()
        values = state.counts if score == "frequency" else gain
        best = values.max()
        if best <= 0:
            break
        # Ties are broken by the numbers of both pieces.
        slot = min(np.flatnonzero(values == best), key=lambda i: (state.left[i], state.right[i]))
        pairs.append((state.pieces[state.left[slot]], state.pieces[state.right[slot]]))
        gains.append(float(gain[slot]))
        state.merge(int(slot))
    return Merges(tuple(state.pieces), tuple(pairs), tuple(gains))


class _Merging:
    """Words as lists of pieces, with the counts of all pairs of neighbours kept up to date."""

    def __init__(self, counts: Counts):
        """Begins with characters."""
        self.pieces = sorted({character for word in counts for character in word})
        self.number = {piece: i for i, piece in enumerate(self.pieces)}
        self.words = [[self.number[c] for c in word] for word in counts]
        self.times = list(counts.values())
        self.each = np.zeros(len(self.pieces), np.int64)
        self.slot: dict[tuple[int, int], int] = {}
        self.where: list[set[int]] = []
        self.size = 0
        self.joined: dict[str, list[int]] = {}
        self._arrays = np.zeros((5, 1024), np.int64)
        for i, word in enumerate(self.words):
            np.add.at(self.each, word, self.times[i])
            self._count(i, 1)

    @property
    def counts(self) -> np.ndarray:
        return self._arrays[0, : self.size]

    @property
    def left(self) -> np.ndarray:
        return self._arrays[1, : self.size]

    @property
    def right(self) -> np.ndarray:
        return self._arrays[2, : self.size]

    @property
    def merges(self) -> np.ndarray:
        """How often each pair is merged: of "aaa" once, though it stands there twice."""
        return self._arrays[4, : self.size]

    def gains(self) -> Float[np.ndarray, " n"]:
        """What merging each pair adds to Σ c log c - C log C, C the number of all pieces."""
        n, left, right = self.merges, self.left, self.right
        total, same = self.each.sum(), left == right
        made = self._arrays[3, : self.size]
        there = np.where(made >= 0, self.each[made], 0)
        a, b = self.each[left], self.each[right]
        after = np.where(same, _clogc(a - 2 * n), _clogc(a - n) + _clogc(b - n))
        before = np.where(same, _clogc(a), _clogc(a) + _clogc(b))
        added = _clogc(there + n) - _clogc(there)
        return after - before + added - _clogc(total - n) + _clogc(total)

    def merge(self, slot: int) -> None:
        """Makes a piece of a pair, from left to right in every word."""
        a, b = int(self.left[slot]), int(self.right[slot])
        piece = self.pieces[a] + self.pieces[b]
        if piece not in self.number:
            self.number[piece] = len(self.pieces)
            self.pieces.append(piece)
            self.each = np.append(self.each, 0)
            self._arrays[3, self.joined[piece]] = self.number[piece]
        new = self.number[piece]
        for i in sorted(self.where[slot]):
            self._count(i, -1)
            word, out, at, n = self.words[i], [], 0, self.times[i]
            while at < len(word):
                if word[at : at + 2] == [a, b]:
                    out.append(new)
                    self.each[a] -= n
                    self.each[b] -= n
                    self.each[new] += n
                    at += 2
                else:
                    out.append(word[at])
                    at += 1
            self.words[i] = out
            self._count(i, 1)

    def _count(self, i: int, sign: int) -> None:
        """Adds the pairs of word i, or takes them away; of "aaa" the trainer counts two."""
        word, apart = self.words[i], False
        for at, pair in enumerate(itertools.pairwise(word)):
            # A pair of equal pieces is not merged where the one before it takes its first.
            apart = pair[0] != pair[1] or not (at and apart and word[at - 1] == pair[0])
            slot = self.slot.get(pair)
            if slot is None:
                slot = self.slot[pair] = self.size
                self.where.append(set())
                if self.size == self._arrays.shape[1]:
                    self._arrays = np.concatenate([self._arrays, 0 * self._arrays], axis=1)
                piece = self.pieces[pair[0]] + self.pieces[pair[1]]
                self.joined.setdefault(piece, []).append(slot)
                self._arrays[1:4, slot] = *pair, self.number.get(piece, -1)
                self.size += 1
            self._arrays[0, slot] += sign * self.times[i]
            self._arrays[4, slot] += sign * self.times[i] * apart
            if sign > 0:
                self.where[slot].add(i)
            else:
                self.where[slot].discard(i)


def _clogc(c: Any) -> Any:
    c = np.maximum(c, 0)
    return c * np.log(np.maximum(c, 1))


def candidates(counts: Counts, *, longest: int = 8, least: int = 2) -> list[str]:
    """Lists substrings of 2 to `longest` characters that occur at least so often, sorted."""
    found: dict[str, int] = {}
    for word, n in counts.items():
        for begin in range(len(word)):
            for end in range(begin + 2, min(len(word), begin + longest) + 1):
                found[word[begin:end]] = found.get(word[begin:end], 0) + n
    return sorted(piece for piece, n in found.items() if n >= least)


def exact(
    counts: Counts, vocabulary: int, pieces: Collection[str], *, seconds: float = 60.0
) -> Unigram:
    """Finds the vocabulary, segmentations and probabilities that are best together.

    It maximises Σ_v c_v log c_v - C log C, which is L with p = c / C, over the pieces that are kept
    and the paths through every word. Both terms become linear by one binary variable for every
    value that a count may have: the program is as large as the corpus, and only small ones end.

    Args:
      counts: The corpus.
      vocabulary: Number of pieces at most, characters included.
      pieces: Candidates beside the characters, such as `candidates`.
      seconds: Time after which it gives up.

    Returns:
      The best model, of the pieces that it uses.

    Raises:
      DataError: There are more characters than pieces, or no optimum was found in time.
    """
    characters = sorted({character for word in counts for character in word})
    if len(characters) > vocabulary:
        raise DataError(f"vocabulary={vocabulary}, expected at least {len(characters)} characters")
    known = characters + [piece for piece in sorted(set(pieces)) if len(piece) > 1]
    number = {piece: i for i, piece in enumerate(known)}
    edges = [
        (w, begin, end, number[word[begin:end]])
        for w, word in enumerate(counts)
        for begin in range(len(word))
        for end in range(begin + 1, len(word) + 1)
        if word[begin:end] in number
    ]
    times = list(counts.values())
    most = np.zeros(len(known), int)
    for w, _, _, piece in edges:
        most[piece] += times[w]
    whole = sum(n * len(word) for word, n in counts.items())
    # Variables: edges, kept pieces, values of counts, values of the number of all pieces.
    first = np.cumsum([len(edges), len(known), *(most + 1)])
    size = int(first[-1]) + whole + 1
    objective = np.zeros(size)
    for piece, n in enumerate(most):
        objective[first[1 + piece] : first[2 + piece]] = -_clogc(np.arange(n + 1))
    objective[first[-1] :] = _clogc(np.arange(whole + 1))
    rows: list[tuple[dict[int, float], float, float]] = []
    for w, word in enumerate(counts):
        for place in range(len(word)):
            flow: dict[int, float] = {}
            for e, (own, begin, end, _) in enumerate(edges):
                if own == w and place in (begin, end):
                    flow[e] = 1.0 if place == begin else -1.0
            rows.append((flow, float(place == 0), float(place == 0)))
    for e, (_, _, _, piece) in enumerate(edges):
        if piece >= len(characters):
            rows.append(({e: 1.0, int(first[0]) + piece: -1.0}, -np.inf, 0.0))
    kept = {int(first[0]) + i: 1.0 for i in range(len(characters), len(known))}
    rows.append((kept, 0.0, float(vocabulary - len(characters))))
    total: dict[int, float] = {int(first[-1]) + k: -float(k) for k in range(whole + 1)}
    for piece, n in enumerate(most):
        values = {int(first[1 + piece]) + k: float(k) for k in range(n + 1)}
        of_edges = {e: -float(times[edge[0]]) for e, edge in enumerate(edges) if edge[3] == piece}
        rows.append((values | of_edges, 0.0, 0.0))
        rows.append((dict.fromkeys(values, 1.0), 1.0, 1.0))
        total |= values
    rows.append((total, 0.0, 0.0))
    rows.append(({int(first[-1]) + k: 1.0 for k in range(whole + 1)}, 1.0, 1.0))
    matrix = sparse.lil_array((len(rows), size))
    for i, (row, _, _) in enumerate(rows):
        matrix[i, list(row)] = list(row.values())
    limits = optimize.LinearConstraint(
        matrix.tocsr(), np.array([low for _, low, _ in rows]), np.array([high for *_, high in rows])
    )
    found = optimize.milp(
        objective, constraints=limits, integrality=np.ones(size), bounds=optimize.Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.status != 0:
        raise DataError(f"no optimum of {size} variables in {seconds:g} s: {found.message}")
    used: Bool[np.ndarray, " e"] = found.x[: len(edges)] > 0.5
    of_pieces = dict.fromkeys(known, 0.0)
    for (w, _, _, piece), on in zip(edges, used, strict=True):
        of_pieces[known[piece]] += times[w] * bool(on)
    of_pieces = {piece: n for piece, n in of_pieces.items() if n or len(piece) == 1}
    sum_ = sum(of_pieces.values())
    logs = {piece: np.log(n / sum_) if n else -np.inf for piece, n in of_pieces.items()}
    return Unigram(logs, of_pieces, -float(found.fun))
