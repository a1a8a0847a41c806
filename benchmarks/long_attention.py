"""Causal attention over long texts, beside PyTorch's and JAX's own.

python -m benchmarks.long_attention [--json] [--quick]

One layer of SmolLM2's shape (9 heads of queries, 3 of keys, width 64), float32, two threads, at
2,048, 8,192 and 32,768 tokens (1,024 with --quick); the forward pass, and it with the gradient of
all inputs. Exact attention in blocks and HyperAttention (7 planes, blocks of 256, 256 samples,
exact up to 1,024 tokens) stand beside `torch.nn.functional.scaled_dot_product_attention` and
`jax.nn.dot_product_attention`, which holds all logits, so that it is left out where they would
take more than 8 GB. S2-attention (blocks of 64, the last 16 and every third) stands beside its
counted share of exact attention's time and, where logits fit, beside PyTorch's attention with its
pattern as a mask; so does the forward pass of Combiner's fixed form (segments of 64) beside that
with the mask of its segments and of the last token of each. Outputs of the same attention must
agree. Times are the least of interleaved repeats; memory is what the compiled program plans beyond
inputs and outputs.
"""

import os
import platform
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    from experiments.cpu import use_huge_pages

    use_huge_pages("benchmarks.long_attention")  # as the launcher does

THREADS = 2
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.common import Row, best_of_each, finish, options, print_table  # noqa: E402
from rml.attention import METHODS, combiner, shard_pattern, work  # noqa: E402
from rml.attention.hyper_samples import HyperSettings  # noqa: E402
from rml.ops.attention_parts import Visible  # noqa: E402

HEADS, KV_HEADS, WIDTH = 9, 3, 64
LENGTHS, QUICK = (2048, 8192, 32768), (1024,)
SETTINGS = HyperSettings(planes=7, block=256, samples=256, least=1024)
QUICK_SETTINGS = SETTINGS._replace(block=64, samples=64, least=256)
S2 = dict(block=64, local=16, stride=3)
QUICK_S2 = S2 | dict(local=4)
FIXED = combiner.CombinerSettings("fixed", 64)
LOGITS = 8 * 2**30
"""Bytes of logits beyond which attention that holds them all is left out."""


def inputs(n: int) -> tuple[np.ndarray, ...]:
    """Queries [1, h, n, k], keys and values [1, g, n, k], normal."""
    rng = np.random.default_rng(0)
    shapes = (HEADS, KV_HEADS, KV_HEADS)
    return tuple(rng.standard_normal((1, heads, n, WIDTH), np.float32) for heads in shapes)


def pattern_of(block: int, local: int, stride: int, *, n: int) -> np.ndarray:
    """Blocks that S2-attention visits."""
    return shard_pattern(n // block, heads=HEADS, shards=KV_HEADS, local=local, stride=stride)


def s2_mask(block: int, local: int, stride: int, *, n: int) -> np.ndarray:
    """Which keys S2-attention shows to each query, [h, n, n]."""
    pattern = pattern_of(block, local, stride, n=n)
    return pattern.repeat(block, axis=1).repeat(block, axis=2) & np.tri(n, dtype=bool)


def fixed_mask(n: int) -> np.ndarray:
    """The sparse attention that Combiner's fixed form fills up, [1, n, n]."""
    place, segment = np.arange(n), FIXED.segment
    own = place[:, None] // segment == place // segment
    return ((own | (place % segment == segment - 1)) & np.tri(n, dtype=bool))[None]


class Step:
    """A compiled call on inputs that are on the device already.

    Attributes:
      megabytes: What the program plans beyond inputs and outputs.
    """

    def __init__(self, attend: Callable[..., jax.Array], n: int, gradient: bool):
        """Compiles the forward pass, or it with the gradient of all inputs."""
        self.heads, self.gradient = tuple(jax.device_put(x) for x in inputs(n)), gradient
        call: Callable[..., Any] = attend
        if gradient:
            call = jax.grad(lambda *x: jnp.square(attend(*x)).sum(), argnums=(0, 1, 2))
        self.program: Any = jax.jit(call).lower(*self.heads).compile()
        planned: Any = self.program.memory_analysis()
        self.megabytes = planned.temp_size_in_bytes / 1e6

    def __call__(self) -> Any:
        """The output, or the queries' gradient."""
        out = jax.block_until_ready(self.program(*self.heads))
        return out[0] if self.gradient else out


def ours(name: str, n: int, gradient: bool, **own: Any) -> Step:
    """A row of `METHODS`."""

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        rng = jax.random.key(0)
        return METHODS[name](query, key, value, Visible(causal=True), rng=rng, **own)

    return Step(attend, n, gradient)


def jax_peer(n: int, gradient: bool) -> Step:
    """`jax.nn.dot_product_attention`, which takes heads after tokens."""

    def attend(*heads: jax.Array) -> jax.Array:
        heads = tuple(x.swapaxes(1, 2) for x in heads)
        return jax.nn.dot_product_attention(*heads, is_causal=True).swapaxes(1, 2)

    return Step(attend, n, gradient)


def torch_peer(n: int, gradient: bool, mask: np.ndarray | None = None) -> Callable[[], Any]:
    """`scaled_dot_product_attention`, whose keys are repeated for the heads that share them.

    It is causal, or shows what a mask [h or 1, n, n] says.
    """
    import torch

    torch.set_num_threads(THREADS)
    made = [torch.tensor(x, requires_grad=gradient) for x in inputs(n)]
    seen = None if mask is None else torch.from_numpy(mask)

    def step() -> Any:
        query, *others = made
        key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in others)
        attend = torch.nn.functional.scaled_dot_product_attention
        with torch.set_grad_enabled(gradient):
            out = attend(query, key, value, attn_mask=seen, is_causal=seen is None)
            return torch.autograd.grad(out.square().sum(), made)[0] if gradient else out

    return step


def require_equal(steps: dict[str, Any], first: str, *others: str) -> None:
    """Raises RuntimeError unless the others compute what the first does."""
    wanted = np.asarray(steps[first]())
    for name in others:
        error = np.linalg.norm(np.asarray(steps[name]()) - wanted) / np.linalg.norm(wanted)
        if not error < 1e-4:
            raise RuntimeError(f"{first} and {name} differ by {error:.2g}")


def repeats(n: int) -> int:
    """Turns that every side takes: short ones differ more from one another."""
    return 20 if n <= 2048 else 3 if n <= 8192 else 2


def masked_rows(n: int, gradient: bool, s2: dict[str, int], what: str) -> list[Row]:
    """S2-attention, and the forward pass of Combiner, beside PyTorch's attention with a mask."""
    import torch

    steps: dict[str, Any] = {
        "S2-attention": ours("s2_attention", n, gradient, **s2),
        "its mask": torch_peer(n, gradient, s2_mask(**s2, n=n)),
    }
    require_equal(steps, *steps)
    pairs = {"S2-attention": "its mask"}
    if not gradient:
        pairs["Combiner, fixed"] = "its sparse mask"
        steps["Combiner, fixed"] = ours("combiner", n, gradient, settings=FIXED)
        steps["its sparse mask"] = torch_peer(n, gradient, fixed_mask(n))
    seconds = best_of_each(steps, repeats(n))
    return [
        Row(f"{name}, {n:,} tokens, {what}", "s", seconds[name],
            f"torch {torch.__version__}, {peer}", seconds[peer])
        for name, peer in pairs.items()
    ]  # fmt: skip


def main() -> None:
    """Runs the comparison."""
    args = options(__doc__)
    import torch

    rows = []
    for n in QUICK if args.quick else LENGTHS:
        settings, s2 = (QUICK_SETTINGS, QUICK_S2) if args.quick else (SETTINGS, S2)
        for gradient in (False, True):
            steps: dict[str, Any] = {
                "exact": ours("exact", n, gradient),
                "hyper": ours("hyperattention", n, gradient, settings=settings),
                "s2": ours("s2_attention", n, gradient, **s2),
                f"torch {torch.__version__}": torch_peer(n, gradient),
            }
            if HEADS * n * n * 4 <= LOGITS:
                steps[f"jax.nn {jax.__version__}"] = jax_peer(n, gradient)
            peers = [name for name in steps if name not in ("exact", "hyper", "s2")]
            require_equal(steps, "exact", *peers)
            seconds = best_of_each(steps, repeats(n))
            what = "forward and gradient" if gradient else "forward"
            for name, title in (("exact", "exact in blocks"), ("hyper", "HyperAttention")):
                case = f"{title}, {n:,} tokens, {what}"
                rows += [Row(case, "s", seconds[name], peer, seconds[peer]) for peer in peers]
            case = f"HyperAttention, {n:,} tokens, {what}"
            rows.append(Row(case, "s", seconds["hyper"], "exact in blocks", seconds["exact"]))
            case, share = f"S2-attention, {n:,} tokens, {what}", work(pattern_of(**s2, n=n))
            counted = f"exact in blocks x {share:.2f}, the counted share"
            rows.append(Row(case, "s", seconds["s2"], counted, share * seconds["exact"]))
            if HEADS * n * n * 4 <= LOGITS:
                rows += masked_rows(n, gradient, s2, what)
            case = f"exact in blocks, {n:,} tokens, {what}"
            rows += [
                Row(case, "MB beside inputs", steps["exact"].megabytes, peer, steps[peer].megabytes)
                for peer in peers
                if isinstance(steps[peer], Step)
            ]
    print_table(
        f"Causal attention, {HEADS} heads of width {WIDTH}, float32, {THREADS} threads: jax "
        f"{jax.__version__}, {platform.machine()}",
        rows,
    )
    finish("long_attention", rows, args.json)


if __name__ == "__main__":
    main()
