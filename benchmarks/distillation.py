"""Losses of distillation beside torchdistill's, value and gradient of the student's side.

`python -m benchmarks.distillation [--json] [--quick]`. Logits are of 128 examples of 100 classes
and of 1,024 of 1,000, features 512 numbers of 64 and of 256 examples. DKD and One-for-All's loss,
which torchdistill lacks, stand beside their formulas in PyTorch. Values are compared first: where a
peer has another mean (RKD counts a row with itself, the correlations of CC have a root) it is
brought to the paper's. Of the angles memory is that of a fresh process beyond what the libraries
take.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import (
    Row,
    best_of_each,
    finish,
    in_fresh_process,
    options,
    print_extra_memory,
    print_table,
)
from rml import losses

if TYPE_CHECKING:
    import torch

MODULE = "benchmarks.distillation"
LOGITS, FEATURES = ((128, 100), (1024, 1000)), ((64, 512), (256, 512))
ANGLES = (256, 512)
TAU, GAMMA = 4.0, 1.5

Ours = Callable[..., jax.Array]
Peer = Callable[..., "torch.Tensor"]


def ours() -> dict[str, Ours]:
    """Each loss, of a student, a teacher and labels, as its mean over the batch."""
    by_example: dict[str, Ours] = {
        "KD": lambda s, t, y: losses.kd_loss(s, t, y, temperature=TAU),
        "DIST": lambda s, t, y: losses.dist_loss(s, t, y, temperature=TAU),
        "DKD": lambda s, t, y: losses.dkd_loss(s, t, y, temperature=TAU),
        "One-for-All": lambda s, t, y: losses.target_enhanced_loss(s, t, y, gamma=GAMMA),
        "RKD, distances": losses.rkd_distance,
        "RKD, angles": losses.rkd_angle,
        "CC": losses.correlation_congruence,
    }
    return {
        name: lambda s, t, y, loss=loss: jnp.mean(loss(s, t, y))
        for name, loss in by_example.items()
    }


def peers() -> dict[str, tuple[str, Peer]]:
    """The same of PyTorch, each with whose it is."""
    import importlib.metadata as packages

    import torch
    from torch.nn import functional as F
    from torchdistill.losses import mid_level

    def module(name: str, *places: str, **given: Any) -> Peer:
        loss = getattr(mid_level, name)(*places, **given)
        return lambda s, t, _: loss({".": {"output": s}}, {".": {"output": t}})

    places = (".", "output", ".", "output")
    kd = module("KDLoss", *places, temperature=TAU, alpha=0.0)
    distances = module("RKDLoss", ".", ".", dist_factor=1.0, angle_factor=0.0, reduction="mean")
    angles = module("RKDLoss", ".", ".", dist_factor=0.0, angle_factor=1.0, reduction="mean")
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    norm = module("CCKDLoss", ".", ".", kernel_config=kernel, reduction="sum")

    def decoupled(s: Any, t: Any, y: Any) -> Any:
        target = F.one_hot(y, s.shape[1]).bool()
        p, q = F.softmax(s / TAU, 1), F.softmax(t / TAU, 1)
        own, known = ((x * target).sum(1) for x in (p, q))
        first = F.kl_div(
            torch.log(torch.stack([own, 1 - own])), torch.stack([known, 1 - known]), reduction="sum"
        )
        rest = [(x / TAU).masked_fill(target, -1000.0) for x in (s, t)]
        second = F.kl_div(F.log_softmax(rest[0], 1), F.softmax(rest[1], 1), reduction="sum")
        return TAU**2 / len(s) * (first + 8 * second)

    def enhanced(s: Any, t: Any, y: Any) -> Any:
        target = F.one_hot(y, s.shape[1])
        return -(((F.softmax(t, 1) + target) ** GAMMA - target) * F.log_softmax(s, 1)).sum(1).mean()

    def cc(s: Any, t: Any, y: Any) -> Any:
        return (norm(F.normalize(s), F.normalize(t), y) / len(s)) ** 2

    named = f"torchdistill {packages.version('torchdistill')}"
    plain = f"torch {torch.__version__}"
    return {
        "KD": (named, lambda s, t, y: TAU**2 * kd(s, t, y)),
        "DIST": (named, module("DISTLoss", *places, tau=TAU)),
        "DKD": (plain, decoupled),
        "One-for-All": (plain, enhanced),
        "RKD, distances": (named, lambda s, t, y: len(s) / (len(s) - 1) * distances(s, t, y)),
        "RKD, angles": (
            named,
            lambda s, t, y: len(s) ** 2 / (len(s) - 1) / (len(s) - 2) * angles(s, t, y),
        ),
        "CC": (named, cc),
    }


def drawn(size: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student, teacher and labels."""
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, size, width), np.float32)
    return 2 * student, 2 * teacher, rng.integers(0, width, size)


def calls(name: str, size: int, width: int) -> dict[str, Callable[[], tuple[float, np.ndarray]]]:
    """Value and gradient of both sides."""
    import torch

    s, t, y = drawn(size, width)
    program = jax.jit(jax.value_and_grad(ours()[name]))
    given = jax.device_put((s, t, y.astype(np.int32)))
    peer, fixed = peers()[name][1], (torch.from_numpy(t), torch.from_numpy(y))

    def theirs() -> tuple[float, np.ndarray]:
        student = torch.from_numpy(s).requires_grad_()
        value = peer(student, *fixed)
        value.backward()
        assert student.grad is not None
        return value.item(), student.grad.numpy()

    def own() -> tuple[float, np.ndarray]:
        value, gradient = jax.block_until_ready(program(*given))
        return float(value), np.asarray(gradient)

    return {"ours": own, "peers": theirs}


def one_side(side: str, size: int, width: int) -> Callable[[], Any]:
    """Value and gradient of the angles by one side."""
    return calls("RKD, angles", size, width)[side]


def compare(name: str, size: int, width: int, repeats: int) -> list[Row]:
    """Agreement and time of a loss at one size."""
    sides = calls(name, size, width)
    (value, gradient), (expected, other) = (side() for side in sides.values())
    apart = max(
        abs(value / expected - 1), float(np.abs(gradient - other).max() / np.abs(other).max())
    )
    best = best_of_each(sides, repeats)
    case, peer = f"{name}, {size:,} x {width:,}", peers()[name][0]
    return [
        Row(case, "ms", 1e3 * best["ours"], peer, 1e3 * best["peers"]),
        Row(case, "largest relative difference + 1", 1 + apart, peer, 1.0),
    ]


def main() -> None:
    """Runs the comparison."""
    if sys.argv[1:2] == ["--memory"]:
        build = functools.partial(one_side, sys.argv[2])
        print_extra_memory(lambda: build(8, 4), lambda: build(*ANGLES))
        return
    args = options(__doc__)
    repeats = 6 if args.quick else 40
    rows: list[Row] = []
    for name in ours():
        sizes = FEATURES if name.startswith(("RKD", "CC")) else LOGITS
        for size, width in sizes[:1] if args.quick else sizes:
            rows += compare(name, size, width, repeats)
    memory = {side: in_fresh_process(MODULE, side) for side in ("ours", "peers")}
    case = f"RKD, angles, {ANGLES[0]} x {ANGLES[1]}"
    peer = peers()["RKD, angles"][0]
    rows.append(Row(case, "MB beyond libraries", memory["ours"], peer, memory["peers"]))
    print_table(f"Losses of distillation, jax {jax.__version__}", rows)
    finish("distillation", rows, args.json)


if __name__ == "__main__":
    main()
