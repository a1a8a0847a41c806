"""Texts as arrays of token numbers: encoding, batches of few shapes, and vocabularies of one's own.

Tokenizers are those of the `tokenizers` package, passed in by the caller.
"""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from rml.data.errors import DataError
from rml.data.source import Arrays
from rml.errors import install

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Tokens 0 to 4 of every vocabulary that is trained here."""

WIDTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 513, 64))
"""Lengths that batches are padded to; longer ones grow by an eighth."""

_CONFIGURING = threading.Lock()


def encode(
    tokenizer: Any, texts: Sequence[str], *, max_length: int, special: bool = True
) -> list[Int[np.ndarray, " _"]]:
    """Encodes texts as token numbers.

    What does not fit is cut off the end of the text, before the special tokens that end it. The
    name of a special token within a text, such as "[MASK]", is text. The tokenizer's own settings
    of truncation, padding and special tokens are not used, and stay as they are.

    Args:
      tokenizer: A `tokenizers.Tokenizer`.
      texts: Any strings, empty ones too.
      max_length: The most tokens of one text, special ones included.
      special: Whether to add the special tokens that begin and end a text.

    Returns:
      One int32 array a text.

    Raises:
      DataError: If a text is no string, or `max_length` holds no more than the special tokens.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"text {index} is {type(text).__name__} {text!r:.80}, expected a string"
            )
    added = tokenizer.num_special_tokens_to_add(False) if special else 0
    if max_length <= added:
        raise DataError(
            f"max_length={max_length} holds no text beside {added} special tokens: expected at "
            f"least {added + 1}"
        )
    with _CONFIGURING:  # settings belong to the tokenizer, which other threads may use
        truncation, padding = tokenizer.truncation, tokenizer.padding
        names_are_text = tokenizer.encode_special_tokens
        try:
            tokenizer.encode_special_tokens = True
            tokenizer.no_padding()
            tokenizer.enable_truncation(max_length)
            encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        finally:
            tokenizer.encode_special_tokens = names_are_text
            tokenizer.no_truncation()
            if truncation is not None:
                tokenizer.enable_truncation(**truncation)
            if padding is not None:
                tokenizer.enable_padding(**padding)
    return [np.array(one.ids, np.int32) for one in encoded]


def check_texts(texts: Sequence[Any]) -> None:
    """Raises `DataError` where a text is no string, or holds half of a character."""
    if isinstance(texts, str):
        raise DataError(f"expected a list of texts, got one string {texts!r:.80}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"text {index} is {type(text).__name__} {text!r:.80}, expected a string"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {index} holds {text[error.start]!r} at {error.start}, half of a character; "
                "expected text that was decoded whole"
            ) from None


def pad(
    sequences: Sequence[Int[np.ndarray, " _"]],
    *,
    width: int | None = None,
    rows: int | None = None,
    pad_id: int = 0,
) -> tuple[Int[np.ndarray, "b width"], Bool[np.ndarray, "b width"]]:
    """Stacks sequences into one array.

    Args:
      sequences: Sequences of tokens.
      width: Width of the array; the longest sequence's if not given.
      rows: Number of rows; as many as sequences if not given. Rows beyond them have no tokens.
      pad_id: Token that fills up.

    Returns:
      Tokens, and where they are not filled up.

    Raises:
      ValueError: If a sequence is longer than `width` or there are more than `rows`.
    """
    lengths = np.array([len(one) for one in sequences], int)
    longest = int(lengths.max(initial=0))
    width = longest if width is None else width
    rows = len(sequences) if rows is None else rows
    if longest > width or len(sequences) > rows:
        raise ValueError(
            f"{len(sequences)} sequences of up to {longest} tokens do not fit [{rows}, {width}]"
        )
    mask = np.zeros((rows, width), bool)
    mask[: len(lengths)] = np.arange(width) < lengths[:, None]
    tokens = np.full((rows, width), pad_id, np.int32)
    if len(sequences):
        tokens[mask] = np.concatenate(sequences)
    return tokens, mask


class Bucket(NamedTuple):
    """One batch: which sequences it holds and the shape that they are padded to."""

    members: np.ndarray
    rows: int
    width: int


def length_buckets(
    lengths: Int[np.ndarray, " n"],
    *,
    batch_tokens: int,
    multiple: int = 1,
    max_width: int | None = None,
) -> list[Bucket]:
    """Makes batches of sequences of similar length, in few shapes, so that few programs compile.

    Sequences are taken from the longest to the shortest. A batch is as wide as its first sequence,
    rounded up to the next of `WIDTHS`, and as many rows high as `batch_tokens` hold. The last
    batch has the next power of two of rows.

    Args:
      lengths: Lengths of the sequences.
      batch_tokens: The most tokens of a batch, what fills up included. A batch has at least
        `multiple` rows, whatever that makes.
      multiple: Rows are a multiple of it, such as the number of devices.
      max_width: No batch is wider, where a model takes no more; no sequence may be longer.

    Returns:
      Batches that hold every sequence once.
    """
    order = np.argsort(-lengths, kind="stable")
    found, start = [], 0
    while start < len(order):
        width = min(width_of(int(lengths[order[start]])), max_width or sys.maxsize)
        most = max(batch_tokens // width // multiple, 1) * multiple
        members = order[start : start + most]
        rows = min(most, -(-(1 << (len(members) - 1).bit_length()) // multiple) * multiple)
        found.append(Bucket(members, rows, width))
        start += len(members)
    return found


def width_of(length: int) -> int:
    """Finds the least of the widths that batches have which holds `length` tokens."""
    for width in WIDTHS:
        if length <= width:
            return width
    while width < length:
        width += 64 * (width // 512)
    return width


def padding_waste(lengths: Int[np.ndarray, " n"], buckets: Sequence[Bucket]) -> float:
    """Computes the share of all tokens of these batches that only fill up."""
    whole = sum(bucket.rows * bucket.width for bucket in buckets)
    return 1 - float(lengths.sum()) / whole if whole else 0.0


def token_source(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int,
    label: Int[np.ndarray, " n"] | None = None,
    pad_id: int = 0,
    name: str = "texts",
    split: str = "all",
) -> Arrays:
    """Encodes texts once, for `rml.data.batches`.

    Args:
      tokenizer: A `tokenizers.Tokenizer`.
      texts: Texts, at least one.
      max_length: L, the most tokens of one text, special ones included; longer ones are cut.
      label: Class of each text.
      pad_id: Token that fills up.
      name: Name of the data set, for messages.
      split: Name of the split, for messages.

    Returns:
      A source of `{"tokens": int32 [L], "length": int32, "index": int32}`, the index being the
      text's place in `texts`; with "label" where labels are given.

    Raises:
      DataError: If there is no text, one is no string, or labels do not fit the texts.
    """
    filled, mask = pad(
        encode(tokenizer, texts, max_length=max_length), width=max_length, pad_id=pad_id
    )
    arrays = {
        "tokens": filled,
        "length": mask.sum(axis=1, dtype=np.int32),
        "index": np.arange(len(texts), dtype=np.int32),
    }
    if label is not None:
        arrays["label"] = label.astype(np.int32)
    return Arrays(arrays, name=name, split=split)


def train_tokenizer(
    texts: Sequence[str],
    *,
    vocabulary: int = 8192,
    lowercase: bool = True,
    path: Path | None = None,
) -> Any:
    """Learns a vocabulary of byte pairs; the same texts in the same order give the same one.

    WordPiece is not offered: the trainer of `tokenizers` breaks its ties at random.

    Args:
      texts: Texts to learn from.
      vocabulary: The most tokens, `SPECIAL` and the 256 bytes included.
      lowercase: Whether case is left out; otherwise nothing is lost: every text can be decoded
        again from what `encode` makes of it.
      path: File to write it to, a `tokenizer.json`; not written if not given.

    Returns:
      A `tokenizers.Tokenizer` that encodes as `[CLS] text [SEP]`.

    Raises:
      DataError: If `tokenizers` is missing, there is no text, or the vocabulary is too small.
    """
    tokenizers = import_tokenizers()
    if not any(text.strip() for text in texts):
        raise DataError(f"a vocabulary is learned from texts: got {len(texts)}, none with a word")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    least = len(SPECIAL) + len(alphabet)
    if vocabulary < least:
        raise DataError(f"vocabulary={vocabulary} is too small, expected at least {least}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if lowercase:
        tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(path))
    return tokenizer


def load_tokenizer(path: str | Path) -> Any:
    """Reads a `tokenizer.json`.

    Raises:
      DataError: If `tokenizers` is missing, or there is no such file or it is no tokenizer.
    """
    if not Path(path).is_file():
        raise DataError(f"there is no file {path}, expected a tokenizer.json")
    try:
        return import_tokenizers().Tokenizer.from_file(str(path))
    except DataError:
        raise
    except Exception as error:  # the package raises nothing narrower
        raise DataError(f"{path} is no tokenizer.json: {error}") from error


def import_tokenizers() -> Any:
    """Imports the package `tokenizers`; raises `DataError` where it is missing."""
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            f"a tokenizer needs the package tokenizers: {install('pretrained')}"
        ) from error
    return tokenizers
