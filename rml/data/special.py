"""The tokens of a vocabulary that are no words."""

from typing import Any, NamedTuple

from rml.data.errors import DataError
from rml.data.tokens import SPECIAL


class SpecialTokens(NamedTuple):
    """Numbers of the tokens that are no words; words have those from `words` on.

    Attributes:
      padding: Number of the token that fills a row.
      first: Number of the token that begins a text.
      last: Number of the token that ends a text.
      mask: Number of the token that stands for a masked word.
      words: Number of the first word.
      vocabulary: Number of all tokens.
    """

    padding: int
    first: int
    last: int
    mask: int
    words: int
    vocabulary: int

    @property
    def ends(self) -> dict[str, int]:
        """The tokens around a text and behind it, for `rml.contrastive.with_ends`."""
        return {"first": self.first, "last": self.last, "padding": self.padding}

    @property
    def drawn(self) -> tuple[int, int, int]:
        """Mask token, first word and size of the vocabulary, for `rml.contrastive.corrupt`.

        Raises:
          DataError: If no word follows the special tokens.
        """
        if self.words >= self.vocabulary:
            raise DataError(
                f"the last special token is number {self.words - 1} of {self.vocabulary} tokens; "
                "expected words behind it, of which some are drawn"
            )
        return self.mask, self.words, self.vocabulary

    @classmethod
    def of(cls, tokenizer: Any) -> "SpecialTokens":
        """Finds those of a tokenizer with BERT's names for them.

        Args:
          tokenizer: A `tokenizers.Tokenizer`.

        Returns:
          Their numbers.

        Raises:
          DataError: If the tokenizer lacks one of `SPECIAL`.
        """
        numbers = {name: tokenizer.token_to_id(name) for name in SPECIAL}
        missing = [name for name, number in numbers.items() if number is None]
        if missing:
            raise DataError(f"the tokenizer has no token {missing[0]!r}, expected {SPECIAL}")
        return cls._of(numbers, tokenizer.get_vocab_size())

    @classmethod
    def trained(cls, vocabulary: int) -> "SpecialTokens":
        """Returns those of `train_tokenizer`, known before it has learned its vocabulary.

        Args:
          vocabulary: The most tokens that it learns. Of few texts it learns fewer, see `of`.
        """
        return cls._of({name: number for number, name in enumerate(SPECIAL)}, vocabulary)

    @classmethod
    def _of(cls, numbers: dict[str, int], vocabulary: int) -> "SpecialTokens":
        return cls(
            padding=numbers["[PAD]"],
            first=numbers["[CLS]"],
            last=numbers["[SEP]"],
            mask=numbers["[MASK]"],
            words=max(numbers.values()) + 1,
            vocabulary=vocabulary,
        )
