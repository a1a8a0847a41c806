"""The feed-forward of one token with half and four fifths of its channels left out.

python -m benchmarks.sparsity [--json] [--quick]

Gated feed-forwards of SmolLM2-135M's shape (1,536 channels, width 576), of 4,096 channels and
width 1,536, and of 8,192 and width 2,048 (SmolLM2's with --quick), float32, random weights, two
threads. As in decoding, many layers follow one another, 256 MB of weights in all, so that no cache
holds what the next token reads. `sparse_ffn` leaves out channels whose gate is below a quantile; it
stands beside the dense feed-forward here and PyTorch's, which compute the same with and without
those channels. Outputs must agree. Bytes are those of weights that a token reads. Times are the
least of interleaved repeats.
"""

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

from benchmarks.common import Row, best_of_each, finish, options, print_table  # noqa: E402
from rml.sparsity import FeedForward, bytes_read, dense_ffn, sparse_ffn  # noqa: E402

SHAPES, QUICK = ((1536, 576), (4096, 1536), (8192, 2048)), ((1536, 576),)
SHARES = (0.5, 0.8)
BYTES = 256 * 2**20
"""Bytes of weights of all layers."""


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


def main() -> None:
    """Runs the comparison."""
    args = options(__doc__)
    import torch

    rows: list[Row] = []
    for f, d in QUICK if args.quick else SHAPES:
        count = max(2, BYTES // (8 if args.quick else 1) // (12 * f * d))
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
        for share in SHARES:
            agree(steps[f"{share}"](), ours(dense_ffn, x, layers, least[share])())
        seconds = best_of_each(steps, 3 if args.quick else 7)
        micro = {name: 1e6 * own / count for name, own in seconds.items()}
        shape = f"{f:,} channels, width {d:,}"
        rows.append(Row(f"dense, {shape}", "µs", micro["dense"], peer, micro[peer]))
        whole = 12 * f * d
        for share in SHARES:
            case = f"{share:.0%} left out, {shape}"
            rows += [
                Row(case, "µs", micro[f"{share}"], name, micro[name]) for name in ("dense", peer)
            ]
            live = int(
                np.mean([(own >= t[0]).sum() for own, t in zip(sizes, least[share], strict=True)])
            )
            read = bytes_read(live, d_ff=f, width=d) / 2**20
            rows.append(Row(case, "MB read", read, "dense", whole / 2**20))
    print_table(
        f"Feed-forward of one token, float32, {THREADS} threads: jax {jax.__version__}, "
        f"{platform.machine()}",
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
