"""Errors of sparse attention in the layers of a trained model, on real queries and keys."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rml.attention import METHODS, Law, block_law_part, causal_weights
from rml.ops import Visible, attend_in_blocks

Layers = Sequence[tuple[jax.Array, ...]]
"""Queries [h, t, k], keys and values [g, t, k] of each layer."""
Compared = Mapping[str, tuple[str, Mapping[str, Any]]]
"""By name a row of `METHODS` and its options."""


def errors(compared: Compared, layers: Layers, rngs: Any) -> dict[str, np.ndarray]:
    """Relative errors [draws, layers, heads] of outputs of the last half of queries, by name.

    Args:
      compared: What attends. What draws nothing has one draw.
      layers: What it attends to.
      rngs: Random keys, one a draw.
    """
    found = {}
    for name, (row, own) in compared.items():
        drawn = rngs if row == "block_law" else rngs[:1]
        items = tuple(sorted(own.items()))
        found[name] = np.stack([_errors(qkv, drawn, row=row, options=items) for qkv in layers], 1)
    return found


@functools.partial(jax.jit, static_argnames=("row", "options"))
def _errors(qkv: Any, rngs: Any, *, row: str, options: tuple) -> jax.Array:
    query, key, value = (x[None] for x in qkv)
    late_ = query.shape[2] // 2

    def out_of(method: str, **own: Any) -> jax.Array:
        visible = Visible(causal=True)
        return METHODS[method](query, key, value, visible, **own)[0, :, late_:]

    exact = out_of("exact")

    def of_draw(rng: Any) -> jax.Array:
        error = out_of(row, rng=rng, **dict(options)) - exact
        return jnp.linalg.norm(error, axis=(1, 2)) / jnp.linalg.norm(exact, axis=(1, 2))

    return jax.lax.map(of_draw, rngs)


def sums(law: Law, layers: Layers, rngs: Any, *, block: int) -> dict[str, float]:
    """How far the mean over draws of queries' sums of exponentials is from exact ones, a share.

    Args:
      law: The law, which is measured with its weights and without.
      layers: What it attends to.
      rngs: Random keys, one a draw.
      block: Queries and keys of a block.

    Returns:
      `sums_apart`, taken of each query and then averaged over queries, heads and layers, and
      `sums_bias`, of the average over these; both with "_plain" without weights.
    """
    found = {}
    for ending, reweight in (("", True), ("_plain", False)):
        own = law._replace(reweight=reweight)
        ratios = np.stack([_sums(qkv, rngs, law=own, block=block) for qkv in layers])
        found[f"sums_apart{ending}"] = float(np.abs(ratios - 1).mean())
        found[f"sums_bias{ending}"] = float(abs(ratios.mean() - 1))
    return found


@functools.partial(jax.jit, static_argnames=("law", "block"))
def _sums(qkv: Any, rngs: Any, *, law: Law, block: int) -> jax.Array:
    """Sums of exponentials over exact ones, mean over draws, [heads, queries]."""
    query, key, value = (x[None] for x in qkv)
    visible = Visible(causal=True)
    exact = attend_in_blocks(query, key, value, visible).lse
    own: dict[str, Any] = {"block": block, "law": law}
    own["weights"] = causal_weights(query.shape[2] // block)

    def of_draw(rng: Any) -> jax.Array:
        part = block_law_part(query, key, value, visible, rng=rng, **own)
        return jnp.exp(part.lse - exact)[0]

    return jax.lax.map(of_draw, rngs).mean(axis=0)
