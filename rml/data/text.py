"""Texts: collections to retrieve from, and texts with classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rml.assets import default_data_dir
from rml.data.beir import read_beir, read_corpus
from rml.data.duplicates import normalized
from rml.data.errors import DataError
from rml.data.passages import read_passages
from rml.errors import local_path, unknown

TASKS = {
    "docstring_to_code": ("docstring", "code"),
    "title_to_description": ("title", "description"),
}
"""Of pydocs: what is asked, and what is found."""

MIN_WORDS = 5
"""Of a description that could be told from others."""


class Qrels(NamedTuple):
    """Judgements: the document at `document[i]` answers the query at `query[i]` as `grade[i]` says.

    Attributes:
        query: int32 `[r]`, positions in the queries, ascending.
        document: int32 `[r]`, positions in the documents.
        grade: int32 `[r]`, 0 where a document was judged not to answer.
    """

    query: Int[np.ndarray, " r"]
    document: Int[np.ndarray, " r"]
    grade: Int[np.ndarray, " r"]


@dataclass(frozen=True)
class RetrievalData:
    """Documents, queries, and which answer which.

    Attributes:
        documents: Texts, the title first where there is one.
        document_ids: Of each; where a document is from a file, its name and line.
        queries: Texts; none where a folder of texts has no queries.
        query_ids: Of each.
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

    def first_queries(self, count: int) -> "RetrievalData":
        """The collection with its first queries alone, and all of its documents."""
        return replace(
            self,
            queries=self.queries[:count],
            query_ids=self.query_ids[:count],
            qrels=self._judged(self.qrels.query < count),
        )

    def _judged(self, kept: np.ndarray) -> Qrels:
        return Qrels(*(column[kept] for column in self.qrels))


class LabelledTexts(NamedTuple):
    """Texts with classes.

    Attributes:
        texts: Strings.
        labels: int32 `[n]`.
        class_names: Names by label.
    """

    texts: list[str]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]


def load_retrieval(
    name: str,
    split: str,
    *,
    task: str = "docstring_to_code",
    corpus: str = "split",
    data_dir: str | Path | None = None,
) -> RetrievalData:
    """Opens a collection; nothing is downloaded.

    Args:
        name: `pydocs` (docstrings and code of this Python installation, `rml.data.pydocs`),
            `beir:PATH` (a folder in BEIR's format, `rml.data.beir`) or `texts:PATH` (a folder of
            text files, cut into passages, `rml.data.passages`: documents without queries).
        split: For pydocs in TFDS's split syntax; the name of a file of BEIR's qrels; "all" for a
            folder of text files.
        task: Of pydocs: "docstring_to_code", or "title_to_description" (from the first paragraph
            of a docstring to the rest of it, where there is more than a few words).
        corpus: Of pydocs: the documents are those of the "split", or "all".
        data_dir: Where pydocs is prepared; `TFDS_DATA_DIR` or `~/tensorflow_datasets` if not given.

    Returns:
        The collection.

    Raises:
        DataError: If a file is missing or broken, or a split does not exist.
        UserError: If there is no such name, task or corpus.
    """
    kind, _, path = name.partition(":")
    if kind == "beir" and path:
        return _index(*read_beir(Path(path).expanduser(), split))
    if kind == "texts" and path:
        if split != "all":
            raise DataError(f"{name!r} has one split, 'all', got {split!r}")
        documents = {
            f"{one.file}:{one.line}": one.text for one in read_passages(Path(path).expanduser())
        }
        return _index(documents, {}, [])
    if kind != "pydocs":
        raise unknown("retrieval collection", name, ("pydocs", "beir:PATH", "texts:PATH"))
    if task not in TASKS:
        raise unknown("task of pydocs", task, TASKS)
    if corpus not in ("split", "all"):
        raise unknown("corpus of pydocs", corpus, ("split", "all"))
    return _pydocs(name, split, *TASKS[task], corpus=corpus, data_dir=data_dir)


def load_documents(
    name: str, split: str, *, text_key: str = "", data_dir: str | Path | None = None
) -> list[str]:
    """Opens the documents of a collection alone, to train on without queries.

    Args:
        name: As for `load_retrieval`, or a TFDS name that is prepared in `data_dir`.
        split: As for `load_retrieval`; the documents of a BEIR collection are those of all splits,
            and `split` is not read.
        text_key: Feature of a TFDS data set. If not given "text", and for pydocs the docstring
            followed by its code.
        data_dir: TFDS data directory.

    Returns:
        Texts.

    Raises:
        DataError: If a file is missing or broken, or a split or feature does not exist.
    """
    kind, _, path = name.partition(":")
    if kind == "beir" and path:
        return list(read_corpus(Path(path).expanduser()).values())
    if kind == "texts" and path:
        return load_retrieval(name, split).documents
    if kind == "pydocs" and not text_key:
        read = _read(name, split, ("docstring", "code"), data_dir)[0]
        return [f"{doc}\n\n{code}" for doc, code in zip(*read.values(), strict=True)]
    key = text_key or "text"
    return list(_read(name, split, (key,), data_dir)[0][key])


def load_text(
    name: str,
    split: str,
    *,
    text_key: str = "",
    label_key: str = "",
    min_examples: int = 1,
    data_dir: str | Path | None = None,
) -> LabelledTexts:
    """Opens texts with classes, of pydocs or of a TFDS data set such as `ag_news_subset`.

    Modules of pydocs are classes that no other split has: `label_key="module", min_examples=16`
    gives classes for few-shot episodes that training on another split has not seen.

    Args:
        name: `pydocs`, or a TFDS name that is prepared in `data_dir`.
        split: In TFDS's split syntax.
        text_key: Feature that holds the text; "text" if not given, "docstring" of pydocs.
        label_key: Feature that holds the class, a class label or a string; "label" if not given,
            "package" of pydocs.
        min_examples: If above 1, classes of fewer texts in this split are left out, and those that
            are kept are numbered from 0.
        data_dir: TFDS data directory; `TFDS_DATA_DIR` or `~/tensorflow_datasets` if not given.

    Returns:
        The texts. Unless `min_examples` leaves classes out, all splits have the same classes.

    Raises:
        DataError: If the data set, the split or a feature is unknown, or no class has so many.
    """
    ours = name.partition(":")[0].partition("/")[0] == "pydocs"
    text_key = text_key or ("docstring" if ours else "text")
    label_key = label_key or ("package" if ours else "label")
    read, features = _read(name, split, (text_key, label_key), data_dir)
    texts, labels = list(read[text_key]), read[label_key]
    if isinstance(labels, list):
        everywhere = labels if min_examples > 1 else _read(name, "all", (label_key,), data_dir)[0]
        names = sorted(set(everywhere if isinstance(everywhere, list) else everywhere[label_key]))
        numbers = {one: number for number, one in enumerate(names)}
        labels = np.array([numbers[one] for one in labels], np.int32)
    else:
        names = list(features[label_key].names)
    if min_examples > 1:
        counts = np.bincount(labels, minlength=len(names))
        kept = np.flatnonzero(counts >= min_examples)
        if not len(kept):
            raise DataError(
                f"{name!r} split {split!r}: no class of {label_key!r} has {min_examples} texts, "
                f"the largest has {counts.max()}"
            )
        rows = np.flatnonzero(np.isin(labels, kept))
        texts = [texts[row] for row in rows]
        labels = np.searchsorted(kept, labels[rows]).astype(np.int32)
        names = [names[number] for number in kept]
    return LabelledTexts(texts, labels, tuple(names))


def _read(
    name: str, split: str, keys: Sequence[str], data_dir: str | Path | None
) -> tuple[dict[str, Any], Any]:
    # TFDS takes 0.3 s to import, which files need not wait for.
    from rml.data.tfds_source import read_texts

    directory = default_data_dir() if data_dir is None else local_path(data_dir, "data_dir")
    return read_texts(name, split, data_dir=directory, keys=keys)


def _index(
    documents: dict[str, str], queries: dict[str, str], judged: Sequence[tuple[str, str, int]]
) -> RetrievalData:
    """Ids replaced by positions."""
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


def _pydocs(
    name: str,
    split: str,
    query_key: str,
    document_key: str,
    *,
    corpus: str,
    data_dir: str | Path | None,
) -> RetrievalData:
    """Pairs of which equal queries have all their documents as answers."""
    keys = ("name", "package", query_key, document_key)
    wanted, _ = _read(name, split, keys, data_dir)
    asked = set(wanted["name"])
    read = _read(name, "all", keys, data_dir)[0] if corpus == "all" else wanted
    documents: dict[str, tuple[str, str, str]] = {}
    queries: dict[str, tuple[str, str]] = {}
    judged = set()
    for one, package, query, document in zip(*(read[key] for key in keys), strict=True):
        found = normalized(document)
        if len(found.split()) < MIN_WORDS and document_key == "description":
            continue
        documents.setdefault(found, (one, document, package))
        if one in asked:
            queries.setdefault(normalized(query), (one, query))
            judged.add((queries[normalized(query)][0], documents[found][0], 1))
    if not queries:
        raise DataError(f"{name!r} split {split!r} has no {query_key} with a {document_key}")
    collection = _index(
        {one: text for one, text, _ in documents.values()},
        dict(queries.values()),
        sorted(judged),
    )
    names, labels = np.unique([package for *_, package in documents.values()], return_inverse=True)
    return RetrievalData(
        collection.documents,
        collection.document_ids,
        collection.queries,
        collection.query_ids,
        collection.qrels,
        labels.astype(np.int32),
        tuple(str(one) for one in names),
    )
