"""Tokenizers of GGUF files: byte-level byte pairs, and SentencePiece's byte pairs and unigrams."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rml.errors import UserError, unknown
from rml.models.pretrained.ends import put_ends
from rml.models.pretrained.extra import require

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6  # of `tokenizer.ggml.token_type`
SPACE = "▁"  # SentencePiece's


class _Rule(NamedTuple):
    """How texts are cut before byte pairs are merged.

    Attributes:
      digits: Whether every digit stands alone.
      pattern: What is a piece; None for GPT-2's own rule.
      whole: Whether a piece that is a token is not built by merges.
      begin: Whether a text begins with a token of its own, where the file does not say it.
      composed: Whether characters are composed first (NFC).
    """

    digits: bool = False
    pattern: str | None = None
    whole: bool = False
    begin: bool = False
    composed: bool = False


# Llama 3's and Qwen2's; they differ in how many digits are one piece.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# By `tokenizer.ggml.pre`.
RULES = {
    "gpt-2": _Rule(),
    "smollm": _Rule(digits=True),
    "llama-bpe": _Rule(pattern=_PATTERN.replace("DIGITS", "{1,3}"), whole=True, begin=True),
    "qwen2": _Rule(pattern=_PATTERN.replace("DIGITS", ""), composed=True),
}


class _Vocabulary(NamedTuple):
    """What tokenizers of all kinds have: metadata, the file for messages, tokens and types."""

    fields: Mapping[str, Any]
    file: Path
    tokens: Sequence[str]
    types: Sequence[int]

    def get(self, key: str, default: Any = None) -> Any:
        return self.fields.get(f"tokenizer.ggml.{key}", default)

    def need(self, key: str) -> Any:
        found = self.get(key)
        if found is None:
            raise UserError(f"there is no 'tokenizer.ggml.{key}' in {self.file}")
        return found

    def each(self, key: str) -> Sequence[Any]:
        """Reads what is said of every token.

        Raises:
          UserError: There is nothing, or more or less than tokens.
        """
        found: Sequence[Any] = self.need(key)
        if len(found) != len(self.tokens):
            raise UserError(
                f"tokenizer.ggml.{key} has {len(found)} entries in {self.file}; "
                f"expected {len(self.tokens)}, one a token"
            )
        return found

    def number(self, key: str) -> int:
        """Reads the number of a token.

        Raises:
          UserError: There is none, or no such token.
        """
        found = self.need(key)
        if not isinstance(found, int) or not 0 <= found < len(self.tokens):
            raise UserError(
                f"tokenizer.ggml.{key} is {found!r} in {self.file}; "
                f"expected one of {len(self.tokens)} tokens"
            )
        return found

    def of_type(self, kind: int) -> list[str]:
        return [token for token, t in zip(self.tokens, self.types, strict=True) if t == kind]


def read_tokenizer(fields: Mapping[str, Any], file: Path) -> Any:
    """Makes the `tokenizers.Tokenizer` that the metadata of a GGUF file describe.

    Raises:
      UserError: The tokenizer is of another kind, cuts texts by an unknown rule, or lacks a part.
    """
    vocabulary = _Vocabulary(fields, file, [], [])
    tokens, kind = vocabulary.need("tokens"), vocabulary.need("model")
    vocabulary = vocabulary._replace(tokens=tokens)
    typed = vocabulary.get("token_type") is not None
    types = vocabulary.each("token_type") if typed else [NORMAL] * len(tokens)
    vocabulary = vocabulary._replace(types=types)
    if kind not in KINDS:
        raise unknown(f"tokenizer.ggml.model in {file}", kind, KINDS)
    made, begin, end = KINDS[kind](vocabulary)
    added = require("tokenizers").AddedToken
    made.add_special_tokens([added(t, normalized=False) for t in vocabulary.of_type(CONTROL)])
    made.add_tokens([added(t, normalized=False) for t in vocabulary.of_type(USER_DEFINED)])
    _add_ends(made, vocabulary, begin=begin, end=end)
    return made


def _add_ends(made: Any, vocabulary: _Vocabulary, *, begin: bool, end: bool) -> None:
    """Puts tokens before and after each text, where the file says so or else by default."""
    kinds = [
        kind
        for kind, default in (("bos", begin), ("eos", end))
        if vocabulary.get(f"add_{kind}_token", default)
    ]
    if not kinds:
        return
    ids = {kind: vocabulary.number(f"{kind}_token_id") for kind in kinds}
    put_ends(made, *([ids[kind]] if kind in ids else [] for kind in ("bos", "eos")))


def _byte_pairs(vocabulary: _Vocabulary) -> tuple[Any, bool, bool]:
    """Byte pairs of bytes, as in GPT-2, Llama 3 and Qwen2."""
    tokenizers = require("tokenizers")
    name = vocabulary.need("pre")
    if name not in RULES:
        raise unknown(f"tokenizer.ggml.pre in {vocabulary.file}", name, RULES)
    rule, cut = RULES[name], tokenizers.pre_tokenizers
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = [tuple(pair.split(" ")) for pair in vocabulary.need("merges")]
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            raise UserError(
                f"tokenizer.ggml.merges has {' '.join(pair)!r} in {vocabulary.file}; "
                "expected two tokens, a space between, that make a third"
            )
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.whole)
    )
    spaced = bool(vocabulary.get("add_space_prefix", False))
    steps = [cut.Digits(individual_digits=True)] if rule.digits else []
    if rule.pattern is not None:
        steps.append(cut.Split(tokenizers.Regex(rule.pattern), "isolated"))
    last = cut.ByteLevel(add_prefix_space=spaced, use_regex=rule.pattern is None)
    made.pre_tokenizer = cut.Sequence([*steps, last])
    if rule.composed:
        made.normalizer = tokenizers.normalizers.NFC()
    made.decoder = tokenizers.decoders.ByteLevel()
    return made, rule.begin, False


def _sentencepiece_pairs(vocabulary: _Vocabulary) -> tuple[Any, bool, bool]:
    """SentencePiece's byte pairs, as in LLaMA 2 and Mistral: the best token is merged first."""
    tokenizers = require("tokenizers")
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    scores = vocabulary.each("scores")
    merges = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        token = vocabulary.tokens[index]
        if vocabulary.types[index] == NORMAL:
            halves = ((token[:at], token[at:]) for at in range(1, len(token)))
            merges += [pair for pair in halves if pair[0] in vocab and pair[1] in vocab]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=_unknown(vocabulary),
            fuse_unk=True,
            byte_fallback=BYTE in vocabulary.types,
        )
    )
    prefix = bool(vocabulary.get("add_space_prefix", True))
    change, back = tokenizers.normalizers, tokenizers.decoders
    steps = [change.Prepend(SPACE)] if prefix else []
    made.normalizer = change.Sequence([*steps, change.Replace(" ", SPACE)])
    stripped = [back.Strip(" ", 1, 0)] if prefix else []
    made.decoder = back.Sequence(
        [back.Replace(SPACE, " "), back.ByteFallback(), back.Fuse(), *stripped]
    )
    return made, True, False


def _unigrams(vocabulary: _Vocabulary) -> tuple[Any, bool, bool]:
    """SentencePiece's unigrams, as in T5: the most probable cut."""
    tokenizers = require("tokenizers")
    change, unknown_token = tokenizers.normalizers, _unknown(vocabulary)
    made = tokenizers.Tokenizer(
        tokenizers.models.Unigram(
            list(zip(vocabulary.tokens, map(float, vocabulary.each("scores")), strict=True)),
            vocabulary.tokens.index(unknown_token) if unknown_token else None,
            BYTE in vocabulary.types,
        )
    )
    charsmap = vocabulary.get("precompiled_charsmap")
    steps = [change.Precompiled(bytes(charsmap))] if charsmap else []
    if vocabulary.get("remove_extra_whitespaces", True):
        steps += [change.Strip(), change.Replace(tokenizers.Regex(" {2,}"), " ")]
    made.normalizer = change.Sequence(steps)
    scheme = "always" if vocabulary.get("add_space_prefix", True) else "never"
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(SPACE, scheme)
    back = tokenizers.decoders
    made.decoder = back.Sequence(
        [back.ByteFallback(), back.Metaspace(SPACE, scheme)]
        if BYTE in vocabulary.types
        else [back.Metaspace(SPACE, scheme)]
    )
    return made, False, True


def _unknown(vocabulary: _Vocabulary) -> str | None:
    if vocabulary.get("unknown_token_id") is None:
        return None
    return vocabulary.tokens[vocabulary.number("unknown_token_id")]


KINDS: dict[str, Callable[[_Vocabulary], tuple[Any, bool, bool]]] = {
    "gpt2": _byte_pairs,
    "llama": _sentencepiece_pairs,
    "t5": _unigrams,
}
