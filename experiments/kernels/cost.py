"""What deep kernel machines cost against n: a training epoch of the sparse one, a full gradient.

Yang et al., arXiv:2108.13097. The data are noise: only their sizes matter here;
`experiments.kernels.learning` trains to the end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import figures
from experiments.common.timing import least_seconds
from rml import kernels
from rml.evaluation.scaling import log_log_slopes
from rml.training import Claim, RunDirectory, descend

SOURCE = "arXiv:2108.13097: linear in the data when sparse, cubic when full; margin ours"
CLAIMS = (
    Claim("An epoch of the sparse machine is linear in n: exponent of at most 1.15",
          "sparse_exponent", "<=", 1.15, SOURCE, stated="2026-11-24", null="full_exponent",
          says="The time of an epoch of the sparse machine grows with the number of points to the "
          "power of {mean:.2f}"),
    Claim("A gradient of the full machine tends to be cubic in n: exponent of at least 2.3 over "
          "the larger sizes",
          "full_exponent", ">=", 2.3, SOURCE, stated="2026-11-24", null="sparse_exponent",
          says="That of a gradient of the full machine grows to the power of {mean:.2f}"),
)  # fmt: skip
CAPTIONS = {"seconds.png": "Least seconds against n (log10 of both): sparse epoch, full gradient."}
PICTURE = "seconds.png"


def sparse_epoch(config: Any, x: Any) -> Callable[[], Any]:
    """An epoch of training from the prior: gradients and Adam's updates."""
    machine = kernels.init_sparse(x[: config.model.inducing], depth=config.model.depth, outputs=1)

    def loss(machine: Any, batch: Any) -> Any:
        return -kernels.elbo(
            machine, batch, batch[:, :1], total=len(x), likelihood="gaussian",
            kernel=kernels.build(config.model.kernel), widths=jnp.ones(config.model.depth),
        )  # fmt: skip

    optimizer = optax.adam(config.optimizer.learning_rate)
    epoch = jax.jit(partial(descend, loss, optimizer=optimizer))
    batches = x.reshape(-1, config.train.batch_size, x.shape[1])
    return lambda: epoch(machine, batches)


def full_gradient(config: Any, x: Any) -> Callable[[], Any]:
    """One gradient of the full objective."""

    def objective(raw: Any, x: Any) -> Any:
        return kernels.regression_objective(
            raw, kernels.input_gram(x), x[:, :1], kernel=kernels.build(config.model.kernel),
            widths=jnp.ones(config.model.depth), noise=0.1,
        )  # fmt: skip

    gradient = jax.jit(jax.grad(objective))
    raw = jnp.zeros((config.model.depth, len(x), len(x)))
    return lambda: gradient(raw, x)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Times both over their sizes and fits exponents."""
    key, series, metrics = jax.random.key(config.seed), {}, {}
    for name, build, sizes in (
        ("sparse", sparse_epoch, config.data.sparse_sizes),
        ("full", full_gradient, config.data.full_sizes),
    ):
        seconds = []
        for n in sizes:
            call = build(config, jax.random.normal(key, (n, config.data.features)))
            seconds.append(least_seconds(call, repeats=config.train.repeats))
        series[name] = np.log10(sizes), np.log10(seconds)
        metrics[f"{name}_exponent"] = float(log_log_slopes(sizes, np.asarray(seconds)))
        metrics |= {f"{name}_seconds_{n}": value for n, value in zip(sizes, seconds, strict=True)}
    figures.curves(run.figure("seconds.png"), series, "log10 of n", "log10 of seconds")
    return metrics
