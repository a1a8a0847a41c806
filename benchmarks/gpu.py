"""Methods on a GPU: timed where there is one, else as compiled for one that is not there.

python -m benchmarks.gpu [--json] [--quick]

Each method stands beside what one writes in JAX without it, and beside its floor, its products
alone. Without a GPU both are compiled for an H100 by XLA's own compiler (the `cuda` extra), and a
time is an estimate: over all instructions the larger of FLOPs at the peak of their type and bytes
at the memory's bandwidth, of the vendor's page (`tpu.roofline`); nothing is run then. Losses are
value and gradient in float32, whose products are at full precision on both sides, as those of
search; models of texts the gradient of a sum in bfloat16; a step is that of the config.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tpu.aot import use_compiler_only

if __name__ == "__main__" and not Path("/proc/driver/nvidia/version").exists():
    use_compiler_only()  # before JAX is loaded

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import (
    Row,
    best_of_each,
    finish,
    options,
    print_table,
    products,
)
from experiments.registry import read_config
from rml.attention.random_feature_attention import rfa_features
from rml.attention.ridge import solve_ridge, streamed_gram
from rml.errors import UserError
from rml.evaluation.costs import program_flops
from rml.fewshot import laplacian_shot
from rml.losses import info_nce, nt_xent
from rml.models import Bert, Llama
from rml.ops import use_precision
from rml.retrieval import search
from rml.training import initial_state
from tpu.compile import build_task
from tpu.estimate import estimate

CHIP = "h100"
DEMO = "configs/contrastive/simclr_mnist5k.py"
TEMPERATURE, PENALTY = 0.1, 1e-2


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
      name: What it is, with its shapes.
      args: Shapes of what its functions take.
      ours: Our function.
      peers: Others by name.
    """

    name: str
    args: tuple[Any, ...]
    ours: Callable[..., Any]
    peers: dict[str, Callable[..., Any]]


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array that is not there."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def losses(size: int) -> list[Case]:
    """Contrastive losses of so many rows of 256 dimensions, beside all similarities at once."""

    def dense(q: jax.Array, k: jax.Array) -> jax.Array:
        s = jnp.matmul(q, k.T, precision="highest") / TEMPERATURE
        return jnp.mean(jax.nn.logsumexp(s, axis=1) - jnp.diagonal(s))

    def dense_pairs(a: jax.Array, b: jax.Array) -> jax.Array:
        z = jnp.concatenate([a, b])
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        s = jnp.matmul(z, z.T, precision="highest") / TEMPERATURE
        s = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, s)
        own = jnp.sum(z * jnp.roll(z, len(a), axis=0), axis=1) / TEMPERATURE
        return jnp.mean(jax.nn.logsumexp(s, axis=1) - own)

    def both(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
        return jax.value_and_grad(loss, (0, 1))

    return [
        Case(
            f"InfoNCE, {size:,} x 256",
            (shape(size, 256),) * 2,
            both(partial(info_nce, temperature=TEMPERATURE)),
            {"dense JAX": both(dense)},
        ),
        Case(
            f"NT-Xent, {size:,} x 256",
            (shape(size // 2, 256),) * 2,
            both(partial(nt_xent, temperature=TEMPERATURE)),
            {"dense JAX": both(dense_pairs)},
        ),
    ]


def text_models(texts: int) -> list[Case]:
    """An encoder and a decoder whose attention is cuDNN's, beside attention written out."""
    cases = []
    for name, make, tokens in (
        ("BERT, 12 blocks of 768", partial(Bert, 30_522, 768, 12, 12, 3072), 512),
        ("decoder, 12 blocks of 576", partial(Llama, 49_152, 576, 12, 9, 1536, kv_heads=3), 2048),
    ):
        ids = shape(texts, tokens, dtype=jnp.int32)
        mask = shape(texts, tokens, dtype=jnp.bool_)

        gradient = partial(gradient_of, make)
        module = make()
        params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), ids, mask))["params"]
        cases.append(
            Case(
                f"{name}, {texts} texts of {tokens:,} tokens",
                (params, ids, mask),
                gradient("fused"),
                {'attention="xla"': gradient("xla")},
            )
        )
    return cases


def gradient_of(make: Callable[..., nn.Module], attention: str) -> Callable[..., Any]:
    """The gradient of the sum of what a model of texts gives."""
    module = make(attention=attention, dtype=jnp.bfloat16)

    def total(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        out: Any = module.apply({"params": params}, ids, mask)
        return jnp.sum(out.astype(jnp.float32))

    return jax.grad(total)


def few_shot(episodes: int) -> Case:
    """LaplacianShot on episodes of 5 ways, 1 shot and 75 queries."""

    def solve(features: jax.Array) -> jax.Array:
        labels = jnp.arange(5)
        method = partial(laplacian_shot, num_classes=5)
        return jax.vmap(lambda x: method(x[:5], labels, x[5:]))(features)

    def gram(features: jax.Array) -> jax.Array:
        return jnp.einsum("eid,ejd->eij", features, features, precision="highest")

    name = f"LaplacianShot, {episodes:,} episodes"
    return Case(name, (shape(episodes, 80, 640),), solve, {"Gram products alone": gram})


def ridge(n: int, heads: int) -> Case:
    """Ridge regression of n sets on random-feature attention, beside all features at once."""

    def features(inputs: tuple[jax.Array, jax.Array], weights: jax.Array) -> jax.Array:
        return rfa_features(*inputs, weights)

    def solve(query: jax.Array, keys: jax.Array, weights: jax.Array, y: jax.Array) -> jax.Array:
        gram = streamed_gram(lambda w, x: features(x, w), weights, (query, keys))
        return solve_ridge(gram, y, PENALTY)

    def at_once(query: jax.Array, keys: jax.Array, weights: jax.Array, y: jax.Array) -> jax.Array:
        found = features((query, keys), weights.reshape(-1, 17, 17)).reshape(n, -1)
        return solve_ridge(jnp.matmul(found, found.T, precision="highest"), y, PENALTY)

    args = shape(n, 16), shape(n, 16, 16), shape(heads // 100, 100, 17, 17), shape(n, 1)
    return Case(f"ridge, {n:,} sets, {heads:,} heads", args, solve, {"all features": at_once})


def nearest(rows: int, queries: int) -> Case:
    """The 10 nearest of many vectors, beside all scores at once."""

    def dense(query: jax.Array, vectors: jax.Array) -> Any:
        return jax.lax.top_k(jnp.matmul(query, vectors.T, precision="highest"), 10)

    return Case(
        f"10 nearest of {rows:,} x 384, {queries:,} queries",
        (shape(queries, 384), shape(rows, 384)),
        partial(search, k=10),
        {"dense JAX": dense},
    )


def demo() -> Case:
    """The demo's step."""
    config = read_config(DEMO)
    task = build_task(config)
    state = jax.eval_shape(lambda: initial_state(task, seed=0))
    return Case(f"step of {DEMO}", (state, task.batch_spec), task.step, {})


def main() -> int:
    """Times or compiles every case and prints the table."""
    chosen = options(__doc__)
    there = [device for device in jax.devices() if device.platform == "gpu"]
    few = chosen.quick
    cases = [
        *losses(1024),
        *([] if few else losses(16_384)),
        few_shot(1_000 if few else 10_000),
        ridge(500 if few else 2_000, 20_000),
        nearest(100_000 if few else 1_000_000, 1_000),
        *text_models(8 if few else 32),
        demo(),
    ]
    judge = timed if there else estimated
    with use_precision(read_config(DEMO).precision):
        rows = [row for case in cases for row in judge(case)]
    title = there[0].device_kind if there else f"as compiled for {CHIP}, not run"
    print_table(f"On a GPU: jax {jax.__version__}, {title}", rows)
    finish("gpu", rows, chosen.json, title)
    return 0


def estimated(case: Case) -> list[Row]:
    """A case as compiled for a GPU."""
    ours = estimate(case.ours, case.args, CHIP)
    found = {name: estimate(peer, case.args, CHIP) for name, peer in case.peers.items()}
    rows, metric = [], f"ms, estimated for {CHIP}"
    for name, peer in found.items():
        rows += [
            Row(case.name, metric, 1e3 * ours.seconds, name, 1e3 * peer.seconds),
            Row(
                case.name,
                "MB beside arguments",
                ours.temporaries / 1e6,
                name,
                peer.temporaries / 1e6,
            ),
        ]
    floor = "floor: its products alone"
    rows.append(Row(case.name, metric, 1e3 * ours.seconds, floor, 1e3 * ours.products))
    return rows


def timed(case: Case) -> list[Row]:
    """A case as it runs on the first GPU."""
    rng = np.random.default_rng(0)

    def draw(spec: jax.ShapeDtypeStruct) -> Any:
        if jnp.issubdtype(spec.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if jnp.issubdtype(spec.dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(spec.shape), spec.dtype)
        return jnp.ones(spec.shape, spec.dtype)

    args = jax.tree.map(draw, case.args)

    def run(function: Callable[..., Any]) -> Callable[[], Any]:
        program = jax.jit(function).lower(*args).compile()
        return lambda: jax.block_until_ready(program(*args))

    floor = products(program_flops(case.ours, *args, platform="cuda"))
    calls = {"": case.ours, **case.peers}
    best = best_of_each({n: run(f) for n, f in calls.items()} | {floor.name: floor.run}, 20)
    best[floor.name] *= floor.share
    ours = best.pop("")
    return [Row(case.name, "ms", 1e3 * ours, name, 1e3 * peer) for name, peer in best.items()]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:  # no compiler for GPUs
        sys.exit(f"error: {error}")
