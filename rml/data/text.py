"""Texts: collections to retrieve from, and texts with classes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rml.assets import default_data_dir
from rml.data.beir import read_beir, read_corpus
from rml.data.collections import (
    PAIRINGS,
    RELATED,
    Pages,
    RetrievalData,
    collection_tasks,
    indexed,
    paired,
    related,
    related_documents,
)
from rml.data.errors import DataError
from rml.data.passages import read_passages
from rml.errors import local_path, unknown


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
    task: str = "",
    corpus: str = "split",
    data_dir: str | Path | None = None,
) -> RetrievalData:
    """Opens a collection; nothing is downloaded.

    Args:
      name: `pydocs` (docstrings and code of this Python installation, `rml.data.pydocs`),
        `debian`, `wiki_vital` or `manuals` (see `rml.data.collections`), `beir:PATH` (a folder
        in BEIR's format, `rml.data.beir`) or `texts:PATH` (a folder of text files, cut into
        passages, `rml.data.passages`: documents without queries, whose ids are `FILE:LINE`, of a
        long line's second passage `FILE:LINE#2`).
      split: Split of a data set in TFDS's syntax; the name of a file of BEIR's qrels; "all" for
        a folder of text files.
      task: Task of a data set, what asks and what is found, one of `collection_tasks(name)`; the
        first of them if not given. Of pydocs "docstring_to_code", or "title_to_description"
        (from the first paragraph of a docstring to the rest of it, where there is more than a
        few words).
      corpus: Documents of a data set of pairs: those of the "split", or "all". Pages of
        manuals are always found among those of the training split.
      data_dir: TFDS data directory; `TFDS_DATA_DIR` or `~/tensorflow_datasets` if not given.

    Returns:
      The collection.

    Raises:
      DataError: If a file is missing or broken, or a split does not exist.
      UserError: If there is no such name, task or corpus.
    """
    kind, _, path = name.partition(":")
    if kind == "beir" and path:
        return indexed(*read_beir(local_path(path, "the path of texts"), split))
    if kind == "texts" and path:
        if split != "all":
            raise DataError(f"{name!r} has one split, 'all', got {split!r}")
        return indexed(_by_line(local_path(path, "the path of texts")), {}, [])
    tasks = collection_tasks(name)
    if not tasks:
        known = (*PAIRINGS, *RELATED, "beir:PATH", "texts:PATH")
        raise unknown("retrieval collection", name, known)
    task = task or tasks[0]
    if task not in tasks:
        raise unknown(f"task of {name}", task, tasks)
    if corpus not in ("split", "all"):
        raise unknown(f"corpus of {name}", corpus, ("split", "all"))
    if name in RELATED:
        found = related(*(_pages(name, part, data_dir) for part in (split, "train", "all")))
    else:
        pairing = PAIRINGS[name][task]
        read, _ = _read(name, split, pairing.features, data_dir)
        asked = set(read[pairing.identity])
        if corpus == "all":
            read, _ = _read(name, "all", pairing.features, data_dir)
        found = paired(read, pairing, asked=asked)
    if not found.queries:
        raise DataError(f"{name!r} split {split!r} has nothing to ask for by {task}")
    return found


def load_documents(
    name: str, split: str, *, text_key: str = "", data_dir: str | Path | None = None
) -> list[str]:
    """Opens the documents of a collection alone, to train on without queries.

    Args:
      name: Name as for `load_retrieval`, or a TFDS name that is prepared in `data_dir`.
      split: Split as for `load_retrieval`; the documents of a BEIR collection are those of all
        splits, and `split` is not read.
      text_key: Feature of a TFDS data set. If not given what is searched for its first task, for
        pydocs the docstring followed by its code, and "text" where there is no collection. Of
        manuals, where `load_retrieval` searches the training split whatever asks, the texts are
        the split's own: its pages that are related to any, cut as those that are searched.
      data_dir: TFDS data directory.

    Returns:
      Texts.

    Raises:
      DataError: If a file is missing or broken, or a split or feature does not exist.
    """
    kind, _, path = name.partition(":")
    if kind == "beir" and path:
        return list(read_corpus(local_path(path, "the path of texts")).values())
    if kind == "texts" and path:
        return load_retrieval(name, split).documents
    if kind == "pydocs" and not text_key:
        read = _read(name, split, ("docstring", "code"), data_dir)[0]
        return [f"{doc}\n\n{code}" for doc, code in zip(*read.values(), strict=True)]
    if name in RELATED and not text_key:
        return related_documents(*(_pages(name, part, data_dir) for part in (split, "all")))
    if collection_tasks(name) and not text_key:
        return load_retrieval(name, split, data_dir=data_dir).documents
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
      split: Split in TFDS's syntax.
      text_key: Feature that holds the text; "text" if not given, "docstring" of pydocs.
      label_key: Feature that holds the class, a class label or a string; "label" if not given,
        "package" of pydocs.
      min_examples: Least number of texts of a class. Above 1, classes of fewer in this split are
        left out, and those that are kept are numbered from 0.
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
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
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


def _by_line(path: Path) -> dict[str, str]:
    """Passages by file and line where they begin; later ones of a line have a number beside it."""
    found: dict[str, str] = {}
    begun: Counter[str] = Counter()
    for one in read_passages(path):
        line = f"{one.file}:{one.line}"
        begun[line] += 1
        found[line if begun[line] == 1 else f"{line}#{begun[line]}"] = one.text
    return found


def _read(
    name: str, split: str, keys: Sequence[str], data_dir: str | Path | None
) -> tuple[dict[str, Any], Any]:
    # TFDS takes 0.3 s to import, which files need not wait for.
    from rml.data.tfds_source import read_texts

    directory = default_data_dir() if data_dir is None else local_path(data_dir, "data_dir")
    return read_texts(name, split, data_dir=directory, keys=keys)


def _pages(name: str, split: str, data_dir: str | Path | None) -> Pages:
    """Pages of manuals, each named by its domain and its own name."""
    read, _ = _read(name, split, ("page", "text", "see", "label"), data_dir)
    domains = [f"{label}:" for label in read["label"]]
    return Pages(
        [domain + page for domain, page in zip(domains, read["page"], strict=True)],
        list(read["text"]),
        [
            [domain + page for page in named]
            for domain, named in zip(domains, read["see"], strict=True)
        ],
    )
