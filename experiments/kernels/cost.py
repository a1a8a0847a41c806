"""What deep kernel machines cost against n: a training epoch of the sparse one, a full gradient.

The data are noise: only their sizes matter here; `experiments.kernels.learning` trains to the end.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import figures
from rml.kernels import deep_kernel_machine as dkm
from rml.kernels import gram as kernels
from rml.kernels import sparse
from rml.kernels.optimize import descend
from rml.training import Claim, RunDirectory

SOURCE = "arXiv:2108.13097: linear in the data when sparse, cubic when full; margin ours"
CLAIMS = (
    Claim("An epoch of the sparse machine is linear in n: exponent of at most 1.15",
          "sparse_exponent", "<=", 1.15, SOURCE),
    Claim("A gradient of the full machine tends to be cubic in n: exponent of at least 2.3 over "
          "the larger sizes",
          "full_exponent", ">=", 2.3, SOURCE),
)  # fmt: skip
CAPTIONS = {"seconds.png": "Least seconds against n (log10 of both): sparse epoch, full gradient."}


def least(call: Callable[[], Any], repeats: int) -> float:
    """Least seconds of a call, after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def sparse_epoch(config: Any, n: int, key: Any) -> Callable[[], Any]:
    """An epoch of training on n points, from the prior: gradients and Adam's updates."""
    x = jax.random.normal(key, (n, config.data.features))
    batches = x.reshape(-1, config.train.batch_size, config.data.features)
    machine = sparse.init_sparse(x[: config.model.inducing], depth=config.model.depth, outputs=1)
    optimizer = optax.adam(config.optimizer.learning_rate)

    def loss(machine: Any, x: Any) -> Any:
        return -sparse.elbo(
            machine, x, x[:, :1], total=n, kernel=kernels.build(config.model.kernel),
            widths=jnp.ones(config.model.depth), likelihood="gaussian",
        )  # fmt: skip

    epoch = jax.jit(partial(descend, loss, optimizer=optimizer))
    return lambda: epoch(machine, batches)


def full_gradient(config: Any, n: int, key: Any) -> Callable[[], Any]:
    """One gradient of the full objective on n points."""
    x = jax.random.normal(key, (n, config.data.features))
    gradient = jax.jit(
        jax.grad(
            lambda raw, x: dkm.regression_objective(
                raw, kernels.input_gram(x), x[:, :1], kernel=kernels.build(config.model.kernel),
                widths=jnp.ones(config.model.depth), noise=0.1,
            )
        )
    )  # fmt: skip
    raw = jnp.zeros((config.model.depth, n, n))
    return lambda: gradient(raw, x)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Times both over their sizes and fits exponents."""
    key, series, metrics = jax.random.key(config.seed), {}, {}
    for name, build, sizes in (
        ("sparse", sparse_epoch, config.data.sparse_sizes),
        ("full", full_gradient, config.data.full_sizes),
    ):
        seconds = [least(build(config, n, key), config.train.repeats) for n in sizes]
        logs = np.log10(np.asarray(sizes, float)), np.log10(seconds)
        series[name] = logs
        metrics[f"{name}_exponent"] = float(np.polyfit(*logs, 1)[0])
        metrics |= {f"{name}_seconds_{n}": value for n, value in zip(sizes, seconds, strict=True)}
    figures.curves(run.figure("seconds.png"), series, "log10 of n", "log10 of seconds")
    return metrics
