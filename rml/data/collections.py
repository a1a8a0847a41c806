"""Collections made of data sets: which of their texts ask, which are found, and which answer."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rml.data.duplicates import normalized

PAGE, ASKED = 1500, 300
"""Characters of a manual's page that are searched, and searched for."""


class Qrels(NamedTuple):
    """Judgements: the document at `document[i]` answers the query at `query[i]` as `grade[i]` says.

    Attributes:
      query: int32 `[r]`, positions in the queries, ascending.
      document: int32 `[r]`, positions in the documents.
      grade: int32 `[r]`, 0 or below where a document was judged not to answer.
    """

    query: Int[np.ndarray, " r"]
    document: Int[np.ndarray, " r"]
    grade: Int[np.ndarray, " r"]


@dataclass(frozen=True)
class RetrievalData:
    """Documents, queries, and which answer which.

    Attributes:
      documents: Texts, the title first where there is one.
      document_ids: Identity of each; where a document is from a file, its name and line.
      queries: Texts; none where a folder of texts has no queries.
      query_ids: Identity of each.
      qrels: Judgements.
      labels: int32 `[n]`, the class of each document, where there are classes.
      class_names: Names by label.
    """

    documents: list[str]
    document_ids: list[str]
    queries: list[str]
    query_ids: list[str]
    qrels: Qrels
    labels: Int[np.ndarray, " n"] | None = None
    class_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"RetrievalData({len(self.documents)} documents, {len(self.queries)} queries, "
            f"{len(self.qrels.query)} judgements)"
        )

    @property
    def answers(self) -> Qrels:
        """The judgements by which a document answers a query, those of a grade above 0."""
        return self._judged(self.qrels.grade > 0)

    @property
    def own(self) -> Int[np.ndarray, " q"]:
        """The document of each query's own id, -1 where there is none.

        A page that asks is no answer to itself and no negative either. BEIR's evaluation takes a
        document of the query's id for the query too.
        """
        places = {name: at for at, name in enumerate(self.document_ids)}
        return np.array([places.get(name, -1) for name in self.query_ids], np.int32)

    def first_queries(self, count: int) -> "RetrievalData":
        """Returns the collection with its first queries alone, and all of its documents."""
        return replace(
            self,
            queries=self.queries[:count],
            query_ids=self.query_ids[:count],
            qrels=self._judged(self.qrels.query < count),
        )

    def _judged(self, kept: np.ndarray) -> Qrels:
        return Qrels(*(column[kept] for column in self.qrels))


class Pairing(NamedTuple):
    """Which texts of an example ask and answer.

    Attributes:
      identity: Feature that names an example.
      query: Feature that asks.
      document: Feature that is found.
      group: Feature whose values are the documents' classes; none if empty.
      masked: Feature whose words are taken out of the document; none if empty.
      query_words: The fewest words of a query.
      document_words: The fewest words of a document.
    """

    identity: str
    query: str
    document: str
    group: str = ""
    masked: str = ""
    query_words: int = 0
    document_words: int = 0

    @property
    def features(self) -> tuple[str, ...]:
        """Features that are read."""
        names = (self.identity, self.query, self.document, self.group, self.masked)
        return tuple(dict.fromkeys(filter(None, names)))


PAIRINGS: dict[str, dict[str, Pairing]] = {
    "pydocs": {
        "docstring_to_code": Pairing("name", "docstring", "code", group="package"),
        "title_to_description": Pairing(
            "name", "title", "description", group="package", document_words=5
        ),
    },
    "debian": {
        "synopsis_to_description": Pairing("package", "synopsis", "description", query_words=4)
    },
    "wiki_vital": {
        "description_to_text": Pairing(
            "title", "description", "text", masked="title", query_words=4
        )
    },
}
"""By data set and task, what is asked and what is found.

* `pydocs`: a docstring, or its first paragraph, finds its code, or what follows that paragraph.
* `debian`: a package's synopsis finds its description, both by its maintainer. The builder has
  taken the package's name out of both.
* `wiki_vital`: Wikidata's description of an article finds Wikipedia's introduction, which other
  people wrote. Words of the title stand as "_" there.

What query and document share beside that is left to BM25. Documents of equal words are one, and a
query that several examples have is answered by the documents of all of them.
"""

RELATED = {"manuals": ("related_pages",)}
"""Tasks of the data sets of pages: from a page to those that a third one names together with it."""


def collection_tasks(name: str) -> tuple[str, ...]:
    """Lists tasks of a data set, the first of which is usual; none where it has no collection."""
    return RELATED.get(name, ()) or tuple(PAIRINGS.get(name, ()))


def indexed(
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    judged: Iterable[tuple[str, str, int]],
) -> RetrievalData:
    """Makes the collection of texts and judgements by their ids.

    Args:
      documents: Texts by id.
      queries: Texts by id.
      judged: Ids of query and document, with a grade.

    Returns:
      The collection, ids replaced by positions.
    """
    document_at = {key: at for at, key in enumerate(documents)}
    query_at = {key: at for at, key in enumerate(queries)}
    rows = sorted((query_at[query], document_at[doc], grade) for query, doc, grade in judged)
    return RetrievalData(
        list(documents.values()),
        list(documents),
        list(queries.values()),
        list(queries),
        Qrels(*np.array(rows, np.int32).reshape(-1, 3).T),
    )


def paired(
    read: Mapping[str, Sequence[str]], pairing: Pairing, *, asked: Collection[str]
) -> RetrievalData:
    """Makes the collection of examples each of which asks and answers.

    Args:
      read: Texts of every example, by feature.
      pairing: Features that ask and answer.
      asked: Identities of the examples that ask; all answer.

    Returns:
      The collection.
    """
    documents: dict[str, tuple[str, str, str]] = {}
    queries: dict[str, tuple[str, str]] = {}
    judged = set()
    for values in zip(*(read[name] for name in pairing.features), strict=True):
        example = dict(zip(pairing.features, values, strict=True))
        one, query, document = (example[name] for name in pairing[:3])
        if pairing.masked:
            document = without_words(document, example[pairing.masked])
        found, question = normalized(document), normalized(query)
        if len(found.split()) < pairing.document_words:
            continue
        documents.setdefault(found, (one, document, example.get(pairing.group, "")))
        if one in asked and len(question.split()) >= pairing.query_words:
            queries.setdefault(question, (one, query))
            judged.add((queries[question][0], documents[found][0], 1))
    collection = indexed(
        {one: text for one, text, _ in documents.values()}, dict(queries.values()), sorted(judged)
    )
    if not pairing.group:
        return collection
    names, labels = np.unique([group for *_, group in documents.values()], return_inverse=True)
    return replace(
        collection,
        labels=labels.astype(np.int32),
        class_names=tuple(str(name) for name in names),
    )


class Pages(NamedTuple):
    """Pages of manuals.

    Attributes:
      names: Name of each, with its domain.
      texts: Text of each.
      see: Names that each names.
    """

    names: list[str]
    texts: list[str]
    see: list[list[str]]


def related(asking: Pages, searched: Pages, whole: Pages) -> RetrievalData:
    """Makes the collection of pages, found by others which a third one names together with them.

    A page asks by its first `ASKED` characters and is found by its first `PAGE`. A "See also" is
    no part of its text; the words of links are, which in Python's manual relate pages.

    Args:
      asking: Pages that ask, where one of those searched is related.
      searched: Pages that are found, where any page is related.
      whole: All pages, whose names of others relate them.

    Returns:
      The collection.
    """
    pairs = _co_cited(whole)
    documents = _cut(searched, pairs)
    asked = dict(zip(asking.names, asking.texts, strict=True))
    judged = [
        (own, other, 1)
        for pair in pairs
        for own, other in (pair, pair[::-1])
        if own in asked and other in documents
    ]
    answered = {own for own, _, _ in judged}
    queries = {name: text[:ASKED] for name, text in asked.items() if name in answered}
    return indexed(documents, queries, judged)


def related_documents(pages: Pages, whole: Pages) -> list[str]:
    """Cuts pages as `related` does those that are searched.

    Args:
      pages: Pages, of which those stay that are related to any page.
      whole: All pages, whose names of others relate them.

    Returns:
      The first `PAGE` characters of each.
    """
    return list(_cut(pages, _co_cited(whole)).values())


def _co_cited(whole: Pages) -> Collection[tuple[str, str]]:
    from rml.data.sets.manuals import co_cited

    return co_cited(dict(zip(whole.names, whole.see, strict=True)))


def _cut(pages: Pages, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    known = {page for pair in pairs for page in pair}
    return {
        name: text[:PAGE]
        for name, text in zip(pages.names, pages.texts, strict=True)
        if name in known
    }


def without_words(text: str, other: str) -> str:
    """Writes "_" in a text for each word of another that has three letters or more."""
    words = set(re.findall(r"\w{3,}", other))
    pattern = "|".join(map(re.escape, sorted(words)))
    return re.sub(rf"\b({pattern})\b", "_", text, flags=re.I) if words else text
