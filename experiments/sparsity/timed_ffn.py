"""Seconds of one token's feed-forward of random weights, dense and by live rows."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.timing import least_seconds
from rml.sparsity import FeedForward, dense_ffn, sparse_ffn


def speedups(options: Any, *, sparsity: float, seed: int) -> dict[str, float]:
    """How many times faster live rows are, by the name of a shape.

    Args:
      options: `wide` and `narrow`, each a number of channels and a width, and `repeats`.
      sparsity: Share of channels that are left out.
      seed: Seed of the weights.
    """
    found: dict[str, float] = {}
    shapes: Mapping[str, tuple[int, int]] = {name: options[name] for name in ("wide", "narrow")}
    for name, (f, d) in shapes.items():
        rng = np.random.default_rng(seed)
        draws = rng.standard_normal((3, f, d), np.float32) / np.float32(np.sqrt(d))
        weights = FeedForward(*map(jnp.asarray, draws))
        x = jnp.asarray(rng.standard_normal(d), jnp.float32)
        size = np.abs(np.asarray(jax.nn.silu(weights.gate @ x)))
        least = jnp.full(f, np.quantile(size, sparsity), jnp.float32)
        dense, sparse = (
            least_seconds(
                functools.partial(jax.jit(call), x, weights, least), repeats=options.repeats
            )
            for call in (dense_ffn, sparse_ffn)
        )
        found[name] = dense / sparse
    return found
