"""Tokens that a tokenizer puts before and after each text."""

from collections.abc import Sequence
from typing import Any

from rml.models.pretrained.extra import require


def find_ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Finds the numbers of the tokens before a text and of those after it."""
    tokenizers = require("tokenizers")
    probe = tokenizers.Tokenizer(tokenizers.models.WordLevel({"text": 0}, unk_token="text"))
    probe.post_processor = tokenizer.post_processor
    found = probe.encode("text")
    at = found.special_tokens_mask.index(0)
    return found.ids[:at], found.ids[at + 1 :]


def put_ends(tokenizer: Any, before: Sequence[int], after: Sequence[int]) -> None:
    """Makes a tokenizer put these tokens before each text and those after it, and no others."""
    first, last = ([tokenizer.id_to_token(index) for index in ids] for ids in (before, after))
    tokenizer.post_processor = require("tokenizers").processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, "$B", *last],
        special_tokens=[(tokenizer.id_to_token(index), index) for index in (*before, *after)],
    )
