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


def draw_weights(
    model: str, key: jax.Array, *, count: int, keys: int, d: int, scale: float
) -> jax.Array:
    """Weights of a model of `MODELS`: [count, ...], a head's or neuron's each."""
    if model == "rf_mlp":
        return rf_mlp_weights(key, count, keys, d)
    return rfa_weights(key, count, d, scale=scale, biased=model == "biased_rfa")


def features(model: str, weights: jax.Array, query: jax.Array, keys: jax.Array) -> jax.Array:
    """Features [n, f] of inputs under a model with these weights."""
    if model == "rf_mlp":
        return rf_mlp_features(query, keys, weights)
    return rfa_features(query, keys, weights).reshape(len(query), -1)


@partial(jax.jit, static_argnames=("model", "train", "blocks"))
def grams(
    model: str, weights: jax.Array, query: jax.Array, keys: jax.Array, *, train: int, blocks: int
) -> tuple[jax.Array, jax.Array]:
    """Gram matrix of the first `train` examples, and of the others with them.

    Features are computed in `blocks` parts of the weights, so they never exist at once.
    """
    split = weights.reshape(blocks, -1, *weights.shape[1:])
    first, rest = (query[:train], keys[:train]), (query[train:], keys[train:])

    def block_features(weights: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        return features(model, weights, *inputs)

    return (
        ridge.streamed_gram(block_features, split, first),
        ridge.streamed_gram(block_features, split, rest, first),
    )


def measure(
    gram: jax.Array, cross: jax.Array, values: jax.Array, penalties: Any, sizes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared test errors, and penalties, both [sizes, targets].

    Each size and target has the penalty of least leave-one-out error. One factorisation a penalty
    serves all sizes and targets: beyond as many examples as features, where the primal system is
    the smaller one, it is still less work than the primal's factors and leverages of each size.

    Args:
      gram: Of the training examples, [n, n].
      cross: Of test examples with them, [m, n].
      values: Targets of all, [n + m, targets].
      penalties: To choose from.
      sizes: Prefixes of the training examples.

    Raises:
      UserError: If a penalty is too small for the Gram matrix to have a Cholesky factor.
    """
    train = len(gram)
    test, left_out = [], []
    for penalty in penalties:
        # Not one program: of its parts' matrices of n x n only a few exist at a time.
        solved = ridge.solve_prefixes(gram, values[:train], penalty, sizes)
        predictions = [cross[:, : len(dual)] @ dual for dual, _ in solved]
        test.append([jnp.mean((p - values[train:]) ** 2, axis=0) for p in predictions])
        left_out.append([error for _, error in solved])
        if not np.isfinite(left_out[-1]).all():
            raise UserError(
                f"regularizations: with {penalty:g} the Gram matrix of {train} examples has no "
                "Cholesky factor, expected a penalty above its rounding errors"
            )
    chosen = np.argmin(left_out, axis=0)
    best = np.take_along_axis(np.asarray(test), chosen[None], axis=0)[0]
    return best, np.asarray(penalties)[chosen]


def learning_curves(config: Any, note: Callable[[str], None]) -> np.ndarray:
    """Relative test errors [replicates, models, sizes, targets].

    Sizes of a replicate are prefixes of one sample, so one Gram matrix serves them all.
    """
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
            drawn = draw_weights(
                model, weights[index], count=count, keys=config.num_keys, d=config.d,
                scale=config.scale,
            )  # fmt: skip
            gram, cross = grams(model, drawn, query, keys, train=train, blocks=config.blocks)
            errors[replicate, index], penalties = measure(
                gram, cross, values, tuple(config.regularizations), tuple(config.sizes)
            )
            del gram, cross  # before the next model's exist
            shown = dict(zip(built, errors[replicate, index, -1].round(3).tolist(), strict=True))
            note(f"replicate {replicate}, {model}: {shown}; penalties {penalties[-1].tolist()}")
    return errors
