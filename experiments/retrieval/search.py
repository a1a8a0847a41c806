"""Search a collection of texts by typed queries: pydocs, a BEIR directory or a folder of files.

Every document is encoded once; the vectors, the texts and where they are from stay in the run
directory. Then queries are read, one a line, until the end of the input; the same command answers
more of them at once.

The known-item search that is measured is an easy one. A query has at least four words, of pydocs
the name of its function among them, and documents are cut to `max_length` tokens. A query is thus
on average more than half of what the encoder reads of its document.
"""

import json
import sys
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.texts import TextModel
from rml.data import load_retrieval, load_text
from rml.errors import UserError
from rml.ops import t_interval
from rml.retrieval import Index, TextEmbedder, build_index, known_items, search_index
from rml.training import Claim, Progress, RunDirectory, make_mesh

SOURCE = "known-item search: a document is asked for by words that it begins with"
CLAIMS = (
    # Half of them, as was claimed before it was measured, are first by an untrained encoder too.
    Claim("Three quarters of the documents are first when asked for by the first eighth of their "
          "words", "known_item_first", ">=", 0.75, SOURCE,
          stated="2026-11-29", null_run="untrained",
          says="{mean:.0%} of the documents are found first by the first eighth of their words"),
)  # fmt: skip
NULLS = {"untrained": {"model.untrained": True}}
CAPTIONS = {
    "scores.png": "Cosine of a document's first words with itself and with the best other document."
}
PICTURE = "scores.png"
VECTORS, DOCUMENTS = "vectors.npy", "documents.jsonl"
WIDTH = 100


def open_collection(config: Any) -> list[dict[str, str]]:
    """The documents that a config names, each with where it is from: a name, or a file and line."""
    name, options = config.data.name, config.data
    if name.partition(":")[0] in ("beir", "texts"):
        found = load_retrieval(name, options.split)
        sources, texts = found.document_ids, found.documents
    else:  # of pydocs each function is a class of its own, whose name is its source
        read = load_text(
            name, options.split, text_key=options.text_key, label_key=options.source_key,
            data_dir=options.data_dir,
        )  # fmt: skip
        sources = [read.class_names[label] for label in read.labels]
        texts = [f"{one}: {text}" for one, text in zip(sources, read.texts, strict=True)]
    return [{"source": one, "text": text} for one, text in zip(sources, texts, strict=True)]


def load_embedder(config: Any) -> TextEmbedder:
    """The function from texts to vectors that a config names."""
    if config.model.name == "bert":  # it would find nothing
        raise UserError("model.name is 'bert', which is untrained; expected 'run', 'minilm', ...")
    model = TextModel(config)
    draw = model.random if config.model.get("untrained", False) else model.init
    variables, mesh = draw(jax.random.key(config.seed)), make_mesh(config.mesh)
    return TextEmbedder(model.module, variables, model.tokenizer, config.max_length, mesh=mesh)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Encodes the documents and keeps them; measures how well they find themselves."""
    encode = load_embedder(config)
    documents, progress = open_collection(config), Progress()
    texts = [document["text"] for document in documents]
    if not texts:
        raise UserError(f"data.name {config.data.name!r} holds no text to search")
    progress.note(f"encoding {len(texts)} documents")
    started = time.perf_counter()
    progress.start(0, len(texts))
    try:
        vectors = encode(texts, progress=lambda done, _: progress.advance(done))
    finally:
        progress.stop()
    seconds = time.perf_counter() - started
    (run.path / DOCUMENTS).write_text("".join(json.dumps(one) + "\n" for one in documents))
    np.save(run.path / VECTORS, vectors, allow_pickle=False)
    found = known_items(encode, texts, vectors, sample=500, rng=np.random.default_rng(config.seed))
    if len(texts) > 1:
        figures.histogram(
            run.figure("scores.png"),
            {"the document itself": found.own, "the best other": found.other},
            xlabel="cosine", ylabel="documents",
        )  # fmt: skip
    return {
        "documents": len(texts),
        "documents_per_second": len(texts) / seconds,
        **with_bounds("known_item_first", t_interval(found.hits.astype(float))),
        "known_item_among_10": found.among,
    }


def interact(config: Any, run: RunDirectory) -> None:
    """Answers queries from standard input, one a line, until it ends."""
    encode = load_embedder(config)
    index = build_index(jnp.asarray(np.load(run.path / VECTORS, allow_pickle=False)))
    documents = [json.loads(line) for line in (run.path / DOCUMENTS).read_text().splitlines()]
    k, answered, typed = min(config.k, len(documents)), 0, sys.stdin.isatty()
    print(f"{len(documents)} documents; one query a line, end with Ctrl-D", flush=True)
    while True:
        print("query> " * typed, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        if line.strip():
            answer(line.strip(), encode, index, documents, k)
            answered += 1
    print("\n" * typed + f"{answered} queries answered")


def answer(query: str, encode: TextEmbedder, index: Index, documents: Any, k: int) -> None:
    """Prints the documents that fit a query best."""
    started = time.perf_counter()
    scores, rows = map(np.asarray, search_index(jnp.asarray(encode([query])), index, k=k))
    print(f"\n{query}  ({1000 * (time.perf_counter() - started):.0f} ms)")
    for rank, (score, row) in enumerate(zip(scores[0], rows[0], strict=True), 1):
        shown = textwrap.shorten(documents[row]["text"], WIDTH, placeholder="…")
        print(f"{rank:3}. {score:.3f}  {documents[row]['source']}\n     {shown}", flush=True)
