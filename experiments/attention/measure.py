"""What the recipe on random features measures: learning curves, examples needed, kernel limits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rml import attention
from rml.attention import MODELS, targets
from rml.evaluation.scaling import examples_needed

KERNELS = ("rfa", "rf_mlp")
SHUFFLED = "shuffled"
"""The target of which nothing can be learned: values of another one in random order."""


def learning_curves(config: Any, note: Callable[[str], None]) -> np.ndarray:
    """Relative test errors [replicates, models, sizes, targets], of `SHUFFLED` last.

    Sizes of a replicate are prefixes of one sample, so one Gram matrix serves them all.
    """
    train = max(config.sizes)
    names = (*config.targets, SHUFFLED)
    errors = np.zeros((config.replicates, len(MODELS), len(config.sizes), len(names)))
    for replicate in range(config.replicates):
        key = jax.random.fold_in(jax.random.key(config.seed), replicate)
        inputs, functions, *weights = jax.random.split(key, 2 + len(MODELS))
        shape = dict(keys=config.num_keys, d=config.d)
        query, keys = targets.draw_inputs(inputs, train + config.test, **shape)
        built = targets.build_targets(config.targets, functions, **shape)
        # No fit sees these moments' noise as signal: they make the error of the mean one.
        values = standardised(jnp.stack([fn(query, keys) for fn in built.values()], axis=1))
        shuffled = jax.random.permutation(jax.random.fold_in(functions, 1), values[:, :1])
        values = jnp.concatenate([values, shuffled], axis=1)
        for index, model in enumerate(MODELS):
            # All models have as many trained numbers.
            count = config.heads * (config.d + 1 if model == "rf_mlp" else 1)
            drawn = attention.draw_weights(
                model, weights[index], count=count, scale=config.scale, **shape
            )
            gram, cross = attention.grams(
                model, drawn, query, keys, train=train, blocks=config.blocks
            )
            errors[replicate, index], penalties = attention.learning_curve(
                gram, cross, values, tuple(config.regularizations), tuple(config.sizes)
            )
            del gram, cross  # before the next model's exist
            shown = dict(zip(names, errors[replicate, index, -1].round(3).tolist(), strict=True))
            note(f"replicate {replicate}, {model}: {shown}; penalties {penalties[-1].tolist()}")
    return errors


def standardised(values: Any) -> Any:
    """Targets with mean 0 and deviation 1."""
    return (values - values.mean(0)) / values.std(0)


def sample_ratios(
    scaling: Any,
    seed: int,
    target: Callable[..., Any] = targets.average_power,
    *,
    beyond: float = float("nan"),
) -> dict[str, np.ndarray]:
    """Examples needed by attention and MLP of infinite width, [replicates, keys, degrees].

    They are `beyond` where all examples do not suffice.
    """
    shape = (scaling.replicates, len(scaling.num_keys), len(scaling.degrees))
    needed = {model: np.zeros(shape) for model in KERNELS}
    for replicate in range(scaling.replicates):
        key = jax.random.fold_in(jax.random.key(seed), replicate)
        for i, count in enumerate(scaling.num_keys):
            inputs, direction = jax.random.split(jax.random.fold_in(key, count))
            beta = targets.sphere(direction, scaling.d)
            for model in KERNELS:
                sizes = tuple(scaling.sizes[model])
                total = max(sizes) + scaling.test
                query, keys = targets.draw_inputs(inputs, total, keys=count, d=scaling.d)
                powers = [target(query, keys, direction=beta, degree=p) for p in scaling.degrees]
                errors = np.asarray(
                    attention.kernel_learning_curve(
                        query, keys, standardised(jnp.stack(powers, axis=1)),
                        scaling.regularization, model=model, sizes=sizes, train=max(sizes),
                    )
                )  # fmt: skip
                needed[model][replicate, i] = [
                    examples_needed(sizes, column, scaling.level)
                    if column.min() <= scaling.level
                    else beyond
                    for column in errors.T
                ]
    return needed


def kernel_distances(config: Any) -> dict[str, np.ndarray]:
    """Relative distance of finite-head Gram matrices to the limit, [replicates, heads]."""
    limit = config.limit
    shape = dict(keys=limit.num_keys, d=limit.d)
    query, keys = targets.draw_inputs(jax.random.key(config.seed + 2), limit.examples, **shape)
    replicates = jax.random.split(jax.random.key(config.seed + 3), limit.replicates)

    def distance(key: jax.Array, kernel: jax.Array, *, heads: int, model: str) -> jax.Array:
        weights = attention.draw_weights(model, key, count=heads, scale=config.scale, **shape)
        phi = attention.features(model, weights, query, keys)
        return jnp.linalg.norm(phi @ phi.T - kernel) / jnp.linalg.norm(kernel)

    distances = {}
    for model in MODELS:
        kernel = attention.kernel(model, scale=config.scale)(query, keys, query, keys)
        # In batches, so that the features of all replicates never exist at once.
        columns = [
            jax.jit(
                partial(
                    jax.lax.map,
                    partial(distance, kernel=kernel, heads=heads, model=model),
                    batch_size=20,
                )
            )(replicates)
            for heads in limit.heads
        ]
        distances[model] = np.stack(columns, axis=1)
    return distances
