"""Which parts of a transformer are alike: linear CKA of its layers, and of its heads.

Zou et al., arXiv:2404.07999, average units that are alike, which they find neighbours to be.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common.claims import with_bounds
from rml.evaluation import linear_cka
from rml.ops import t_interval

BLOCKS = 10
"""Blocks of examples at most that a jackknife leaves out in turn."""


class Parts(NamedTuple):
    """What parts of a transformer give, for every token of some examples.

    Attributes:
      layers: Outputs of blocks [layers, n, d].
      heads: Outputs of heads before the projection back [layers, heads, n, k].
    """

    layers: Array
    heads: Array


class Alike(NamedTuple):
    """Linear CKA of all pairs.

    Attributes:
      layers: CKA of layers [l, l].
      heads: CKA of heads, layer by layer [h, h].
    """

    layers: Any
    heads: Any


@functools.partial(jax.jit, static_argnames="module")
def parts_of(module: nn.Module, params: Any, inputs: Array) -> Parts:
    """Reads what the scanned blocks of a transformer give, and the heads in them.

    Args:
      module: A `ViT`, `Llama` or `Bert`, whose heads are read by modules named "out".
      params: Its parameters.
      inputs: Images or tokens.
    """

    def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.name == "out":
            context.module.sow("intermediates", "reads", args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        _, state = module.apply(
            {"params": params}, inputs, mutable=["intermediates"],
            capture_intermediates=lambda own, _: own.name == "blocks",
        )  # fmt: skip
    found: Any = state["intermediates"]["blocks"]
    layers = found["__call__"][0][0]
    heads = jnp.moveaxis(found.get("attention", found)["out"]["reads"][0], 3, 1)
    return Parts(
        layers.reshape(len(layers), -1, layers.shape[-1]),
        heads.reshape(*heads.shape[:2], -1, heads.shape[-1]),
    )


@jax.jit
def alike(parts: Parts) -> Alike:
    """Linear CKA of every two layers and of every two heads."""

    def pairs(own: Array) -> Array:
        return jax.vmap(lambda x: jax.vmap(lambda y: linear_cka(x, y))(own))(own)

    return Alike(pairs(parts.layers), pairs(parts.heads.reshape(-1, *parts.heads.shape[2:])))


def jackknifed(models: Sequence[Parts], examples: int) -> dict[str, float]:
    """Computes intervals of what training adds to neighbours, by a jackknife over examples.

    Blocks of equally many examples that follow one another are left out in turn; examples that fill
    no block stay. The variance is that of a jackknife that leaves out several of n examples.

    Args:
      models: Parts of a trained model, of its start and of another start, as `of_training` compares
        them.
      examples: Number of examples that they were read from, equally many rows of each.

    Returns:
      Gains of `of_training` by name, each with the ends of its interval as `_low` and `_high`.

    Source: Shao and Wu 1989, "A General Theory for Jackknife Variance Estimation".
    """
    rows = models[0].layers.shape[1]
    blocks = min(BLOCKS, examples)
    size = rows // examples * (examples // blocks)
    found = []
    for start in range(0, blocks * size, size):
        kept = np.r_[:start, start + size : rows]
        left = [Parts(own.layers[:, kept], own.heads[:, :, kept]) for own in models]
        found.append(of_training(*(alike(own) for own in left)))
    whole = of_training(*(alike(own) for own in models))
    metrics: dict[str, float] = {}
    for name in (name for name in whole if name.startswith("neighbour_gain")):
        _, low, high = t_interval(np.array([own[name] for own in found]))
        half = (high - low) / 2 * np.sqrt((rows - size) / size * (blocks - 1))
        metrics |= with_bounds(name, (whole[name], whole[name] - half, whole[name] + half))
    return metrics


def neighbours_apart(found: Alike) -> dict[str, float]:
    """By how much neighbours' CKA is above that of other pairs, of layers and of heads.

    Neighbours are layers that follow one another, and heads that do in one layer; of these all
    pairs in the model that are no neighbours are the others.
    """
    layers, heads = len(found.layers), len(found.heads)
    layer = np.arange(heads) // (heads // layers)
    metrics = {}
    for name, values, together in (
        ("layers", found.layers, np.zeros(layers)), ("heads", found.heads, layer),
    ):  # fmt: skip
        number = np.arange(len(values))
        near = (number[:, None] - number == 1) & (together[:, None] == together)
        others = (number[:, None] > number) & ~near
        values = np.asarray(values)
        metrics[f"neighbour_cka_{name}"] = float(values[near].mean() - values[others].mean())
    return metrics


def of_training(trained: Alike, untrained: Alike, other: Alike) -> dict[str, float]:
    """`neighbours_apart` of a trained model and of its start, and what training adds to it.

    Layers that nothing has trained are alike where they follow one another: each adds to the one
    before. What training adds is held against what another untrained start (`other`) does.
    """
    ends = {"": trained, "_untrained": untrained, "_other": other}
    found = {end: neighbours_apart(own) for end, own in ends.items()}
    metrics = {f"{name}{end}": value for end, own in found.items() for name, value in own.items()}
    for parts in ("layers", "heads"):
        before = metrics[f"neighbour_cka_{parts}_untrained"]
        metrics[f"neighbour_gain_{parts}"] = metrics[f"neighbour_cka_{parts}"] - before
        metrics[f"neighbour_gain_{parts}_other"] = metrics[f"neighbour_cka_{parts}_other"] - before
    return metrics
