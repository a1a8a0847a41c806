"""A sparse deep kernel machine beside GPyTorch's deep Gaussian process, both of two layers.

python -m benchmarks.kernels [--json] [--quick]

Friedman's first function (scikit-learn), 4,096 training and 1,024 test points of 10 inputs; 64
inducing points a layer, batches of 256, Adam, the same number of epochs, float32, two threads. The
deep GP has one hidden layer of as many outputs as inputs, 8 samples, and the first length-scale of
ours, the root of the number of inputs; both have a scale for every input. Adam's rate is chosen for
each among the same three, by likelihood on a quarter of the training points that is held out. Time
is the least of an epoch. Test likelihood is given after equally many epochs, and after as many of
ours as take half of the peer's time for its own.
"""

import math
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.common import Row, best_of, finish, options, print_table, products

THREADS = 2
TRAIN, TEST, INDUCING, BATCH, WIDTH, SAMPLES = 4096, 1024, 64, 256, 10.0, 8
RATES = (0.003, 0.01, 0.03)

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))


def table(held_out: bool) -> Any:
    """Training inputs and targets, and those of the test or held-out part, standardised."""
    from rml.data import tables

    split = tables.draw_friedman(TRAIN, TEST, noise=1.0, seed=0)
    return tables.hold_out(split, share=0.25) if held_out else split


def timed(epoch: Callable[[int], Any], epochs: int) -> float:
    """Least seconds of an epoch; the first compiles and does not count."""
    best = math.inf
    for index in range(epochs):
        start = time.perf_counter()
        epoch(index)
        if index:
            best = min(best, time.perf_counter() - start)
    return best


def ours(epochs: int, rate: float, held_out: bool = False) -> tuple[float, float, float]:
    """Seconds of an epoch, test log-likelihood and FLOPs of the sparse deep kernel machine.

    The FLOPs are those of an epoch's matrix products; factors and triangular solves are left out.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from rml import kernels
    from rml.evaluation import program_flops

    x, y, test_x, test_y = (jnp.asarray(part) for part in table(held_out))
    machine = kernels.init_sparse(x[:INDUCING], depth=1, outputs=1)
    optimizer = optax.adam(rate)
    kernel = kernels.squared_exponential

    @jax.jit
    def epoch(machine: Any, state: Any, key: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            machine, state = carry
            grads = jax.grad(
                lambda m: -kernels.elbo(
                    m, x[rows], y[rows], total=len(x), kernel=kernel,
                    widths=jnp.full(1, WIDTH), likelihood="gaussian",
                )
            )(machine)  # fmt: skip
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(machine, updates), state), None

        order = jax.random.permutation(key, len(x)).reshape(-1, BATCH)
        return jax.lax.scan(step, (machine, state), order)[0]

    carry = machine, optimizer.init(machine)

    def advance(index: int) -> None:
        nonlocal carry
        carry = jax.block_until_ready(epoch(*carry, jax.random.key(index)))

    seconds = timed(advance, epochs)
    scores = kernels.regression_scores(carry[0], test_x, test_y, kernel=kernel)
    return seconds, float(scores.log_likelihood), program_flops(epoch, *carry, jax.random.key(0))


def gpytorch_deep_gp(epochs: int, rate: float, held_out: bool = False) -> tuple[float, float]:
    """Seconds of an epoch and test log-likelihood of GPyTorch's deep Gaussian process."""
    import gpytorch
    import torch
    from gpytorch.models.deep_gps import DeepGP, DeepGPLayer

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    x, y, test_x, test_y = (torch.from_numpy(part) for part in table(held_out))

    class Layer(DeepGPLayer):  # type: ignore[misc, unused-ignore]
        def __init__(self, inputs: int, outputs: int | None, inducing: Any):
            batch = torch.Size([] if outputs is None else [outputs])
            distribution = gpytorch.variational.CholeskyVariationalDistribution(
                INDUCING, batch_shape=batch
            )
            strategy = gpytorch.variational.VariationalStrategy(
                self, inducing.expand(*batch, *inducing.shape).clone(), distribution
            )
            super().__init__(strategy, inputs, outputs)
            self.mean = (
                gpytorch.means.ConstantMean()
                if outputs is None
                else gpytorch.means.LinearMean(inputs, batch_shape=batch)
            )
            self.kernel = gpytorch.kernels.ScaleKernel(
                gpytorch.kernels.RBFKernel(batch_shape=batch, ard_num_dims=inputs),
                batch_shape=batch,
            )
            # As ours starts; with its own 0.69 in ten dimensions it learns nothing.
            self.kernel.base_kernel.lengthscale = math.sqrt(inputs)

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    class Model(DeepGP):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.hidden = Layer(10, 10, x[:INDUCING])
            self.last = Layer(10, None, torch.randn(INDUCING, 10))
            self.likelihood = gpytorch.likelihoods.GaussianLikelihood()

        def forward(self, x: Any) -> Any:
            return self.last(self.hidden(x))

    model = Model()
    bound = gpytorch.mlls.DeepApproximateMLL(
        gpytorch.mlls.VariationalELBO(model.likelihood, model, num_data=len(x))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def advance(_: int) -> None:
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = -bound(model(x[rows]), y[rows, 0])
            loss.backward()
            optimizer.step()

    with gpytorch.settings.num_likelihood_samples(SAMPLES), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = timed(advance, epochs)
    model.eval()
    with torch.no_grad(), gpytorch.settings.num_likelihood_samples(64):
        logs = model.likelihood.log_marginal(test_y[:, 0], model(test_x))
    mixture = torch.logsumexp(logs, 0) - math.log(len(logs))
    return seconds, float(mixture.mean())


def main() -> None:
    """Runs the comparison."""
    args = options(__doc__)
    import gpytorch
    import jax

    epochs = 5 if args.quick else 40
    rate, peer_rate = (
        max(RATES, key=lambda rate: fit(epochs, rate, held_out=True)[1])
        for fit in (ours, gpytorch_deep_gp)
    )
    seconds, fitted, flops = ours(epochs, rate)
    floor = products(flops)
    least = floor.share * best_of(floor.run, 20)
    peer_seconds, peer_fitted = gpytorch_deep_gp(epochs, peer_rate)
    more = int(epochs * peer_seconds / seconds / 2)
    longer = ours(more, rate)[1]
    peer = f"GPyTorch {gpytorch.__version__} deep GP"
    metric = "test likelihood, geometric mean"
    case = f"{TRAIN:,} points, {INDUCING} inducing"
    rows = [
        Row(case, "ms an epoch", 1e3 * seconds, peer, 1e3 * peer_seconds),
        Row(case, "ms an epoch", 1e3 * seconds, floor.name, 1e3 * least),
        Row(f"{epochs} epochs each", metric, math.exp(fitted), peer, math.exp(peer_fitted), False),
        Row(f"half its time: {more} epochs beside {epochs}", metric, math.exp(longer), peer,
            math.exp(peer_fitted), False),
    ]  # fmt: skip
    print_table(
        f"Two layers, float32: jax {jax.__version__}, {THREADS} threads, {platform.machine()}; "
        f"rates {rate:g} and {peer_rate:g}; log-likelihoods {fitted:.3f}, {longer:.3f} and "
        f"{peer_fitted:.3f} nats",
        rows,
    )
    finish("kernels", rows, args.json)


if __name__ == "__main__":
    main()
