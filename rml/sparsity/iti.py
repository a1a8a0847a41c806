"""Heads shifted without training (ITI), a baseline of fine-tuned offsets.

Kenneth Li, Oam Patel, Fernanda Viégas, Hanspeter Pfister, Martin Wattenberg: Inference-Time
Intervention: Eliciting Truthful Answers from a Language Model, arXiv:2306.03341.

1. A logistic probe of each head tells texts that are wanted from others; the heads whose probe is
   right most often on held-out texts are kept.
2. Each of them is shifted by α σ θ: θ is the unit vector from the mean of the others to that of
   the wanted, σ the standard deviation of the head's output along it.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rml.evaluation import fit_logistic_regression
from rml.models import HeadEdits
from rml.models.text_encoder import pool
from rml.ops import normalize, safe_sqrt, wide
from rml.sparsity.lofit import masked


class Directions(NamedTuple):
    """Which way heads are shifted.

    Attributes:
      unit: Unit vectors θ; zeros where both means agree.
      deviation: Standard deviations σ along them.
    """

    unit: Float[Array, "layers heads k"]
    deviation: Float[Array, "layers heads"]


@functools.partial(jax.jit, static_argnames=("module", "pooling"))
def head_outputs(
    module: nn.Module,
    variables: Any,
    tokens: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    *,
    pooling: str = "last",
) -> Float[Array, "layers heads b k"]:
    """Computes what every head gives before the projection back, one vector a text.

    Args:
      module: A `Llama` or a `Bert`.
      variables: Its variables.
      tokens: Tokens.
      mask: Which of them are text rather than padding.
      pooling: What makes one vector of those of all tokens, see `rml.models.TextEncoder`; the
        paper takes the last token.
    """
    _, state = module.apply(variables, tokens, mask, mutable=["intermediates"])
    found = state["intermediates"]
    if "blocks" in found:
        outputs = found["blocks"]["attention"]["heads"][0]
    else:
        blocks = [found[f"block{i}"]["attention"]["heads"][0] for i in range(len(found))]
        outputs = jnp.stack(blocks)
    layers, b, t, heads, k = outputs.shape
    pooled = jax.vmap(lambda x: pool(x.reshape(b, t, -1), mask, pooling))(outputs)
    return pooled.reshape(layers, b, heads, k).swapaxes(1, 2)


@jax.jit
def probe_scores(
    outputs: Float[Array, "layers heads n k"],
    wanted: Bool[Array, " n"],
    held: Float[Array, "layers heads m k"],
    held_wanted: Bool[Array, " m"],
    *,
    l2: float | Float[Array, ""] = 1e-2,
) -> Float[Array, "layers heads"]:
    """Computes how often a logistic probe of each head tells wanted texts from others.

    Args:
      outputs: Outputs of heads on the texts that probes are fitted to.
      wanted: Which of these texts are wanted.
      held: Outputs on held-out texts.
      held_wanted: Which of those are wanted.
      l2: Penalty on outputs that are standardised head by head.

    Returns:
      The mean of the accuracies on wanted and on other held-out texts, in float32 or wider: 0.5 for
      a probe that gives one answer to all. The paper's accuracy is of as many of both.

    Source: arXiv:2306.03341, Section 3.2.
    """
    outputs, held = wide(outputs, held)
    lead = outputs.shape[:2]
    mean, scale = outputs.mean(2, keepdims=True), outputs.std(2, keepdims=True) + 1e-6

    def of_head(x: Array, y: Array) -> Array:
        fit = fit_logistic_regression(x, wanted.astype(jnp.int32), num_classes=2, l2=l2)
        right = (jnp.argmax(y @ fit.weights + fit.bias, axis=-1) == 1) == held_wanted
        counts = jnp.stack([held_wanted, ~held_wanted]).astype(x.dtype)
        return jnp.mean((counts @ right) / jnp.maximum(counts.sum(-1), 1))

    own, other = (((x - mean) / scale).reshape(-1, *x.shape[2:]) for x in (outputs, held))
    return jax.vmap(of_head)(own, other).reshape(lead)


@jax.jit
def mean_differences(
    outputs: Float[Array, "layers heads n k"], wanted: Bool[Array, " n"]
) -> Directions:
    """Computes the direction from the mean of other texts to that of wanted ones, head by head.

    Args:
      outputs: Outputs of heads.
      wanted: Which texts are wanted.

    Returns:
      The directions, in float32 or wider; zeros where all texts are wanted, or none.

    Source: arXiv:2306.03341, Section 4, "mass mean shift".
    """
    (outputs,) = wide(outputs)
    weights = jnp.stack([wanted, ~wanted]).astype(outputs.dtype)
    counts = weights.sum(-1, keepdims=True)
    means = jnp.einsum("cn,lhnk->clhk", weights / jnp.maximum(counts, 1), outputs)
    unit = jnp.where(counts.all(), normalize(means[0] - means[1]), 0)
    along = jnp.einsum("lhnk,lhk->lhn", outputs, unit)
    return Directions(unit, safe_sqrt(along.var(-1)))


def shifts(
    directions: Directions, heads: Bool[Array, "layers heads"], *, strength: float | Array
) -> HeadEdits:
    """Computes the offsets α σ θ of selected heads.

    Args:
      directions: Which way heads are shifted.
      heads: True where a head is shifted.
      strength: Factor α.

    Source: arXiv:2306.03341, equation 2.
    """
    offset = strength * directions.deviation[..., None] * directions.unit
    return masked(HeadEdits(offset=offset), heads)
