"""Decoding with half and four fifths of the feed-forward's channels left out.

python -m benchmarks.sparsity [--json] [--quick]

Gated feed-forwards of SmolLM2-135M's shape (1,536 channels, width 576), of 4,096 channels and
width 1,536, and of 8,192 and width 2,048 (SmolLM2's with --quick), float32, random weights, two
threads. As in decoding, many layers follow one another, 256 MB of weights in all, so that no cache
holds what the next token reads. `sparse_ffn` leaves out channels whose gate is below a quantile; it
stands beside the dense feed-forward here and PyTorch's, which compute the same with and without
those channels. Outputs must agree. Bytes are those of weights that a token reads, and the floor is
the time that reading as many takes. Times are the least of interleaved repeats.

Then SmolLM2-135M adds 32 tokens of its own, greedily and one at a time, to 128 of docstrings (8 to
32 with --quick, scanned blocks alone), with thresholds of CHESS that were calibrated on others.
`rml.models.live_rows` stands beside the dense decoder, which leaves nothing out and therefore adds
other tokens, with blocks that are scanned and that are not: a scan copies each block's matrices out
of the stack, which rows do not need. With ReLU in the place of thresholds,
whose zeros rounding does not move, tokens by live rows must be those of the dense decoder.
"""

import functools
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

THREADS = 2
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.common import (  # noqa: E402
    Row,
    best_of_each,
    finish,
    options,
    print_table,
    reading,
)
from rml import data  # noqa: E402
from rml.models import (  # noqa: E402
    LiveRows,
    Probe,
    Thresholds,
    generate,
    live_rows,
    pretrained,
    read_in_chunks,
)
from rml.sparsity import (  # noqa: E402
    FeedForward,
    bytes_read,
    dense_ffn,
    observe,
    sparse_ffn,
    thresholds_of,
)

SHAPES, QUICK = ((1536, 576), (4096, 1536), (8192, 2048)), ((1536, 576),)
SHARES = (0.5, 0.8)
BYTES = 256 * 2**20
"""Bytes of weights of all layers."""
LENGTH, STEPS = 128, 32
QUICK_LENGTH, QUICK_STEPS = 32, 8
CALIBRATED = 4
"""Documents that thresholds are calibrated on."""


def layers_of(f: int, d: int, count: int) -> list[tuple[np.ndarray, ...]]:
    """Weights [f, d] of gate, input and output of every layer."""
    rng = np.random.default_rng(0)
    return [tuple(rng.standard_normal((3, f, d), np.float32) / d**0.5) for _ in range(count)]


def gate_sizes(x: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """Magnitudes of SiLU of the gate."""
    y = gate @ x
    return np.abs(y / (1 + np.exp(-y)))


def ours(
    call: Callable[..., jax.Array], x: np.ndarray, layers: Sequence[Any], least: Sequence[Any]
) -> Callable[[], Any]:
    """A feed-forward of this library on every layer."""
    weights = [FeedForward(*map(jnp.asarray, own)) for own in layers]
    token, step = jnp.asarray(x), jax.jit(call)

    def run() -> Any:
        outs = [step(token, own, t) for own, t in zip(weights, least, strict=True)]
        return jax.block_until_ready(outs)

    return run


def torch_peer(x: np.ndarray, layers: Sequence[Any]) -> Callable[[], Any]:
    """PyTorch's dense feed-forward on every layer, eager, as its decoders run it."""
    import torch

    torch.set_num_threads(THREADS)
    weights = [tuple(map(torch.tensor, own)) for own in layers]
    token = torch.tensor(x)[None]
    linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
    weights = [(gate, up, down.T.contiguous()) for gate, up, down in weights]

    def run() -> Any:
        with torch.no_grad():
            return [
                linear(silu(linear(token, gate)) * linear(token, up), down)[0]
                for gate, up, down in weights
            ]

    return run


def feed_forwards(quick: bool) -> list[Row]:
    """One token's feed-forward of random weights."""
    import torch

    rows: list[Row] = []
    for f, d in QUICK if quick else SHAPES:
        count = max(2, BYTES // (8 if quick else 1) // (12 * f * d))
        layers = layers_of(f, d, count)
        x = np.random.default_rng(1).standard_normal(d).astype(np.float32)
        sizes = [gate_sizes(x, own[0]) for own in layers]
        nothing = [jnp.zeros(f)] * count
        least = {
            share: [jnp.full(f, np.quantile(own, share), jnp.float32) for own in sizes]
            for share in SHARES
        }
        peer = f"torch {torch.__version__}"
        steps: dict[str, Callable[[], Any]] = {
            "dense": ours(dense_ffn, x, layers, nothing),
            peer: torch_peer(x, layers),
            **{f"{share}": ours(sparse_ffn, x, layers, own) for share, own in least.items()},
        }
        agree(steps["dense"](), steps[peer]())
        floor = reading(12 * f * d * count)
        steps["floor"] = floor.run
        for share in SHARES:
            agree(steps[f"{share}"](), ours(dense_ffn, x, layers, least[share])())
        seconds = best_of_each(steps, 3 if quick else 7)
        micro = {name: 1e6 * own / count for name, own in seconds.items()}
        shape = f"{f:,} channels, width {d:,}"
        whole, of_whole = 12 * f * d, floor.share * micro["floor"]
        rows.append(Row(f"dense, {shape}", "µs", micro["dense"], peer, micro[peer]))
        rows.append(Row(f"dense, {shape}", "µs", micro["dense"], floor.name, of_whole))
        for share in SHARES:
            case = f"{share:.0%} left out, {shape}"
            rows += [
                Row(case, "µs", micro[f"{share}"], name, micro[name]) for name in ("dense", peer)
            ]
            live = int(
                np.mean([(own >= t[0]).sum() for own, t in zip(sizes, least[share], strict=True)])
            )
            read = float(bytes_read(live, d_ff=f, width=d)) / 2**20
            of_read = of_whole * read * 2**20 / whole
            rows.append(Row(case, "µs", micro[f"{share}"], floor.name, of_read))
            rows.append(Row(case, "MB read", read, "dense", whole / 2**20))
    return rows


def adds(
    model: Any,
    text: np.ndarray,
    steps: int,
    thresholds: Thresholds | None = None,
    rows: LiveRows | None = None,
) -> Callable[[], np.ndarray]:
    """What adds tokens to a text that a cache has read all of but its last token."""
    read = jnp.asarray(text)[None]
    cache = model.module.init_cache(1, len(text) + steps)
    _, cache = read_in_chunks(
        model.module, model.variables, read[:, :-1], cache=cache, chunk=len(text) - 1,
        thresholds=thresholds,
    )  # fmt: skip
    jax.block_until_ready(cache)
    add = functools.partial(
        generate, model.module, model.variables, read[:, -1:], steps=steps, cache=cache,
        thresholds=thresholds, rows=rows,
    )  # fmt: skip
    return lambda: np.asarray(add())[0]


def read_a_token(
    model: Any, text: np.ndarray, added: np.ndarray, thresholds: Thresholds, budget: int
) -> tuple[float, int]:
    """Bytes of weights that a token read by live rows, mean over those added, and all weights."""
    module = model.module
    live = module.apply(
        model.variables, jnp.asarray(np.concatenate([text, added[:-1]]))[None],
        thresholds=thresholds, probe=Probe(lambda own, _: (own.hidden != 0).sum(-1)),
    ).probed[:, 0, len(text) - 1 :]  # fmt: skip
    size = {"d_ff": module.mlp, "width": module.width}
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables))
    others = whole - module.depth * int(bytes_read(module.mlp, **size))
    return others + float(bytes_read(np.asarray(live), budget=budget, **size).sum(0).mean()), whole


def decoders(quick: bool) -> list[Row]:
    """SmolLM2 by live rows, beside its dense decoder."""
    length, steps = (QUICK_LENGTH, QUICK_STEPS) if quick else (LENGTH, STEPS)
    model = pretrained.load("smollm2")
    documents = [data.load_documents("pydocs", part) for part in ("train[:2%]", "test")]
    calibrated, texts = (
        data.long_documents(model.tokenizer, own, length=length, most=most)
        for own, most in zip(documents, (CALIBRATED, 1), strict=True)
    )
    module: Any = model.module
    text, found = texts[0], observe(module, model.variables, calibrated)
    least = {share: thresholds_of(found, sparsity=share) for share in SHARES}
    rows: list[Row] = []
    for scan in (True,) if quick else (True, False):
        own = model if scan else pretrained.load("smollm2", scan=False)
        by_rows = live_rows(own.module, own.variables)
        calls = {"dense": adds(own, text, steps)} | {
            f"{share}": adds(own, text, steps, least[share], by_rows) for share in SHARES
        }
        blocks = "scanned" if scan else "single"
        added = {share: calls[f"{share}"]() for share in SHARES}
        if scan:
            relu = own._replace(module=module.clone(activation="relu"))
            of_rows = live_rows(module, own.variables, budget=module.mlp)
            ours_add, dense_adds = (adds(relu, text, steps, rows=one)() for one in (of_rows, None))
            if not np.array_equal(ours_add, dense_adds):
                raise RuntimeError(f"live rows add {ours_add}, the dense decoder {dense_adds}")
        seconds = best_of_each(calls, 2 if quick else 5)
        speeds = {name: steps / value for name, value in seconds.items()}
        for share in SHARES:
            case = f"SmolLM2, {share:.0%} left out, {blocks} blocks"
            rows.append(
                Row(
                    case, "tokens/s", speeds[f"{share}"], "dense", speeds["dense"],
                    lower_is_better=False,
                )
            )  # fmt: skip
    for share in SHARES:
        read, whole = read_a_token(model, text, added[share], least[share], by_rows.budget)
        case = f"SmolLM2, {share:.0%} left out, weights"
        rows.append(Row(case, "MB read a token", read / 2**20, "dense", whole / 2**20))
    return rows


def main() -> None:
    """Runs the comparisons."""
    args = options(__doc__)
    rows = feed_forwards(args.quick) + decoders(args.quick)
    print_table(
        f"Feed-forward of one token and decoding, float32, {THREADS} threads: jax "
        f"{jax.__version__}, {platform.machine()}",
        rows,
    )
    finish("sparsity", rows, args.json)


def agree(one: Sequence[Any], other: Sequence[Any]) -> None:
    """Raises unless outputs of all layers agree."""
    for a, b in zip(one, other, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        if not error < 1e-4:
            raise RuntimeError(f"outputs differ by {error:.2g}")


if __name__ == "__main__":
    main()
