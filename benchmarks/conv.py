"""Convolution and dense layers, forward and backward on a CPU: rml beside PyTorch and plain XLA.

    python -m benchmarks.conv [--json] [--quick]

The encoder rows train: forward in training mode (BatchNorm included) and the gradient of every
parameter. The depthwise rows are layers of EfficientNet-Lite0 on images of 64 pixels, the dense
ones layers that narrow. PyTorch runs in the faster of its two memory layouts. The floor is the time
of matrix products of as many FLOPs, for depthwise layers of reading as many bytes.
"""

import argparse
import functools
import os
from collections.abc import Callable
from typing import Any

THREADS = min(2, os.cpu_count() or 1)
if __name__ == "__main__":
    from experiments import cpu

    cpu.use_huge_pages("benchmarks.conv")  # as the launcher does
    if hasattr(os, "sched_setaffinity"):
        # Before jax and torch read how many cores there are.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    cpu.convolve_on_all_cores()

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import common  # noqa: E402
from rml import models  # noqa: E402
from rml.evaluation import program_flops  # noqa: E402
from rml.models import layers  # noqa: E402
from rml.models.depthwise import depthwise_conv2d  # noqa: E402

# batch, side, channels in, kernel, stride, channels out
SHAPES = {
    "ConvNet stage 1": (512, 28, 1, 5, 2, 32),
    "ConvNet stage 2": (512, 14, 32, 3, 2, 64),
    "3x3 on digits": (256, 28, 32, 3, 1, 32),
    "ResNet-18 stage 1": (64, 32, 64, 3, 1, 64),
    "ResNet-18 stage 2, first": (64, 32, 64, 3, 2, 128),
    "ResNet-18 stage 2": (64, 16, 128, 3, 1, 128),
    "ResNet-18 stage 3": (64, 8, 256, 3, 1, 256),
    "ResNet-18 stage 4": (64, 4, 512, 3, 1, 512),
    "ResNet-18 shortcut": (64, 32, 64, 1, 2, 128),
}
# batch, side, channels, kernel, stride
DEPTHWISE = {
    "Lite0 stage 0": (32, 32, 32, 3, 1),
    "Lite0 stage 1, first": (32, 32, 96, 3, 2),
    "Lite0 stage 4": (32, 4, 480, 5, 1),
    "Lite0 stage 6": (32, 2, 1152, 3, 1),
}
# rows, channels in, channels out
DENSE = {
    "ConvNet on 8x8": (512, 1024, 128),
    "transformer's second": (4096, 512, 128),
}
QUICK = (
    "ConvNet stage 1", "ConvNet stage 2", "ResNet-18 stage 1", "Lite0 stage 1, first",
    "ConvNet on 8x8",
)  # fmt: skip


def jax_conv(shape: tuple[int, ...], implementation: str) -> Callable[[], Any]:
    """Output and both gradients of one convolution (the first layer's images need none)."""
    batch, side, channels, size, stride, out = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, side, side, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, out)), jnp.float32)
    first = channels == 1

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return models.conv2d(
            x,
            kernel,
            strides=(stride, stride),
            padding=size // 2,
            implementation=implementation,
        )

    @jax.jit
    def both(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, Any]:
        y, vjp = jax.vjp(lambda k: conv(x, k), kernel) if first else jax.vjp(conv, x, kernel)
        return y, vjp(dy)

    dy = jnp.ones_like(conv(x, kernel))
    return lambda: jax.block_until_ready(both(x, kernel, dy))


def jax_depthwise(shape: tuple[int, ...], conv: Callable[..., jax.Array]) -> Callable[[], Any]:
    """Output and both gradients of one depthwise convolution."""
    batch, side, channels, size, stride = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, side, side, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, channels)), jnp.float32)
    conv = functools.partial(conv, stride=stride, padding=size // 2)

    @jax.jit
    def both(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, Any]:
        y, vjp = jax.vjp(conv, x, kernel)
        return y, vjp(dy)

    dy = jnp.ones_like(conv(x, kernel))
    return lambda: jax.block_until_ready(both(x, kernel, dy))


def xla_depthwise(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """The same by XLA's grouped convolution."""
    return models.conv2d(
        x, kernel, strides=(stride, stride), padding=padding, groups=x.shape[-1],
        implementation="xla",
    )  # fmt: skip


def torch_conv(
    shape: tuple[int, ...], layout: torch.memory_format, groups: int = 1
) -> Callable[[], Any]:
    """The same in PyTorch."""
    batch, side, channels, size, stride, out = shape
    x = torch.randn(batch, channels, side, side).to(memory_format=layout)
    x.requires_grad_(channels > 1)
    layer = torch.nn.Conv2d(
        channels, out, size, stride, padding=size // 2, bias=False, groups=groups
    )
    layer = layer.to(memory_format=layout)
    dy = torch.ones_like(layer(x)).contiguous(memory_format=layout)

    def both() -> None:
        x.grad = layer.weight.grad = None
        layer(x).backward(dy)

    return both


def jax_dense(shape: tuple[int, int, int], layer: nn.Module) -> Callable[[], Any]:
    """Output and both gradients of one dense layer."""
    rows, channels, out = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, channels)), jnp.float32)
    variables = nn.unbox(jax.jit(layer.init)(jax.random.key(0), x))

    @jax.jit
    def both(variables: Any, x: jax.Array, dy: jax.Array) -> tuple[Any, Any]:
        y, vjp = jax.vjp(layer.apply, variables, x)
        return y, vjp(dy)

    dy = jnp.ones((rows, out))
    return lambda: jax.block_until_ready(both(variables, x, dy))


def torch_dense(shape: tuple[int, int, int]) -> Callable[[], Any]:
    """The same in PyTorch."""
    rows, channels, out = shape
    x = torch.randn(rows, channels, requires_grad=True)
    layer = torch.nn.Linear(channels, out)
    dy = torch.ones(rows, out)

    def both() -> None:
        x.grad = layer.weight.grad = layer.bias.grad = None
        layer(x).backward(dy)

    return both


def jax_encoder(encoder: nn.Module, images: tuple[int, ...]) -> Callable[[], Any]:
    """One training pass of an encoder: features, statistics and the parameters' gradient."""
    step, args = encoder_step(encoder, images)
    compiled = jax.jit(step)
    return lambda: jax.block_until_ready(compiled(*args))


def encoder_flops(encoder: nn.Module, images: tuple[int, ...]) -> float:
    """FLOPs of the convolutions and products of that pass."""
    step, args = encoder_step(encoder, images)
    return program_flops(step, *args)


def encoder_step(encoder: nn.Module, images: tuple[int, ...]) -> tuple[Callable[..., Any], Any]:
    """The pass as a function, and its arguments."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=images), jnp.float32)
    variables = nn.unbox(jax.jit(encoder.init)(jax.random.key(0), x))

    def step(params: Any, stats: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            y, new = encoder.apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(y * y), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    return step, (variables["params"], variables["batch_stats"], x)


def torch_encoder(
    model: torch.nn.Module, images: tuple[int, ...], layout: torch.memory_format
) -> Callable[[], Any]:
    """The same in PyTorch."""
    batch, height, width, channels = images
    x = torch.randn(batch, channels, height, width).to(memory_format=layout)
    model = model.to(memory_format=layout).train()

    def step() -> None:
        model.zero_grad()
        model(x).square().sum().backward()

    return step


def torch_convnet() -> torch.nn.Module:
    """PyTorch's form of the default ConvNet on 28x28 digits."""
    t = torch.nn
    stages: list[torch.nn.Module] = []
    net = models.ConvNet()
    channels, side = 1, 28
    for width, size, stride in zip(net.widths, net.kernel_sizes, net.strides, strict=True):
        stages += [
            t.Conv2d(channels, width, size, stride, padding=size // 2, bias=False),
            t.BatchNorm2d(width),
            t.ReLU(),
        ]
        channels, side = width, -(-side // stride)
    return t.Sequential(*stages, t.Flatten(), t.Linear(channels * side * side, net.features or 1))


def torch_resnet18() -> torch.nn.Module:
    """Torchvision's ResNet-18 with the CIFAR stem and no classifier."""
    import torchvision

    model = torchvision.models.resnet18()
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    model.fc = torch.nn.Identity()
    return model


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and repeats")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    repeats = 5 if options.quick else 8
    layouts = (torch.contiguous_format, torch.channels_last)
    rows: list[common.Row] = []

    def compare(case: str, fns: dict[str, Callable[[], Any]], floor: common.Floor) -> None:
        timed = common.best_of_each({**fns, "floor": floor.run}, repeats)
        best = {k: 1e3 * v for k, v in timed.items()}
        metric = "forward + backward, ms"
        theirs = min(value for name, value in best.items() if name.startswith("torch"))
        rows.append(common.Row(case, metric, best["ours"], "torch", theirs))
        rows.append(common.Row(case, metric, best["ours"], "xla", best["xla"]))
        rows.append(common.Row(case, metric, best["ours"], floor.name, floor.share * best["floor"]))

    for name, shape in SHAPES.items():
        if options.quick and name not in QUICK:
            continue
        batch, side, channels, size, stride, out = shape
        case = f"{name}: {size}x{size} s{stride} {channels}->{out}, {batch}x{side}x{side}"
        fns = {"ours": jax_conv(shape, "auto"), "xla": jax_conv(shape, "xla")}
        fns |= {f"torch {layout}": torch_conv(shape, layout) for layout in layouts}
        one = 2 * batch * (side // stride) ** 2 * size**2 * channels * out
        compare(case, fns, common.products((2 if channels == 1 else 3) * one))
    for name, layer in DEPTHWISE.items():
        if options.quick and name not in QUICK:
            continue
        batch, side, channels, size, stride = layer
        case = f"{name}: depthwise {size}x{size} s{stride} {channels}, {batch}x{side}x{side}"
        fns = {
            "ours": jax_depthwise(layer, depthwise_conv2d),
            "xla": jax_depthwise(layer, xla_depthwise),
        }
        for layout in layouts:
            fns[f"torch {layout}"] = torch_conv((*layer, channels), layout, groups=channels)
        # Of images and outputs, and of the gradients of both, each is read or written once.
        whole = 4 * batch * channels * side**2
        compare(case, fns, common.reading(2 * whole * (1 + 1 / stride**2)))
    for name, sizes in DENSE.items():
        if options.quick and name not in QUICK:
            continue
        batch, channels, out = sizes
        fns = {
            "ours": jax_dense(sizes, layers.dense(out, (None, None))),
            "xla": jax_dense(sizes, nn.Dense(out)),
            "torch": torch_dense(sizes),
        }
        case = f"{name}: dense {channels}->{out}, {batch} rows"
        compare(case, fns, common.products(3 * 2 * batch * channels * out))
    encoders: list[tuple[str, str, tuple[int, ...], Callable[[], torch.nn.Module], dict]] = [
        ("ConvNet, 512 digits 28x28", "convnet", (512, 28, 28, 1), torch_convnet, {}),
        (
            "ResNet-18, 32 CIFAR images",
            "resnet18",
            (32, 32, 32, 3),
            torch_resnet18,
            {"stem": "cifar"},
        ),
    ]
    for case, name, images, make, extra in encoders[: 1 if options.quick else 2]:
        fns = {
            "ours": jax_encoder(models.build(name, **extra), images),
            "xla": jax_encoder(models.build(name, implementation="xla", **extra), images),
        }
        fns |= {f"torch {layout}": torch_encoder(make(), images, layout) for layout in layouts}
        compare(case, fns, common.products(encoder_flops(models.build(name, **extra), images)))
    title = f"jax {jax.__version__}, torch {torch.__version__}, {THREADS} CPU threads, float32"
    common.print_table(title, rows)
    common.finish("conv", rows, options.json)


if __name__ == "__main__":
    main()
