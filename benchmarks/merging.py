"""Merging beside its peers: checkpoints from files to a file, transport plans, fused decoding.

`python -m benchmarks.merging [--json] [--quick]`. Eight checkpoints of the size of ViT-S/16, each
its base and a small change, are averaged and merged by TIES. The peer reads all of them by
safetensors into PyTorch's tensors, as published merging scripts do. Peak memory is that of a fresh
process beyond what the libraries take. Transport between the units of two encoders of width 384,
layer by layer, stands beside POT's solvers, each stopped where its plan's sums are right to 1e-5.
Fused decoding stands beside the same models with one weight at all tokens, and beside the large
model alone. Ten seeds of a distilled student, as one program a core, stand beside ten processes of
one seed each, one after another, each with all cores (two processes, times five, with `--quick`);
what the teacher says is drawn. The exact Fisher of a small vision transformer stands beside as many
gradients of the batch as there are classes and one more, which is what its sums would cost without
squares; learned coefficients of eight vectors beside fine-tuning, step by step. What multilevel
training saves at equal validation loss takes whole trainings: its recipe measures it, as
`flops_ratio_both` and `time_ratio_both`.
"""

import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import many
from benchmarks.common import (
    Row,
    best_of_each,
    finish,
    in_fresh_process,
    options,
    print_extra_memory,
    print_table,
)
from experiments.common.images import open_images
from experiments.distillation.families import Bed
from experiments.distillation.ofakd_students import task
from experiments.distillation.students import Changes, train_students
from experiments.registry import read_config
from experiments.startup import keep_compiled
from rml.merging import (
    diagonal_fisher,
    fuse_decode,
    ground_cost,
    learn_scaling,
    merge_files,
    transport_map,
)
from rml.models import Llama, Member, ViT, ViTS, generate
from rml.training import RunDirectory, descend

COUNT = 8
KEEP, SCALE = 0.2, 0.4
WIDTH, LAYERS, REG = 384, 12, 0.08
MODULE = "benchmarks.merging"


def write_checkpoints(folder: Path) -> None:
    """A base and eight models around it, by the shapes of ViT-S/16."""
    from safetensors.numpy import save_file

    module = ViTS(patch_size=16)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    leaves = jax.tree.leaves(shapes["params"])
    rng = np.random.default_rng(0)
    base = [rng.normal(0, 0.05, leaf.shape).astype(np.float32) for leaf in leaves]
    for number in range(COUNT + 1):
        changed = [
            x + (number > 0) * rng.normal(0, 0.003, x.shape).astype(np.float32) for x in base
        ]
        tensors = {f"leaf{at:03}": x for at, x in enumerate(changed)}
        save_file(tensors, folder / f"{number}.safetensors")


def ours(method: str, folder: Path) -> None:
    """Merges files by this library."""
    out = folder / "ours.safetensors"
    out.unlink(missing_ok=True)
    paths = [folder / f"{number}.safetensors" for number in range(1, COUNT + 1)]
    given = {"keep": KEEP, "scale": SCALE} if method == "ties" else {}
    merge_files(method, folder / "0.safetensors", paths, out, **given)


def peers(method: str, folder: Path) -> None:
    """Merges files by PyTorch: all in memory, vectors over all parameters for TIES."""
    import torch
    from safetensors.torch import load_file, save_file

    base, *experts = (load_file(folder / f"{number}.safetensors") for number in range(COUNT + 1))
    if method == "average":
        merged = {name: torch.stack([own[name] for own in experts]).mean(0) for name in base}
        save_file(merged, folder / "peers.safetensors")
        return
    start = torch.cat([base[name].flatten() for name in base])
    vectors = torch.stack([torch.cat([own[name].flatten() for name in base]) for own in experts])
    vectors -= start
    dropped = vectors.shape[1] - round(KEEP * vectors.shape[1])
    least = vectors.abs().kthvalue(dropped + 1, dim=1, keepdim=True).values
    vectors[vectors.abs() < least] = 0
    agrees = vectors * vectors.sum(0).sign() > 0
    mean = (vectors * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    found, at = start + SCALE * mean, 0
    for name, tensor in base.items():
        base[name] = found[at : at + tensor.numel()].view_as(tensor).clone()
        at += tensor.numel()
    save_file(base, folder / "peers.safetensors")


SIDES = {"ours": ours, "peers": peers}


def measure_files(folder: Path, repeats: int) -> list[Row]:
    """Seconds, extra memory and agreement of both sides."""
    import torch
    from safetensors.numpy import load_file

    rows, peer = [], f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    for method in ("average", "ties"):
        case = f"{COUNT} of ViT-S/16, {method}"
        best = best_of_each(
            {name: functools.partial(side, method, folder) for name, side in SIDES.items()}, repeats
        )
        rows.append(Row(case, "s", best["ours"], peer, best["peers"]))
        memory = {name: in_fresh_process(MODULE, name, method, folder) for name in SIDES}
        rows.append(Row(case, "MB beyond libraries", memory["ours"], peer, memory["peers"]))
        found, expected = (load_file(folder / f"{name}.safetensors") for name in SIDES)
        apart = max(float(np.abs(found[name] - expected[name]).max()) for name in found)
        rows.append(Row(case, "largest difference + 1", 1 + apart, peer, 1.0))
    return rows


def measure_transport(repeats: int) -> list[Row]:
    """Milliseconds of the plans of all layers, soft and exact, and how far their sums are off."""
    import ot

    rng = np.random.default_rng(0)
    units = rng.normal(size=(LAYERS, WIDTH, 256)).astype(np.float32)
    order = rng.permutation(WIDTH)
    others = units[:, order] + 0.7 * rng.normal(size=units.shape).astype(np.float32)
    costs = jax.jit(jax.vmap(ground_cost))(units, others)
    given, mass = np.asarray(costs), np.full(WIDTH, 1 / WIDTH, np.float32)
    soft = jax.jit(jax.vmap(functools.partial(transport_map, reg=REG)))
    exact = jax.jit(jax.vmap(functools.partial(transport_map, solver="exact")))

    def peer(method: str) -> np.ndarray:
        solve = functools.partial(
            ot.sinkhorn, mass, mass, reg=REG, method=method, stopThr=1e-6, numItermax=2000
        )
        return WIDTH * np.stack([solve(M=cost) for cost in given])

    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: jax.block_until_ready(soft(costs)),
        "sinkhorn_log": lambda: peer("sinkhorn_log"),
        "sinkhorn": lambda: peer("sinkhorn"),
        "ours exact": lambda: jax.block_until_ready(exact(costs)),
        "emd": lambda: WIDTH * np.stack([ot.emd(mass, mass, cost) for cost in given]),
    }
    milliseconds = {name: 1e3 * took for name, took in best_of_each(calls, repeats).items()}
    found = {name: np.asarray(call()) for name, call in calls.items()}
    off = {
        name: 1 + max(float(np.abs(plans.sum(axis) - 1).mean(-1).max()) for axis in (1, 2))
        for name, plans in found.items()
    }
    case, version = f"{LAYERS} plans of {WIDTH} units", f"POT {ot.__version__}"
    pairs = (("ours", "sinkhorn_log"), ("ours", "sinkhorn"), ("ours exact", "emd"))
    rows = []
    for own, other in pairs:
        name = f"{version}, {other}"
        rows.append(Row(case, "ms", milliseconds[own], name, milliseconds[other]))
        rows.append(Row(case, "largest error of sums + 1", off[own], name, off[other]))
    return rows


def measure_decoding(repeats: int) -> list[Row]:
    """Milliseconds of a token with weights chosen, with one weight, and of the large model."""
    large = Llama(vocabulary=8192, width=512, depth=8, heads=8, mlp=1536)
    small = Llama(vocabulary=8192, width=128, depth=4, heads=4, mlp=384)
    start = jnp.zeros((1, 2), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    own, base, expert = (
        jax.jit(module.init)(key, start)
        for module, key in zip((large, small, small), keys, strict=True)
    )
    stacked = jax.tree.map(lambda leaf: leaf[None], expert)
    members = Member(large, own), Member(small, stacked, True), Member(small, base)
    tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, 8192)
    steps = 32
    calls: dict[str, Callable[[], Any]] = {
        "chosen": lambda: jax.block_until_ready(fuse_decode(*members, tokens, steps=steps)),
        "fixed": lambda: jax.block_until_ready(
            fuse_decode(*members, tokens, steps=steps, alpha=1.0)
        ),
        "large": lambda: jax.block_until_ready(generate(large, own, tokens, steps=steps)),
    }
    best = best_of_each(calls, repeats)
    milliseconds = {name: 1e3 * seconds / steps for name, seconds in best.items()}
    case = "8 texts, 8,192 tokens of vocabulary"
    return [
        Row(case, "ms a token", milliseconds["chosen"], "one weight at all tokens",
            milliseconds["fixed"]),
        Row(case, "ms a token", milliseconds["chosen"], "large model alone",
            milliseconds["large"]),
    ]  # fmt: skip


def train_share(folder: Path, seeds: Sequence[int]) -> None:
    """One process: a student of the ranking of losses for each seed, as one program."""
    config = read_config("configs/distillation/compare.py")
    images = {
        part: open_images(config, part, labelled=True).arrays() for part in ("train", "validation")
    }
    drawn = np.random.default_rng(0).normal(size=(len(images["train"]["label"]), 1, config.classes))
    known = {**images["train"], "teacher": drawn.astype(np.float32)}
    bed = Bed(("convnet",), known, images["validation"], {}, {}, {}, {})
    own = {"given.convnet": 1.0, "given.kd": 0.9}
    run = RunDirectory(folder / "run", config.to_dict())
    changes: Changes = {("kd", seed, "convnet"): {"seed": seed, **own} for seed in seeds}
    found = train_students(
        config, run, "kd", "convnet", changes, bed,
        functools.partial(task, bed=bed, family="convnet", kind="logits", methods=("kd",)),
    )  # fmt: skip
    pairs = zip(seeds, found.accuracy, strict=True)
    metrics = {seed: {"accuracy": float(accuracy)} for seed, accuracy in pairs}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def launch(seed: int, folder: Path) -> tuple[float, float]:
    """Seconds of a process that trains one seed, and its accuracy."""
    directory = folder / f"seed{seed}"
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", MODULE, "--train", directory, str(seed)], check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    return seconds, json.loads((directory / "metrics.json").read_text())[str(seed)]["accuracy"]


def measure_learning(repeats: int) -> list[Row]:
    """Milliseconds of an exact Fisher and of learned coefficients, beside plain gradients."""
    classes, images, steps, size = 10, 256, 20, 32
    module = ViT(width=64, depth=4, heads=4, patch_size=7, pooling="gap", positions="sincos2d",
                 classes=classes)  # fmt: skip
    rng = np.random.default_rng(0)
    seen = jnp.asarray(rng.random((images, 28, 28, 1)), jnp.float32)
    label = jnp.asarray(rng.integers(0, classes, images), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), seen[:1])["params"]
    params = nn.unbox(params)

    def loss(params: Any, batch: Any) -> jax.Array:
        found = module.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(found, batch[1]).mean()

    def log_probs(params: Any, image: jax.Array) -> jax.Array:
        found: Any = module.apply({"params": params}, image[None])
        return jax.nn.log_softmax(found)[0]

    @jax.jit
    def gradients(params: Any) -> Any:
        given = [(label + shift) % classes for shift in range(classes + 1)]
        return jax.lax.map(lambda own: jax.grad(loss)(params, (seen, own)), jnp.stack(given))

    fisher = jax.jit(functools.partial(diagonal_fisher, log_probs, block=4))
    rows = jnp.asarray(rng.integers(0, images, (steps, size)))
    batches = seen[rows], label[rows]
    vectors = jax.tree.map(
        lambda leaf: 0.01 * jnp.asarray(rng.normal(size=(COUNT, *leaf.shape)), leaf.dtype), params
    )
    learned = jax.jit(functools.partial(learn_scaling, loss))
    optimizer = optax.adamw(1e-3)

    @jax.jit
    def tuned(params: Any, batches: Any) -> Any:
        return descend(loss, params, batches, optimizer=optimizer)

    best = best_of_each({
        "fisher": lambda: jax.block_until_ready(fisher(params, seen)),
        "gradients": lambda: jax.block_until_ready(gradients(params)),
        "learned": lambda: jax.block_until_ready(learned(params, vectors, batches)),
        "tuned": lambda: jax.block_until_ready(tuned(params, batches)),
    }, repeats)  # fmt: skip
    milliseconds = {name: 1e3 * seconds for name, seconds in best.items()}
    return [
        Row(f"Fisher of {images} images, {classes} classes", "ms", milliseconds["fisher"],
            f"{classes + 1} gradients of the batch", milliseconds["gradients"]),
        Row(f"a step of coefficients of {COUNT} vectors", "ms", milliseconds["learned"] / steps,
            "a step of fine-tuning", milliseconds["tuned"] / steps),
    ]  # fmt: skip


def measure_seeds(quick: bool) -> list[Row]:
    """Seconds of ten seeds together and one after another, and the mean accuracy of both."""
    seeds = many.SEEDS[:2] if quick else many.SEEDS
    counted = f"{len(seeds)} runs" + (f" x {len(many.SEEDS) // len(seeds)}" if quick else "")
    launched, seconds, metrics = many.both_sides(launch, seeds, MODULE)
    each = statistics.mean(own for own, _ in launched)
    title = f"{len(many.SEEDS)} seeds of a student"
    ours = statistics.mean(metrics[str(seed)]["accuracy"] for seed in seeds)
    return [
        Row(title, "s", seconds, counted, len(many.SEEDS) * each),
        Row(f"accuracy of seeds {seeds[0]} to {seeds[-1]}", "mean", ours, counted,
            statistics.mean(own for _, own in launched), lower_is_better=False),
    ]  # fmt: skip


def main() -> None:
    """Measures all cases and prints the table."""
    if sys.argv[1:2] == ["--memory"]:
        side, method, folder = sys.argv[2:]
        call = functools.partial(SIDES[side], method, Path(folder))
        print_extra_memory(lambda: lambda: jnp.ones(2).block_until_ready(), lambda: call)
        return
    if sys.argv[1:2] == ["--train"]:
        keep_compiled()  # as a launch does
        train_share(Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]])
        return
    args = options(__doc__)
    repeats = 2 if args.quick else 5
    with tempfile.TemporaryDirectory() as name:
        write_checkpoints(Path(name))
        rows = measure_files(Path(name), repeats)
    rows += measure_transport(repeats) + measure_decoding(repeats) + measure_learning(repeats)
    rows += measure_seeds(args.quick)
    print_table(f"Merging: jax {jax.__version__}", rows)
    finish("merging", rows, args.json)


if __name__ == "__main__":
    main()
