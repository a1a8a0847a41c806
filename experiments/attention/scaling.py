"""Examples that attention and MLP need, against keys and degree; and heads against the kernel.

Both models are taken at their infinite-width kernels, so that width plays no part.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.learning import MODELS, draw_weights, features
from rml.attention import ridge, targets
from rml.attention.kernels import rf_mlp_kernel, rfa_kernel

KERNELS = {"rfa": rfa_kernel, "rf_mlp": rf_mlp_kernel}


@partial(jax.jit, static_argnames=("model", "sizes", "train"))
def kernel_errors(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    penalty: float,
    *,
    model: str,
    sizes: tuple[int, ...],
    train: int,
) -> jax.Array:
    """Mean squared test errors [sizes, targets] of kernel ridge regression on prefixes."""
    gram = KERNELS[model](query, keys, query[:train], keys[:train])
    absolute = penalty * jnp.mean(jnp.diagonal(gram))

    solved = ridge.solve_prefixes(gram[:train], values[:train], absolute, sizes)
    predictions = [gram[train:, : len(dual)] @ dual for dual, _ in solved]
    return jnp.stack([jnp.mean((p - values[train:]) ** 2, axis=0) for p in predictions])


def examples_needed(sizes: Any, errors: np.ndarray, level: float) -> float:
    """Least number of examples with an error of at most `level`, by log-log interpolation.

    NaN where the errors never fall to the level or begin below it.
    """
    if not (errors[0] > level >= errors.min()):
        return float("nan")
    i = int(np.argmax(errors <= level))
    x, y = np.log(np.asarray(sizes[i - 1 : i + 1])), np.log(errors[i - 1 : i + 1])
    return float(np.exp(x[0] + (np.log(level) - y[0]) / (y[1] - y[0]) * (x[1] - x[0])))


def sample_ratios(config: Any) -> dict[str, np.ndarray]:
    """Examples needed by each model, [replicates, keys, degrees]."""
    scaling = config.scaling
    needed = {
        model: np.zeros((scaling.replicates, len(scaling.num_keys), len(scaling.degrees)))
        for model in KERNELS
    }
    for replicate in range(scaling.replicates):
        key = jax.random.fold_in(jax.random.key(config.seed + 1), replicate)
        for i, count in enumerate(scaling.num_keys):
            inputs, direction = jax.random.split(jax.random.fold_in(key, count))
            beta = targets.sphere(direction, scaling.d)
            for model in KERNELS:
                sizes = tuple(scaling.sizes[model])
                total = max(sizes) + scaling.test
                query, keys = targets.draw_inputs(inputs, total, keys=count, d=scaling.d)
                values = jnp.stack(
                    [
                        targets.average_power(query, keys, direction=beta, degree=p)
                        for p in scaling.degrees
                    ],
                    axis=1,
                )
                values = (values - values.mean(0)) / values.std(0)
                errors = np.asarray(
                    kernel_errors(
                        query, keys, values, scaling.regularization,
                        model=model, sizes=sizes, train=max(sizes),
                    )
                )  # fmt: skip
                for j in range(len(scaling.degrees)):
                    needed[model][replicate, i, j] = examples_needed(
                        sizes, errors[:, j], scaling.level
                    )
    return needed


def kernel_distances(config: Any) -> dict[str, np.ndarray]:
    """Relative distance of finite-head Gram matrices to the limit, [replicates, heads]."""
    limit = config.limit
    query, keys = targets.draw_inputs(
        jax.random.key(config.seed + 2), limit.examples, keys=limit.num_keys, d=limit.d
    )
    replicates = jax.random.split(jax.random.key(config.seed + 3), limit.replicates)
    distances = {}
    for model in MODELS:
        if model == "rf_mlp":
            kernel = rf_mlp_kernel(query, keys, query, keys)
        else:
            kernel = rfa_kernel(
                query, keys, query, keys, scale=config.scale, biased=model == "biased_rfa"
            )

        def distance(
            key: jax.Array, heads: int, model: str = model, kernel: Any = kernel
        ) -> jax.Array:
            weights = draw_weights(
                model, key, count=heads, keys=limit.num_keys, d=limit.d, scale=config.scale
            )
            phi = features(model, weights, query, keys)
            return jnp.linalg.norm(phi @ phi.T - kernel) / jnp.linalg.norm(kernel)

        # In batches, so that the features of all replicates never exist at once.
        distances[model] = np.stack(
            [
                jax.jit(partial(jax.lax.map, partial(distance, heads=m), batch_size=20))(replicates)
                for m in limit.heads
            ],
            axis=1,
        )
    return distances


def slopes(x: Any, y: np.ndarray) -> np.ndarray:
    """Slopes of log y over log x, one a row of y."""
    x = np.log(np.asarray(x, float)) - np.mean(np.log(np.asarray(x, float)))
    return np.log(y) @ x / (x @ x)
