"""Which blocks a window of queries needs, by exact attention, and which of them a probe finds."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rml.attention import actqkv
from rml.attention.block_lookup import MemorySettings
from rml.models import rope


def reversed_bias(query: jax.Array, moments: Any) -> jax.Array:
    """Activation biases that belong to other queries: those of the window in reverse."""
    return actqkv.activation_bias(query, moments)[::-1]


PROBES: Mapping[str, Any] = {
    **dict.fromkeys((*actqkv.WEIGHTINGS, actqkv.BY_ATTENTION)),
    "reversed": reversed_bias,
}
BY_COSINE = {"cosine": "activation", "mean_cosine": "mean"}
"""Rankings by cosine, and their probes."""
BY_HEADS = {"activation_heads": "activation", "mean_heads": "mean"}
"""Rankings of each group of heads by a probe of its own queries, and their weightings."""
RANKINGS = (*PROBES, *BY_COSINE, *BY_HEADS, "random", "recent", "exact")
"""What ranks blocks: probes, chance, a window that reaches farther, and exact attention itself."""
LEAST = 5
"""Blocks there must be for a window to be measured."""


class Ranked(NamedTuple):
    """Blocks of a layer as w windows of a text rank and need them, by each group of heads.

    Attributes:
      scores: [w, rankings, g, blocks], of `RANKINGS`; but for `BY_HEADS` and exact attention all
        groups have the same.
      mass: [w, g, blocks], share of exact attention that a block gets from the window's queries.
      near: [w, g], share that first and near tokens get.
      whole: [w], number of blocks there are.
      information: [w, ways], of the activation probe's scores at each temperature, and last of its
        cosines at a temperature of 1, as the authors have it.
      bias: [tokens], activation bias of every token.
    """

    scores: Any
    mass: Any
    near: Any
    whole: Any
    information: Any
    bias: Any


@functools.partial(jax.jit, static_argnames=("settings", "chunk", "theta", "temperatures"))
def ranked(
    query: jax.Array, key: jax.Array, rng: Any, *, settings: MemorySettings, chunk: int,
    theta: float, temperatures: tuple[float, ...],
) -> Ranked:  # fmt: skip
    """Ranks blocks for every window of a text, by probes and by exact attention.

    Args:
      query: [h, n, k], rotated; n is a multiple of the chunk.
      key: [g, n, k], rotated.
      rng: Random key.
      settings: Settings of the memory.
      chunk: Queries of a window.
      theta: Base of the rotary frequencies.
      temperatures: Temperatures at which the information of scores is measured.
    """
    s, (h, n, k), g = settings, query.shape, key.shape[0]
    blocks = (n - s.sinks) // s.block
    places, frequency = jnp.arange(n), rope.frequencies(k, theta)

    def turned(x: jax.Array, by: jax.Array) -> jax.Array:
        return rope.rotate(x.swapaxes(0, 1)[None], by[None], frequency)[0].swapaxes(0, 1)

    # With all queries at the window's distance from keys that are not rotated.
    far, still = turned(query, s.window - places), turned(key, -places)
    blocked = slice(s.sinks, s.sinks + blocks * s.block)

    def in_blocks(weights: jax.Array) -> jax.Array:
        return weights[..., blocked].reshape(*weights.shape[:-1], blocks, s.block).sum(-1)

    def step(carry: Any, start: jax.Array) -> Any:
        received, moments = carry
        own = jax.lax.dynamic_slice_in_dim(query, start, chunk, axis=1)
        behind = start + jnp.arange(chunk)[:, None] - places
        logits = jnp.einsum("grtk,gsk->grts", own.reshape(g, h // g, chunk, k), key) * k**-0.5
        weights = jax.nn.softmax(jnp.where(behind >= 0, logits, -jnp.inf), axis=-1)
        share = weights.mean((1, 2))
        weights = weights.reshape(h, chunk, n)
        whole = jnp.maximum(start - s.window - s.sinks, 0) // s.block
        there = jnp.arange(blocks) < whole
        mass = jnp.where(there, in_blocks(share), 0.0)
        representatives = actqkv.block_representatives(
            still.swapaxes(0, 1)[None, blocked], received[None, :, blocked],
            jnp.ones((1, blocks * s.block), bool), block=s.block, top=s.top,
        )[0].reshape(blocks, g, -1)  # fmt: skip
        flat = jax.lax.dynamic_slice_in_dim(far, start, chunk, axis=1)
        flat = flat.swapaxes(0, 1).reshape(chunk, -1)
        moments = actqkv.update_moments(moments, flat)
        bias = actqkv.activation_bias(flat, moments)
        within = jax.lax.dynamic_slice_in_dim(logits, start, chunk, axis=-1)
        got = actqkv.window_attention(within).sum((0, 1))
        probes = {
            name: actqkv.probe_query(flat, moments, weighting=weighting or name, received=got)
            for name, weighting in PROBES.items()
        }
        together = representatives.reshape(blocks, -1)

        def of_group(query: jax.Array, own: Any, representatives: jax.Array) -> jax.Array:
            return jnp.stack([
                actqkv.METRICS[s.metric](
                    representatives, actqkv.probe_query(query, own, weighting=name)
                ) for name in BY_HEADS.values()
            ])  # fmt: skip

        parts = actqkv.Moments(
            jnp.broadcast_to(moments.windows, g), moments.mean.reshape(g, -1),
            moments.variance.reshape(g, -1),
        )  # fmt: skip
        of_heads = jax.vmap(of_group, (1, 0, 1), 1)(
            flat.reshape(chunk, g, -1), parts, representatives
        )
        drawn = jax.random.uniform(jax.random.fold_in(rng, start), (blocks,))
        of_all = [actqkv.METRICS[s.metric](together, probe) for probe in probes.values()]
        of_all += [actqkv.METRICS["cosine"](together, probes[name]) for name in BY_COSINE.values()]
        scores = jnp.stack([
            *(jnp.broadcast_to(row, mass.shape) for row in of_all), *of_heads,
            *(jnp.broadcast_to(row, mass.shape) for row in (drawn, jnp.arange(blocks) / blocks)),
            mass,
        ])  # fmt: skip
        information = [
            actqkv.retrieve(
                together, probes["activation"], there, count=1, metric=metric, temperature=t
            ).information
            for metric, t in (*((s.metric, t) for t in temperatures), ("cosine", 1.0))
        ]
        received += jnp.sum(jnp.where(behind < s.window, weights, 0.0), axis=1)
        found = Ranked(
            jnp.where(there, scores, -jnp.inf), mass, share.sum(1) - mass.sum(1), whole,
            jnp.stack(information), bias,
        )  # fmt: skip
        return (received, moments), found

    start = (jnp.zeros((h, n)), actqkv.no_moments(h * k))
    found = jax.lax.scan(step, start, jnp.arange(0, n, chunk))[1]
    return found._replace(bias=found.bias.reshape(-1))


class Measured(NamedTuple):
    """Of every window with enough blocks, by rankings and shares of blocks that may be read.

    Both are means over groups of heads, which need blocks of their own.

    Attributes:
      recall: [w, rankings, shares], share of the needed blocks that are found: of the fewest that
        hold most of the group's attention to blocks.
      covered: [w, rankings, shares], share of the group's attention to blocks.
    """

    recall: np.ndarray
    covered: np.ndarray


def measured(found: Ranked, shares: Any, needed: float) -> Measured:
    """Recall and covered attention of a layer's windows.

    Args:
      found: Rankings, as arrays of numpy.
      shares: Shares of the blocks there are that are read.
      needed: Share of attention to blocks that the needed blocks hold.
    """
    recall: list[np.ndarray] = []
    covered: list[np.ndarray] = []
    for scores, mass, whole in zip(found.scores, found.mass, found.whole, strict=True):
        if whole < LEAST:
            continue
        counts = np.maximum(1, np.round(np.asarray(shares) * whole).astype(int))
        order = np.argsort(-scores[..., :whole], axis=-1, kind="stable")
        own = mass[:, :whole] / mass.sum(1, keepdims=True)
        fewest = np.argsort(-own, axis=1, kind="stable")
        held = np.take_along_axis(own, fewest, 1).cumsum(1)
        number = (held < needed).sum(1, keepdims=True) + 1
        truth = np.argsort(fewest, axis=1) < number
        for kept, values in ((recall, truth / truth.sum(1, keepdims=True)), (covered, own)):
            read = np.take_along_axis(values[None], order, -1).cumsum(-1)[..., counts - 1]
            kept.append(read.mean(1))
    return Measured(np.array(recall), np.array(covered))


def covered_by_budgets(
    found: list[Ranked], *, count: int, least: int, way: int | None, turned: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """What the activation probe covers where layers share blocks by their information.

    Args:
      found: Rankings of each layer.
      count: Blocks of a layer on average.
      least: Blocks of a layer at least.
      way: Which column of `Ranked.information` is taken; None for equal budgets.
      turned: Give each layer the information of another one, the last that of the first.

    Returns:
      The share of attention to blocks, a mean over layers and groups of heads, of every window with
      blocks enough for any budget; and the budgets [w, layers].
    """
    most = 2 * count - least
    windows = np.flatnonzero(found[0].whole >= most)
    if not len(windows):
        raise ValueError(f"no window has the {most} blocks that a layer may have")
    information = np.ones((len(found[0].whole), len(found)))
    if way is not None:
        information = np.stack([own.information[:, way] for own in found], axis=1)
    choice = np.maximum(np.cumsum(found[0].whole > 1), 1)[:, None]
    means = np.cumsum(np.where(found[0].whole[:, None] > 1, information, 0.0), axis=0) / choice
    means = means[:, ::-1] if turned else means
    budgets = np.asarray(_budgets(
        jnp.asarray(means[windows]), total=count * len(found), least=least, most=most
    ))  # fmt: skip
    covered = np.zeros(budgets.shape)
    for (i, w), (j, own) in itertools.product(enumerate(windows), enumerate(found)):
        best = np.argsort(-own.scores[w, 0, 0], kind="stable")[: budgets[i, j]]
        covered[i, j] = (own.mass[w][:, best].sum(1) / own.mass[w].sum(1)).mean()
    return covered.mean(axis=1), budgets


@functools.partial(jax.jit, static_argnames=("total", "least", "most"))
def _budgets(information: jax.Array, *, total: int, least: int, most: int) -> jax.Array:
    share = functools.partial(actqkv.layer_budgets, total=total, least=least, most=most)
    return jax.vmap(share)(information)


@functools.partial(jax.jit, static_argnames=("sinks", "tokens", "first"))
def near_covered(
    query: jax.Array, key: jax.Array, *, sinks: tuple[int, ...], tokens: int, first: int
) -> jax.Array:
    """Share of exact attention [sinks] that first and last tokens get, as many for all choices.

    Args:
      query: [h, n, k], rotated.
      key: [g, n, k], rotated.
      sinks: Numbers of first tokens, beside which the last ones fill up `tokens`.
      tokens: Number of tokens that are attended to.
      first: Place from which queries are measured.
    """
    h, n, k = query.shape
    g = key.shape[0]

    def of_query(place: jax.Array) -> jax.Array:
        own = query[:, place].reshape(g, h // g, k)
        logits = jnp.einsum("grk,gsk->grs", own, key) * k**-0.5
        behind = place - jnp.arange(n)
        weights = jax.nn.softmax(jnp.where(behind >= 0, logits, -jnp.inf), axis=-1).mean((0, 1))
        return jnp.stack([
            weights @ ((behind < tokens - s) | (jnp.arange(n) < s)).astype(float) for s in sinks
        ])  # fmt: skip

    return jax.lax.map(of_query, jnp.arange(first, n)).mean(0)
