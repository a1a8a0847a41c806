"""The engine beside its bare step, and the demo's step beside the same step in PyTorch.

`python -m benchmarks.engine [--json] [--quick]`. The PyTorch step has the same network, loss,
optimiser, augmentation (one batched warp and erasing) and batch, in float32 on the same threads.
"""

import runpy
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import torch
from torch import nn
from torch.nn import functional

from benchmarks.common import Row, finish, options, print_table
from experiments.contrastive import simclr
from experiments.cpu import convolve_on_all_cores, use_huge_pages
from rml.training import CompiledTask, Progress, RunDirectory, Task, fit, make_mesh

CONFIG = "configs/contrastive/simclr_mnist5k.py"
WARM = 5


class Stopwatch(Progress):
    """Remembers when each step was reached."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.times: list[float] = []

    def advance(self, step: int) -> None:
        """Called by `fit` after each step."""
        self.times.append(time.perf_counter())


def fit_step(task: Task, steps: int, log_every: int) -> float:
    """Seconds a step of `fit`: data, metrics and writers included, evaluation not."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(f"{folder}/run", {"experiment": "benchmark"})
        quiet = task.replace(evaluate=lambda state: {})  # type: ignore[attr-defined]
        fit(quiet, run, steps=steps + WARM, log_every=log_every, progress=watch)
    return (watch.times[-1] - watch.times[WARM - 1]) / steps


def bare_step(task: Task, compiled: CompiledTask, steps: int) -> float:
    """Seconds a step on one batch that is on the device already."""
    state = compiled.init()
    batch = jax.device_put(next(iter(task.batches())), compiled.batch_shardings)
    for _ in range(WARM):
        state, metrics = compiled.step(state, batch)
    jax.block_until_ready(metrics)
    begin = time.perf_counter()
    for _ in range(steps):
        state, metrics = compiled.step(state, batch)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - begin) / steps


class TorchEncoder(nn.Module):
    """The demo's encoder and head, layer by layer as `rml.models` builds them."""

    def __init__(self, config: Any):
        super().__init__()
        model, channels, size = config.model, 1, config.data.image_shape[0]
        stages: list[nn.Module] = []
        for width, kernel, stride in zip(
            model.widths, model.kernel_sizes, model.strides, strict=True
        ):
            stages.append(
                nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
            )
            stages += [nn.BatchNorm2d(width), nn.ReLU()]
            channels, size = width, -(-size // stride)
        self.encoder = nn.Sequential(
            *stages, nn.Flatten(), nn.Linear(channels * size * size, model.features)
        )
        self.head = nn.Sequential(
            nn.Linear(model.features, config.head.hidden),
            nn.ReLU(),
            nn.Linear(config.head.hidden, config.head.features),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Projections."""
        return self.head(self.encoder(images))


def torch_views(images: torch.Tensor, config: Any) -> torch.Tensor:
    """Both views in one batch: a random affine warp and a random erased box an example."""
    affine, erase = config.augment.random_affine, config.augment.random_erase
    images = torch.cat([images, images])
    n, side = len(images), images.shape[-1]

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n)

    radians = torch.pi / 180
    angle, slope = draw(-1, 1) * affine.degrees * radians, draw(-1, 1) * affine.shear * radians
    zoom, shift = 1 / draw(*affine.scale), 2 * affine.translate
    cos, sin, tan = angle.cos(), angle.sin(), slope.tan()
    rows = [
        torch.stack([zoom * (cos + tan * sin), zoom * (sin - tan * cos), draw(-shift, shift)], 1),
        torch.stack([-zoom * sin, zoom * cos, draw(-shift, shift)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, align_corners=False)
    area, ratio = draw(*erase.scale) * side**2, draw(0.3, 3.3)
    height, width = (area * ratio).sqrt(), (area / ratio).sqrt()
    top, left = torch.rand(n) * (side - height), torch.rand(n) * (side - width)
    at = torch.arange(side)
    inside_rows = (at >= top[:, None]) & (at < (top + height)[:, None])
    inside_columns = (at >= left[:, None]) & (at < (left + width)[:, None])
    box = (
        inside_rows[:, :, None] & inside_columns[:, None] & (torch.rand(n) < erase.p)[:, None, None]
    )
    return images.masked_fill(box[:, None], 0.0)


def torch_step(config: Any) -> Callable[[], None]:
    """The demo's step in PyTorch."""
    model = TorchEncoder(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
    )  # fmt: skip
    n = config.train.batch_size
    batch = torch.rand(n, 1, *config.data.image_shape[:2])
    partner = torch.arange(2 * n).roll(n)
    itself = torch.eye(2 * n, dtype=torch.bool)

    def step() -> None:
        z = functional.normalize(model(torch_views(batch, config)))
        logits = (z @ z.T / config.loss.temperature).masked_fill(itself, -torch.inf)
        loss = functional.cross_entropy(logits, partner)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    """Seconds a call."""
    for _ in range(WARM):
        step()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def main() -> None:
    """Measures in turns and prints both tables."""
    args = options(__doc__)
    torch.set_num_threads(2)
    steps, rounds = (20, 2) if args.quick else (150, 3)
    config = runpy.run_path(CONFIG)["get_config"]()
    task = simclr.task(config)
    compiled = CompiledTask(task, make_mesh())
    step = torch_step(config)
    inside, bare, peer = [], [], []
    for _ in range(rounds):
        bare.append(bare_step(task, compiled, steps))
        inside.append(fit_step(task, steps, config.train.log_every))
        peer.append(seconds(step, steps))
    rows = [
        Row(
            "fit: data, metrics, writers",
            "ms/step",
            1e3 * min(inside),
            "bare step",
            1e3 * min(bare),
        ),
        Row("SimCLR demo step", "ms/step", 1e3 * min(bare), "PyTorch", 1e3 * min(peer)),
    ]
    print_table("Engine", rows)
    finish("engine", rows, args.json)


if __name__ == "__main__":
    use_huge_pages("benchmarks.engine")  # as the launcher does
    convolve_on_all_cores()
    main()
