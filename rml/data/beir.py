"""Retrieval collections in the format of BEIR: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.

Source:
    N. Thakur et al., "BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation of Information
    Retrieval Models", NeurIPS 2021 (Datasets and Benchmarks).
"""

from collections.abc import Iterator
from pathlib import Path

from rml.data.errors import DataError
from rml.data.own import json_lines, lines

GREATEST = 2**31 - 1  # grades are int32
Judgements = list[tuple[str, str, int]]


def read_beir(path: Path, split: str) -> tuple[dict[str, str], dict[str, str], Judgements]:
    """Reads one split of a collection; every file may be compressed (`.gz`).

    Args:
      path: The folder.
      split: Name of the file of `qrels` to read.

    Returns:
      All documents by id, title before text; the queries of the split by id; and its judgements
      (query id, document id, grade), of which TREC's grades below 0 are no more relevant than 0.

    Raises:
      DataError: If a file is missing, or a line is not as the format has it, repeats an id, or
        names one that there is not.
    """
    documents = read_corpus(path)
    queries = _read_texts(_file(path, "queries.jsonl"), title=False)
    judged = list(_read_judgements(path, split, documents, queries))
    asked = {query for query, _, _ in judged}
    return documents, {key: text for key, text in queries.items() if key in asked}, judged


def read_corpus(path: Path) -> dict[str, str]:
    """Reads all documents of a collection by id, title before text.

    Raises:
      DataError: As `read_beir`.
    """
    return _read_texts(_file(path, "corpus.jsonl"), title=True)


def _file(path: Path, name: str) -> Path:
    for file in (path / name, path / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataError(
        f"there is no file {path / name}; a collection in BEIR's format has corpus.jsonl, "
        "queries.jsonl and qrels/SPLIT.tsv (or those with .gz)"
    )


def _read_texts(file: Path, *, title: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, entry in json_lines(file, expected="an object with '_id' and 'text'"):
        for key in ("_id", "text"):
            if not isinstance(entry.get(key), str):
                raise DataError(f"{where}: {key!r} is {entry.get(key)!r}, expected a string")
        heading = entry.get("title") or ""
        if title and not isinstance(heading, str):
            raise DataError(f"{where}: 'title' is {heading!r}, expected a string")
        if entry["_id"] in found:
            raise DataError(f"{where}: the id {entry['_id']!r} is there already")
        found[entry["_id"]] = (f"{heading} {entry['text']}" if title else entry["text"]).strip()
    if not found:
        raise DataError(f"{file} is empty")
    return found


def _read_judgements(
    path: Path, split: str, documents: dict[str, str], queries: dict[str, str]
) -> Iterator[tuple[str, str, int]]:
    files = {
        file.name.removesuffix(".gz").removesuffix(".tsv"): file
        # The last counts: the plain one of two, as `_file` has it.
        for file in sorted((path / "qrels").glob("*.tsv*"), reverse=True)
    }
    if split not in files:
        raise DataError(
            f"there is no file {path / 'qrels' / split}.tsv; there are the splits {sorted(files)}"
        )
    seen = set()
    for at, (where, line) in enumerate(lines(files[split])):
        fields = line.split("\t")
        if len(fields) != 3:
            raise DataError(
                f"{where} has {len(fields)} columns, expected 3 with tabs between: query-id, "
                "corpus-id, score"
            )
        query, document, score = fields
        try:
            grade = int(score)
        except ValueError:
            if at == 0 and query not in queries and document not in documents:  # the header
                continue
            raise DataError(f"{where}: the score is {score!r}, expected an integer") from None
        if abs(grade) > GREATEST:
            raise DataError(f"{where}: the score is {grade}, expected at most {GREATEST}")
        if query not in queries:
            raise DataError(f"{where}: there is no query {query!r} in queries.jsonl")
        if document not in documents:
            raise DataError(f"{where}: there is no document {document!r} in corpus.jsonl")
        if (query, document) in seen:
            raise DataError(f"{where}: {document!r} is judged twice for the query {query!r}")
        seen.add((query, document))
        yield query, document, grade
    if not seen:
        raise DataError(f"{files[split]} holds no judgements")
