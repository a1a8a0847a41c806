"""How well attention of one layer is approximated, on its real queries, keys and values; its cost.

Queries are those of the second half of a text and keys those of its first half: all are visible,
and it is there that a causal layer is approximated.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rml.attention import METHODS, hardness, hyper_attention, hyperplanes, sorted_order
from rml.attention.hardness import heavy_mask
from rml.attention.hyper_samples import HyperSettings, draw_samples
from rml.attention.hyperattention import sorted_part
from rml.evaluation.costs import program_flops
from rml.ops.attention_parts import Visible, attend_part

SINKS = 4
"""First keys that are read beside the nearest ones."""


class Halves(NamedTuple):
    """One layer's queries of the second half, keys and values of the first, and exact outputs."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    out: jax.Array


@jax.jit
def halves(query: jax.Array, key: jax.Array, value: jax.Array) -> Halves:
    """Cuts queries [h, t, k], keys and values [g, t, k] of a layer."""
    h, t, k = query.shape
    n, g = t // 2, len(key)
    query = query.reshape(g, h // g, t, k)[:, :, -n:]
    key, value = key[:, :n], value[:, :n]
    out = attend_part(query, key[:, None], value[:, None]).out
    return Halves(query, key, value, out)


@functools.partial(jax.jit, static_argnames="settings")
def errors(part: Halves, rngs: Any, *, settings: HyperSettings, hashed: Any = True) -> jax.Array:
    """Relative errors [r, h] in Frobenius norm, of every key's planes and samples, by head.

    Args:
      part: Halves of a layer.
      rngs: Random keys [r].
      settings: How much is computed.
      hashed: Whether queries and keys are sorted by their sides of planes; otherwise blocks are by
        position.
    """
    here = jnp.ones(part.key.shape[:-1], bool)
    width = part.key.shape[-1]

    def of_one(rng: Any) -> jax.Array:
        of_planes, of_samples = jax.random.split(rng)
        planes = hyperplanes(of_planes, settings.planes, width) if settings.planes else None
        if planes is not None:  # of zeros: one bucket, in which the order stays
            planes = jnp.where(hashed, planes, 0.0)
        drawn = draw_samples(of_samples, part.value, here, settings)
        qkv = part.query, part.key, part.value
        return sorted_part(*qkv, here, planes, drawn, settings, width**-0.5).out

    return relative(jax.vmap(of_one)(rngs), part.out)


@functools.partial(jax.jit, static_argnames=("keys", "sinks"))
def errors_of_recent(part: Halves, *, keys: int, sinks: int = SINKS) -> jax.Array:
    """Relative errors [h] of attention to so many keys in all, first ones and last, by head."""
    chosen = jnp.r_[:sinks, part.key.shape[1] - keys + sinks : part.key.shape[1]]
    key, value = (x[:, None, chosen] for x in (part.key, part.value))
    return relative(attend_part(part.query, key, value).out, part.out)


def relative(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Relative errors [..., h] in Frobenius norm of outputs [..., g, r, t, k], by head."""
    error = jnp.linalg.norm(found - wanted, axis=(-2, -1)) / jnp.linalg.norm(wanted, axis=(-2, -1))
    return error.reshape(*error.shape[:-2], -1)


@jax.jit
def alphas(part: Halves) -> jax.Array:
    """The hardness alpha of each head, [h]."""
    key = jnp.repeat(part.key[:, None], part.query.shape[1], axis=1)
    return hardness(part.query, key).alpha.ravel()


@functools.partial(jax.jit, static_argnames=("settings", "head", "cells"))
def pictures(
    part: Halves, rng: Any, *, settings: HyperSettings, head: int, cells: int
) -> jax.Array:
    """One head's weights [3, cells, cells]: by position, sorted, and sorted within blocks alone.

    Args:
      part: Halves of a layer.
      rng: Random key of the planes.
      settings: Number of planes and keys of a block.
      head: Number of the head.
      cells: Rows and columns, each the mean over its share of the matrix.
    """
    repeats = part.query.shape[1]
    query, key = part.query.reshape(-1, *part.query.shape[2:])[head], part.key[head // repeats]
    planes = hyperplanes(rng, settings.planes, key.shape[-1])
    weights = jax.nn.softmax(query @ key.T * key.shape[-1] ** -0.5)
    within = jnp.where(heavy_mask(query, key, planes, settings), weights, 0.0)
    rows, columns = sorted_order(query, planes), sorted_order(key, planes)
    found = jnp.stack([weights, *(x[rows][:, columns] for x in (weights, within))])
    n = len(query) // cells * cells
    return found[:, :n, :n].reshape(3, cells, n // cells, cells, n // cells).mean((2, 4))


def flops(
    lengths: Sequence[int], *, settings: HyperSettings, width: int, causal: bool
) -> np.ndarray:
    """Operations of HyperAttention's products for one head, by length; exact ones beside, [2, n].

    Lengths are never computed with, only counted on the traced program. Exact attention counts all
    pairs of a query and a key.

    Args:
      lengths: Numbers of tokens.
      settings: How much is computed; `least` is at most one block of exact attention, so that no
        loop of unknown length is in the program.
      width: Width of the head.
      causal: Whether attention is causal.
    """

    def approximate(query: Any, key: Any, value: Any) -> Any:
        rng = jax.random.key(0)
        visible = Visible(causal=causal)
        return hyper_attention(query, key, value, visible, rng=rng, settings=settings)

    rows = []
    for n in lengths:
        one = jax.ShapeDtypeStruct((1, 1, n, width), jnp.float32)
        rows.append([program_flops(f, one, one, one) for f in (approximate, attend_part)])
    return np.array(rows).T


def crossover(lengths: Sequence[int], ratios: np.ndarray) -> float:
    """The length from which on a ratio is above 1, interpolated between logarithms.

    Args:
      lengths: Ascending numbers of tokens.
      ratios: How many times faster one side is at each.

    Returns:
      The length. It is the first one where no ratio is below 1, so that it lies there or before,
      and the last one where the last ratio is below 1, so that it lies after.
    """
    at, logs = np.log(np.asarray(lengths, float)), np.log(ratios)
    below = np.flatnonzero(logs < 0)
    if not len(below):
        return float(lengths[0])
    last = below[-1]
    if last == len(at) - 1:
        return float(lengths[-1])
    share = logs[last] / (logs[last] - logs[last + 1])
    return float(np.exp(at[last] + share * (at[last + 1] - at[last])))


def seconds(
    lengths: Sequence[int], *, settings: HyperSettings, heads: int, kv_heads: int, width: int,
    repeats: int = 2,
) -> np.ndarray:  # fmt: skip
    """Least seconds of one causal layer, of HyperAttention and of exact attention, [2, n].

    Args:
      lengths: Numbers of tokens.
      settings: How much is computed.
      heads: Number of heads of queries.
      kv_heads: Number of heads of keys.
      width: Width of a head.
      repeats: Number of calls of which the quickest counts.
    """
    options: dict[str, dict[str, Any]] = {"hyperattention": {"settings": settings}, "exact": {}}
    found = np.zeros((2, len(lengths)))
    for j, n in enumerate(lengths):
        of_q, of_k, of_v = jax.random.split(jax.random.key(0), 3)
        query = jax.random.normal(of_q, (1, heads, n, width))
        key, value = (jax.random.normal(rng, (1, kv_heads, n, width)) for rng in (of_k, of_v))
        for i, (name, own) in enumerate(options.items()):

            @jax.jit
            def step(query: Any, key: Any, value: Any, name: str = name, own: Any = own) -> Any:
                rng = jax.random.key(0)
                return METHODS[name](query, key, value, Visible(causal=True), rng=rng, **own)

            step(query, key, value).block_until_ready()
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                step(query, key, value).block_until_ready()
                times.append(time.perf_counter() - start)
            found[i, j] = min(times)
    return found
