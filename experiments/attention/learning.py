"""Test errors of the three random-feature models against the number of examples."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rml.attention import ridge, targets
from rml.attention.random_feature_attention import (
    rf_mlp_features,
    rf_mlp_weights,
    rfa_features,
    rfa_weights,
)
from rml.errors import UserError, unknown

MODELS = ("rfa", "biased_rfa", "rf_mlp")


def build_targets(config: Any, key: jax.Array) -> dict[str, targets.Target]:
    """The targets that the config names, with directions and rotation drawn from `key`.

    A name is `average_P`, `weighted_P` or `mixed_W_P` for degree P and weight W, or
    `module:function` for any permutation-invariant function of (query, keys).
    """
    first, second = jax.random.split(key)
    direction = targets.sphere(first, config.d)
    rotation = jnp.linalg.qr(jax.random.normal(second, (config.d, config.d)))[0]
    built: dict[str, targets.Target] = {}
    for name in config.targets:
        kind, *numbers = name.split("_")
        if ":" in name:
            built[name] = user_function(name)
        elif kind == "average":
            built[name] = partial(
                targets.average_power, direction=direction, degree=int(numbers[0])
            )
        elif kind == "weighted":
            built[name] = partial(
                targets.weighted_correlation, direction=direction, degree=int(numbers[0])
            )
        elif kind == "mixed":
            weight, degree = float(numbers[0]), int(numbers[1])
            built[name] = partial(
                targets.mixed_correlation, rotation=rotation, weight=weight, degree=degree
            )
        else:
            raise unknown("target", name, ("average_P", "weighted_P", "mixed_W_P"))
        targets.check_permutation_invariant(built[name], key, keys=config.num_keys, d=config.d)
    return built


def user_function(name: str) -> targets.Target:
    """The function called `module:function`."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"target {name!r}: expected module:function, but {error}") from None


@partial(jax.jit, static_argnames=("model", "count", "scale"))
def draw_features(
    model: str, key: jax.Array, query: jax.Array, keys: jax.Array, *, count: int, scale: float
) -> jax.Array:
    """Features of inputs under a model with weights of its own.

    Args:
      model: One of `MODELS`.
      key: Random key of the weights.
      query: [n, d].
      keys: [n, keys, d].
      count: Heads, or neurons of the MLP.
      scale: Of attention's weights.

    Returns:
      [n, features].
    """
    number, d = keys.shape[1:]
    if model == "rf_mlp":
        return rf_mlp_features(query, keys, rf_mlp_weights(key, count, number, d))
    weights = rfa_weights(key, count, d, scale=scale, biased=model == "biased_rfa")
    return rfa_features(query, keys, weights).reshape(len(query), -1)


@partial(jax.jit, static_argnames=("sizes", "train"))
def measure(
    features: jax.Array, values: jax.Array, grid: jax.Array, *, sizes: tuple[int, ...], train: int
) -> tuple[jax.Array, jax.Array]:
    """Mean squared errors on the rows from `train` on, and penalties, both [sizes, targets].

    Each size and target has the penalty of least leave-one-out error.
    """
    gram = features @ features[:train].T

    def errors(penalty: jax.Array) -> tuple[jax.Array, jax.Array]:
        solved = ridge.solve_prefixes(gram[:train], values[:train], penalty, sizes)
        predictions = [gram[train:, : len(dual)] @ dual for dual, _ in solved]
        test = [jnp.mean((p - values[train:]) ** 2, axis=0) for p in predictions]
        return jnp.stack(test), jnp.stack([error for _, error in solved])

    test, left_out = jax.lax.map(errors, grid)  # [penalties, sizes, targets]
    chosen = jnp.argmin(left_out, axis=0)
    return jnp.take_along_axis(test, chosen[None], axis=0)[0], grid[chosen]


def learning_curves(config: Any, note: Callable[[str], None]) -> np.ndarray:
    """Relative test errors [replicates, models, sizes, targets].

    Sizes of a replicate are prefixes of one sample, so one Gram matrix serves them all.
    """
    grid = jnp.asarray(config.regularizations)
    train = max(config.sizes)
    errors = np.zeros((config.replicates, len(MODELS), len(config.sizes), len(config.targets)))
    for replicate in range(config.replicates):
        key = jax.random.fold_in(jax.random.key(config.seed), replicate)
        inputs, functions, *weights = jax.random.split(key, 2 + len(MODELS))
        query, keys = targets.draw_inputs(
            inputs, train + config.test, keys=config.num_keys, d=config.d
        )
        built = build_targets(config, functions)
        values = jnp.stack([fn(query, keys) for fn in built.values()], axis=1)
        # No fit sees these moments' noise as signal: they make the error of the mean one.
        values = (values - values.mean(0)) / values.std(0)
        for index, model in enumerate(MODELS):
            # All models have as many trained numbers.
            count = config.heads * (config.d + 1 if model == "rf_mlp" else 1)
            features = draw_features(
                model, weights[index], query, keys, count=count, scale=config.scale
            )
            errors[replicate, index], penalties = measure(
                features, values, grid, sizes=tuple(config.sizes), train=train
            )
            shown = dict(zip(built, errors[replicate, index, -1].round(3).tolist(), strict=True))
            note(f"replicate {replicate}, {model}: {shown}; penalties {penalties[-1].tolist()}")
    return errors
