"""What embeds texts for the recipe of TempScale: a trained encoder, by every method."""

import functools
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.texts import TextModel
from experiments.retrieval.common import judge_ranking
from rml.data.collections import RetrievalData, indexed
from rml.data.tokens import encode as tokenised
from rml.errors import UserError
from rml.models.attention import named, tempered
from rml.models.text_encoder import TextEncoder
from rml.retrieval import (
    Choice,
    Tuned,
    choose_temperature,
    chunked_encode,
    embed,
    fit_whitening,
    scale_by_length,
    search,
    temper,
    tuned_encode,
    whiten,
)
from rml.training import make_mesh

PLAIN, TEMPERED = "as it is", "tempscale"


def temper_last(encoder: TextEncoder, temperature: float | jax.Array) -> TextEncoder:
    """An encoder of whose layers the last alone has a temperature other than 1."""
    backbone: Any = encoder.backbone
    own = named(backbone.attention)
    layers = (*(own,) * (backbone.depth - 1), tempered(own, temperature))
    return encoder.clone(backbone=backbone.clone(attention=layers))


CHANGES = {TEMPERED: temper, "last_layer": temper_last, "log_length": scale_by_length}
"""Methods with one number that is a variable of the encoder's program."""
METHODS = (*CHANGES, "chunks", "whitening")


class Vectors(NamedTuple):
    """Embeddings of a collection."""

    queries: jax.Array
    documents: jax.Array


class Embedders:
    """A trained encoder with every change, each compiled once for a shape of texts.

    What methods have in common, such as the temperature 1, is embedded once.
    """

    def __init__(self, config: Any, model: TextModel):
        """Puts the variables on the mesh.

        Args:
          config: The run's config, of which `evaluation`, `mesh` and `seed` are read.
          model: The encoder.
        """
        self.model, self.options = model, config.evaluation
        self.mesh = make_mesh(config.mesh)
        self.variables = model.init(jax.random.key(config.seed))
        self.tuned = {name: tuned_encode(model.module, how) for name, how in CHANGES.items()}
        self.chunked = functools.cache(partial(chunked_encode, model.module))
        self.longest = min(self.options.max_length, model.module.backbone.positions)
        self.embed = functools.cache(self._embed)

    def __call__(
        self, name: str, value: float, texts: Sequence[str], longest: int | None = None
    ) -> jax.Array:
        """Vectors of texts by a method, cut to `longest` tokens."""
        return self.embed(name, float(value), tuple(texts), longest or self.longest)

    def _embed(self, name: str, value: float, texts: tuple[str, ...], longest: int) -> jax.Array:
        if name in CHANGES:
            encode, variables = self.tuned[name], Tuned(self.variables, jnp.float32(value))
        else:
            encode, variables = self.chunked(int(value)), self.variables
        return jnp.asarray(
            embed(
                encode, variables, self.model.tokenizer, texts,
                max_length=longest, batch_tokens=self.options.batch_tokens,
                mesh=self.mesh,
            )
        )  # fmt: skip

    def both(self, name: str, value: float, data: RetrievalData) -> Vectors:
        """Vectors of a collection's queries and documents by a method."""
        queries = self(name, value, data.queries, self.options.query_length)
        return Vectors(queries, self(name, value, data.documents))


def sample(
    config: Any, model: TextModel, part: str, without: Collection[str] = ()
) -> RetrievalData:
    """Documents of a part drawn by the seed, with their queries.

    Args:
      config: The run's config.
      model: The encoder, which knows the texts.
      part: "validation" or "test".
      without: Ids of documents that are not drawn: splits of pages have the same ones.
    """
    data, count = model.corpus.collection(config.data.tasks[0], part), config.documents[part]
    left = [at for at, one in enumerate(data.document_ids) if one not in without]
    if count > len(left):
        raise UserError(
            f"documents.{part} is {count}, expected at most the {len(left)} of "
            f"{config.data.name!r} {config.data[part]!r}"
        )
    rng = np.random.default_rng([config.seed, part == "test"])
    kept = {left[at] for at in rng.choice(len(left), count, replace=False)}
    judged = [
        row for row in zip(*map(np.ndarray.tolist, data.answers), strict=True) if row[1] in kept
    ]
    queries = sorted({query for query, *_ in judged})
    return indexed(
        {data.document_ids[at]: data.documents[at] for at in sorted(kept)},
        {data.query_ids[at]: data.queries[at] for at in queries},
        [(data.query_ids[query], data.document_ids[at], grade) for query, at, grade in judged],
    )


def embedding(
    embedders: Embedders, name: str, fit: Vectors
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """What embeds queries, and what documents, by a method's value.

    Args:
      embedders: Embedders of the encoder.
      name: One of `METHODS`.
      fit: Vectors of the encoder as it is, that whitening is fitted to. The recipe gives those of
        validation: they are other texts on the test split, and the ranked ones themselves where
        the value is chosen.
    """
    longest = embedders.options.query_length
    if name != "whitening":
        return partial(embedders, name, longest=longest), partial(embedders, name)

    def whitened(centred: jax.Array, longest: int | None) -> Callable[..., jax.Array]:
        def of(value: float, texts: Sequence[str]) -> jax.Array:
            # Queries and documents have one map, of the documents; each has its own centre.
            fitted = fit_whitening(fit.documents, shrinkage=float(value))
            fitted = fitted._replace(center=jnp.mean(centred, axis=0))
            return whiten(embedders(TEMPERED, 1.0, texts, longest), fitted)

        return of

    return whitened(fit.queries, longest), whitened(fit.documents, None)


def changed(
    embedders: Embedders, name: str, value: float, data: RetrievalData, fit: Vectors
) -> Vectors:
    """Vectors of a collection by a method, see `embedding`."""
    of_queries, of_documents = embedding(embedders, name, fit)
    return Vectors(of_queries(value, data.queries), of_documents(value, data.documents))


def choose(
    embedders: Embedders, name: str, values: Sequence[float], data: RetrievalData,
    wanted: np.ndarray, fit: Vectors,
) -> Choice:  # fmt: skip
    """A method's best value by nDCG@10 of some of a collection's queries among all documents.

    Args:
      embedders: Embedders of the encoder.
      name: One of `METHODS`.
      values: What to choose from.
      data: The collection.
      wanted: Which queries count, bool [queries].
      fit: See `embedding`.
    """
    of_queries, of_documents = embedding(embedders, name, fit)
    query, document, grade = data.answers
    kept, place = wanted[query], np.cumsum(wanted) - 1
    return choose_temperature(
        of_documents,
        [text for text, own in zip(data.queries, wanted, strict=True) if own],
        data.documents,
        (place[query[kept]], document[kept], grade[kept]),
        values,
        embed_queries=of_queries,
    )


def ndcg(data: RetrievalData, vectors: Vectors) -> np.ndarray:
    """nDCG@10 of every query."""
    return judge_ranking(data, lambda _, k: search(*vectors, k=k))["ndcg"]


def answer_lengths(model: TextModel, data: RetrievalData) -> np.ndarray:
    """Tokens of the longest answer of every query."""
    tokens = text_lengths(model, data.documents)
    longest = np.zeros(len(data.queries), int)
    query, document, _ = data.answers
    np.maximum.at(longest, query, tokens[document])
    return longest


def text_lengths(model: TextModel, texts: Sequence[str]) -> np.ndarray:
    """Numbers of tokens, as many as the encoder's positions at most."""
    rows = tokenised(model.tokenizer, texts, max_length=model.module.backbone.positions)
    return np.array([len(row) for row in rows])


def long_texts(config: Any, model: TextModel, data: RetrievalData) -> list[str]:
    """The first documents that fill the longest cut, as many as `cut_texts` says at most.

    Raises:
      UserError: There are fewer than four, of which intervals would say nothing.
    """
    lengths = text_lengths(model, data.documents)
    rows = np.flatnonzero(lengths >= max(config.cuts))[: config.cut_texts]
    if len(rows) < 4:
        raise UserError(
            f"{len(rows)} sampled documents have the {max(config.cuts)} tokens of the longest of "
            "cuts, expected 4 or more"
        )
    return [data.documents[row] for row in rows]
