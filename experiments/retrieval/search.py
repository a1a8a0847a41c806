"""Search a collection of texts by typed queries: pydocs, a BEIR directory or a folder of files.

Every document is encoded once; the vectors, the texts and where they are from stay in the run
directory. Then queries are read, one a line, until the end of the input; the same command answers
more of them at once.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.retrieval.model import TextModel
from rml.data import load_retrieval, load_text
from rml.errors import UserError
from rml.retrieval.embed import embed
from rml.retrieval.search import Index, build_index, search, search_index
from rml.training import Claim, Progress, RunDirectory, make_mesh

SOURCE = "known-item search: a document is asked for by words that it begins with"
CLAIMS = (
    Claim("Half of the documents are first when asked for by the first eighth of their words",
          "known_item_first", ">=", 0.5, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "scores.png": "Cosine of a document's first words with itself and with the best other document."
}
SAMPLE = 500
VECTORS, DOCUMENTS = "vectors.npy", "documents.jsonl"
WIDTH = 100

Encoder = Callable[..., np.ndarray]
"""`encode(texts, progress=None)`: vectors of texts [n, d]."""


class Collection(NamedTuple):
    """What is searched.

    Attributes:
      texts: The documents.
      sources: Where each is from: a name, or a file and line.
    """

    texts: list[str]
    sources: list[str]


def open_collection(config: Any) -> Collection:
    """The documents that a config names."""
    name, options = config.data.name, config.data
    if name.partition(":")[0] in ("beir", "texts"):
        found = load_retrieval(name, options.split)
        return Collection(found.documents, found.document_ids)
    # Of pydocs each function is a class of its own, whose name is its source.
    read = load_text(
        name, options.split, text_key=options.text_key, label_key=options.source_key,
        data_dir=options.data_dir,
    )  # fmt: skip
    sources = [read.class_names[label] for label in read.labels]
    texts = [f"{one}: {text}" for one, text in zip(sources, read.texts, strict=True)]
    return Collection(texts, sources)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Encodes the documents and keeps them; measures how well they find themselves."""
    encode = load_encoder(config)
    collection, progress = open_collection(config), Progress()
    if not collection.texts:
        raise UserError(f"data.name {config.data.name!r} holds no text to search")
    progress.note(f"encoding {len(collection.texts)} documents")
    started = time.perf_counter()
    vectors = encode(collection.texts, progress)
    seconds = time.perf_counter() - started
    with open(run.path / DOCUMENTS, "w") as file:
        for source, text in zip(collection.sources, collection.texts, strict=True):
            file.write(json.dumps({"source": source, "text": text}) + "\n")
    np.save(run.path / VECTORS, vectors, allow_pickle=False)
    return {
        "documents": len(collection.texts),
        "documents_per_second": len(collection.texts) / seconds,
        **find_themselves(config, run, encode, collection.texts, vectors),
    }


def load_encoder(config: Any) -> Encoder:
    """A function from texts to vectors, with progress where there are many texts."""
    if config.model.name == "bert":  # it would find nothing
        raise UserError("model.name is 'bert', which is untrained; expected 'run', 'minilm', ...")
    model = TextModel(config, list)
    variables = nn.meta.unbox(model.init(jax.random.key(0)))
    mesh = make_mesh(config.mesh)

    def encode(texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        if progress is not None:
            progress.start(0, len(texts))
        try:
            return embed(
                model.encode, variables, model.tokenizer, texts,
                max_length=config.max_length, mesh=mesh,
                progress=None if progress is None else lambda done, _: progress.advance(done),
            )  # fmt: skip
        finally:
            if progress is not None:
                progress.stop()

    return encode


def find_themselves(
    config: Any, run: RunDirectory, encode: Encoder, texts: list[str], vectors: np.ndarray
) -> dict[str, float]:
    """Asks for documents by the first eighth of their words."""
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.choice(len(texts), min(SAMPLE, len(texts)), replace=False))
    words = [texts[row].split() for row in rows]
    queries = [" ".join(own[: max(4, len(own) // 8)]) for own in words]
    asked = encode(queries)
    k = min(10, len(texts))
    scores, found = map(np.asarray, search(jnp.asarray(asked), jnp.asarray(vectors), k=k))
    own = np.sum(asked * vectors[rows], axis=1)
    other = np.max(np.where(found == rows[:, None], -np.inf, scores), axis=1)
    if len(texts) > 1:
        figures.histogram(
            run.figure("scores.png"), {"the document itself": own, "the best other": other},
            xlabel="cosine", ylabel="documents",
        )  # fmt: skip
    return {
        "known_item_first": float(np.mean(found[:, 0] == rows)),
        "known_item_among_10": float(np.mean((found == rows[:, None]).any(axis=1))),
    }


def interact(config: Any, run: RunDirectory) -> None:
    """Answers queries from standard input, one a line, until it ends."""
    encode = load_encoder(config)
    vectors = np.load(run.path / VECTORS, allow_pickle=False)
    with open(run.path / DOCUMENTS) as file:
        documents = [json.loads(line) for line in file]
    index, answered = build_index(jnp.asarray(vectors)), 0
    typed = sys.stdin.isatty()
    print(f"{len(documents)} documents; one query a line, end with Ctrl-D", flush=True)
    while True:
        if typed:
            print("query> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        if line.strip():
            answer(config, encode, index, documents, line.strip())
            answered += 1
    if typed:
        print()
    print(f"{answered} queries answered")


def answer(
    config: Any, encode: Encoder, index: Index, documents: list[dict[str, str]], query: str
) -> None:
    """Prints the documents that fit a query best."""
    started = time.perf_counter()
    vector = encode([query])
    k = min(config.k, len(documents))
    scores, rows = map(np.asarray, search_index(jnp.asarray(vector), index, k=k))
    milliseconds = 1000 * (time.perf_counter() - started)
    print(f"\n{query}  ({milliseconds:.0f} ms)")
    for rank, (score, row) in enumerate(zip(scores[0], rows[0], strict=True), 1):
        text = " ".join(documents[row]["text"].split())
        shown = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
        print(f"{rank:3}. {score:.3f}  {documents[row]['source']}\n     {shown}", flush=True)
