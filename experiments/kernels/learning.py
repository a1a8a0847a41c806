"""A sparse deep kernel machine on up to 100,000 points: test error against the number of points.

Friedman's first function, as scikit-learn draws it, with noise. The machine and the NNGP of the
same depth, kernel and inducing points train for the same number of steps whatever n is, so that
what grows is the data and not the work.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import make_friedman1

from experiments import figures
from experiments.kernels.tables import Split, standardise
from rml.kernels import gram as kernels
from rml.kernels import sparse
from rml.kernels.nngp import gaussian_log_likelihood
from rml.kernels.optimize import descend
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2108.13097: the sparse machine is linear in the data; data and margin are ours"
CLAIMS = (
    Claim("Test error with most points is at most 0.9 of that with fewest",
          "error_most_over_fewest", "<=", 0.9, SOURCE),
    Claim("With most points test log-likelihood is above the NNGP's by 0.01 nats",
          "log_likelihood_gain", ">=", 0.01, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "error.png": "Test error (root mean square, in deviations of the target) against n; bands: "
    "draws from least to greatest.",
    "log_likelihood.png": "Test log-likelihood against n; bands: draws from least to greatest.",
}
METHODS = {"dkm": True, "nngp": False}  # whether Gram matrices are learned


def trainer(config: Any, *, learned: bool) -> Callable[..., sparse.SparseMachine]:
    """Trains on the first n rows of inputs and targets; n is traced, so it compiles once."""
    model, steps = config.model, config.train.steps
    optimizer = optax.adam(optax.cosine_decay_schedule(config.optimizer.learning_rate, steps))
    bound = partial(
        sparse.elbo, kernel=kernels.build(model.kernel), likelihood="gaussian",
        widths=jnp.full(model.depth, model.width),
    )  # fmt: skip

    def train(x: Any, y: Any, n: Any, key: Any) -> sparse.SparseMachine:
        def loss(machine: Any, key: Any) -> Any:
            rows = jax.random.randint(key, (config.train.batch_size,), 0, n)
            return -bound(machine, x[rows], y[rows], total=n)

        first = sparse.init_sparse(x[: model.inducing], depth=model.depth, outputs=1,
                                   learned=learned)  # fmt: skip
        return descend(loss, first, jax.random.split(key, steps), optimizer=optimizer)

    return jax.jit(train)


def judge(machine: sparse.SparseMachine, x: Any, y: Any, *, kernel: Any) -> Any:
    """Test error and log-likelihood."""
    prediction = sparse.propagate_sparse(machine, x, kernel=kernel).prediction
    error = jnp.sqrt(jnp.mean((y - prediction.mean) ** 2))
    return error, gaussian_log_likelihood(prediction, y, noise=jnp.exp(machine.log_noise))


def draw_data(config: Any, seed: int) -> Split:
    """One draw of the function, standardised by its training points."""
    n = max(config.data.sizes)
    x, y = make_friedman1(n + config.data.test, noise=config.data.noise, random_state=seed)
    x, y = x.astype(np.float32), y[:, None].astype(np.float32)
    return standardise(x[None, :n], y[None, :n], x[None, n:], y[None, n:])


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains on every size, measures, draws."""
    progress, sizes = Progress(), tuple(config.data.sizes)
    measure = jax.jit(partial(judge, kernel=kernels.build(config.model.kernel)))
    trainers = {name: trainer(config, learned=learned) for name, learned in METHODS.items()}
    values = np.zeros((2, len(METHODS), config.data.draws, len(sizes)))
    for draw in range(config.data.draws):
        x, y, test_x, test_y = (part[0] for part in draw_data(config, config.seed + draw))
        for m, train in enumerate(trainers.values()):
            for i, n in enumerate(sizes):
                machine = train(x, y, n, jax.random.key(config.seed + draw))
                values[:, m, draw, i] = measure(machine, test_x, test_y)
        progress.note(f"draw {draw}: errors {values[0, :, draw].round(3).tolist()}")
    for name, label, part in zip(CAPTIONS, ("error", "log-likelihood (nats)"), values, strict=True):
        series = {
            method.upper(): (np.log10(sizes), v.mean(0), v.min(0), v.max(0))
            for method, v in zip(METHODS, part, strict=True)
        }
        figures.curves(run.figure(name), series, "log10 of n", f"test {label}")
    metrics = {
        f"{method}_{metric}_{n}": values[k, m, :, i].mean()
        for k, metric in enumerate(("error", "log_likelihood"))
        for m, method in enumerate(METHODS)
        for i, n in enumerate(sizes)
    }
    metrics["error_most_over_fewest"] = values[0, 0, :, -1].mean() / values[0, 0, :, 0].mean()
    metrics["log_likelihood_gain"] = (values[1, 0, :, -1] - values[1, 1, :, -1]).mean()
    return {name: float(value) for name, value in metrics.items()}
