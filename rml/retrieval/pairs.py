"""Pairs of a query and its document in tokens, each with candidates for its negatives."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int

from rml import data
from rml.data import tokens
from rml.data.collections import RetrievalData
from rml.data.pipeline import check_part
from rml.retrieval.negatives import known_pairs, pair_numbers


def pair_batches(
    tokenizer: Any,
    collection: RetrievalData,
    candidates: Int[np.ndarray, "p c"],
    *,
    lengths: tuple[int, int],
    pad_id: int = 0,
    name: str = "pairs",
    split: str = "all",
    part: int = 0,
    parts: int = 1,
    **options: Any,
) -> grain.IterDataset:
    """Makes batches of the pairs `collection.answers`, each text encoded once.

    Args:
      tokenizer: A `tokenizers.Tokenizer`.
      collection: Queries and documents.
      candidates: Documents from which a pair's negatives are taken, for each of p pairs.
      lengths: The most tokens of a query and of a document, special ones included; longer ones
        are cut.
      pad_id: Number of the token that fills a row.
      name: Name of the collection, for messages.
      split: Name of its split, for messages.
      part: Number of our part of the global batch.
      parts: Number of equal parts.
      **options: Further arguments of `rml.data.batches`.

    Returns:
      Batches of the shapes of `pair_spec`.

    Raises:
      ValueError: If there are not as many rows of candidates as pairs, a batch has no equal parts,
        or there is no such part.
    """
    query, document, _ = collection.answers
    check_part(part, parts)
    if options["batch_size"] % parts:
        raise ValueError(f"batch_size={options['batch_size']} has no {parts} equal parts")
    if parts > 1 and not options.get("drop_remainder", True):
        raise ValueError(f"{parts} parts need equal batches: drop_remainder must be True")
    if len(candidates) != len(query):
        raise ValueError(
            f"{len(query)} pairs need as many rows of candidates, got {len(candidates)}"
        )

    def encoded(kind: str, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
        numbers = tokens.encode(tokenizer, texts, max_length=length)
        filled, mask = tokens.pad(numbers, width=length, pad_id=pad_id)
        return {kind: filled, f"{kind}_length": mask.sum(axis=1, dtype=np.int32)}

    def look_up(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        size = len(batch["query"]) // parts
        own = slice(part * size, (part + 1) * size)
        found = {key: rows[batch["query"][own]] for key, rows in asked.items()}
        for kind in ("document", "candidates"):
            places = batch[kind][own]
            found |= {key.replace("document", kind): rows[places] for key, rows in texts.items()}
            # What is in other parts is a negative of our rows too.
            asking = batch["query"][own].reshape(-1, *(1,) * batch[kind].ndim)
            found[f"{kind}_known"] = np.isin(numbered(asking, batch[kind]), known)
        found["document_known"] &= ~np.eye(len(batch["query"]), dtype=bool)[own]
        return found

    asked = encoded("query", collection.queries, lengths[0])
    texts = encoded("document", collection.documents, lengths[1])
    numbered = partial(pair_numbers, documents=len(collection.documents))
    known = known_pairs(query, document, documents=len(collection.documents), own=collection.own)
    pairs = {"query": query, "document": document, "candidates": candidates}
    source = data.Arrays(pairs, name=name, split=split)
    return data.batches(source, **options).map(look_up)


def pair_spec(
    batch_size: int, *, lengths: tuple[int, int], candidates: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes of a batch of `pair_batches`, known without opening data.

    Args:
      batch_size: Number of pairs b.
      lengths: Numbers of tokens of a query q and of a document d.
      candidates: Number of candidates c of a pair.

    Returns:
      `query [b, q]`, `document [b, d]` and `candidates [b, c, d]`, and of each its lengths,
      `query_length [b]` and so on; `document_known [b, b]`, true where another row's document
      answers the row's query or is that query itself; and `candidates_known [b, b, c]`, the same of
      candidates, of which one may be the row's own document, drawn for another row.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "query": (batch_size, lengths[0]),
        "document": (batch_size, lengths[1]),
        "candidates": (batch_size, candidates, lengths[1]),
    }
    shapes |= {f"{name}_length": shape[:-1] for name, shape in shapes.items()}
    spec = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
    known = {"document": (), "candidates": (candidates,)}
    return spec | {
        f"{name}_known": jax.ShapeDtypeStruct((batch_size, batch_size, *rest), np.bool_)
        for name, rest in known.items()
    }
