"""One training step of Hydra beside one of SupCon, on the same batch, encoder and optimiser.

python -m benchmarks.hydra [--json] [--quick]

256 images of 28 x 28 pixels in two views, a small convolutional encoder, 64-dimensional
projections, C = 10, 100 and 1,000 classes. Times are the least of interleaved repeats; memory is
what the compiled step allocates beside its inputs and outputs. The losses alone, value and
gradient, follow, without the encoder that hides them.
"""

import platform
from collections.abc import Callable
from typing import Any

from benchmarks.common import Row, best_of_each, finish, options, print_table, products

STEP, LOSS = "training step", "loss alone"


def _config(classes: int) -> Any:
    from configs.hydra import compare_mnist5k

    config = compare_mnist5k.get_config()
    config.data.classes = classes
    return config


def _temporary(compiled: Any) -> float:
    """MB that a compiled program allocates beside its inputs and outputs."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes / 2**20


def step(method: str, classes: int) -> tuple[Callable[[], Any], float, float]:
    """A compiled training step that repeats itself, its temporary memory in MB, its FLOPs."""
    import jax
    import numpy as np

    from experiments.hydra import methods
    from rml.evaluation import program_flops
    from rml.training import initial_state

    config = _config(classes)
    task = methods.task(config, method)
    rng = np.random.default_rng(0)
    size = config.train.batch_size
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (size, *config.data.image_shape), np.uint8),
            "label": rng.integers(0, classes, size).astype(np.int32),
        }
    )
    state = initial_state(task, seed=0)
    compiled = jax.jit(task.step).lower(state, batch).compile()
    flops = program_flops(task.step, state, batch)
    return lambda: jax.block_until_ready(compiled(state, batch)), _temporary(compiled), flops


def loss(method: str, size: int, width: int) -> tuple[Callable[[], Any], float, float]:
    """Value and gradient of a loss on given projections, its temporary memory in MB, and FLOPs.

    The FLOPs are those of similarities and of both factors' gradients, of all pairs of rows.
    """
    import jax
    import numpy as np

    from rml.hydra import hydra_loss
    from rml.losses import sup_con

    rng = np.random.default_rng(0)
    x = rng.standard_normal((size, width), np.float32)
    gates = rng.uniform(size=(size, width)).astype(np.float32)
    labels, partners = rng.integers(0, 100, (2, size)).astype(np.int32)

    def ours(x: Any, gates: Any) -> Any:
        return hydra_loss(x, labels, partners, gates, temperature=0.1)

    def theirs(x: Any, gates: Any) -> Any:
        return sup_con(x, labels, temperature=0.1) + 0 * gates.sum()

    function = ours if method == "hydra" else theirs
    x, gates = jax.device_put((x, gates))
    compiled = jax.jit(jax.value_and_grad(function, (0, 1))).lower(x, gates).compile()
    flops = 3 * 2 * size**2 * width
    return lambda: jax.block_until_ready(compiled(x, gates)), _temporary(compiled), flops


def compare(case: str, make: Callable, args: tuple, repeats: int) -> list[Row]:
    """Time and memory of Hydra beside SupCon, and beside matrix products of as many FLOPs."""
    made = {method: make(method, *args) for method in ("hydra", "supcon")}
    floor = products(made["hydra"][2])
    calls = {method: call for method, (call, *_) in made.items()}
    seconds = best_of_each({**calls, "floor": floor.run}, repeats)
    ms = {name: 1e3 * value for name, value in seconds.items()}
    rows = [
        Row(case, "ms", ms["hydra"], "SupCon", ms["supcon"]),
        Row(case, "ms", ms["hydra"], floor.name, floor.share * ms["floor"]),
    ]
    return [*rows, Row(case, "temporary MB", made["hydra"][1], "SupCon", made["supcon"][1])]


def main() -> None:
    """Runs the comparison."""
    args = options(__doc__)
    import jax

    repeats = 5 if args.quick else 20
    rows = []
    for classes in (10, 1000) if args.quick else (10, 100, 1000):
        rows += compare(f"{STEP}, {classes:,} classes", step, (classes,), repeats)
    for size in (512, 2048) if args.quick else (512, 2048, 8192):
        rows += compare(f"{LOSS}, {size:,} rows of 256", loss, (size, 256), repeats)
    print_table(f"Hydra beside SupCon, jax {jax.__version__}, {platform.machine()}", rows)
    finish("hydra", rows, args.json)


if __name__ == "__main__":
    main()
