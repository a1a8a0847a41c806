"""ActQKV: which blocks of the past a window of queries looks up, and how many each layer may.

Xiao et al., Activation-aware Probe-Query: Effective Key-Value Retrieval for Long-Context LLMs
Inference, arXiv:2502.13542. The equations are those of the authors' code but where this says so.
Its state is global to all layers and texts; here it is an argument, of each layer and text. Blocks
with representative keys are InfLLM's (Xiao et al., 2024, arXiv:2402.04617), whose probe is the mean
of the queries.

The probe weighs queries by their activation bias, how far they lie from the mean of those before.
The information of a layer is the entropy of its scores: layers that are undecided between blocks
get more of them. The authors' code takes the mean query until it has been called a thousand times,
and equal budgets before decoding; here both act from the first window. It also adds four times the
cosine with queries of a question that is known beforehand; here none is. It weighs layers by their
mean information over the last hundred calls and gives each 32 blocks to twice the mean budget;
`rml.attention.block_memory` takes the mean over all calls, and most lies as far above the mean
budget as `least` lies below it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rml.errors import unknown
from rml.ops.pairwise import safe_norm
from rml.ops.similarity import normalize

SLOWEST = 1000
"""Number of windows beyond which each new one changes the moments as the thousandth did."""
DAMPING = 100
"""A channel's variance is raised by the mean variance over this."""


class Moments(NamedTuple):
    """Running moments of a layer's queries.

    Attributes:
      windows: Number of windows seen.
      mean: Mean of each channel.
      variance: Variance of each channel, without bias.
    """

    windows: Float[Array, "*b"]
    mean: Float[Array, "*b c"]
    variance: Float[Array, "*b c"]


def no_moments(*shape: int) -> Moments:
    """Returns moments of no queries; the last axis of the shape is that of channels."""
    return Moments(*(jnp.zeros(own, jnp.float32) for own in (shape[:-1], shape, shape)))


def update_moments(
    moments: Moments, query: Float[Array, "t c"], mask: Bool[Array, " t"] | None = None
) -> Moments:
    """Adds a window of queries to the moments.

    With c windows before and B queries of mean u and variance s² in this one, the variance becomes
    `[σ²(c - 1/B) + s² + (u - μ)² c / (c + 1)] / (c + 1 - 1/B)` and the mean `(cμ + u) / (c + 1)`:
    those of all queries where windows have equal size. From c = 1,000 on, c stays.

    Args:
      moments: Moments of the windows before.
      query: Queries of the window.
      mask: Which of them are text; all if not given. A window without any changes nothing.
    """
    query = query.astype(jnp.float32)
    here = jnp.ones(len(query), bool) if mask is None else mask
    size = jnp.sum(here)
    some = size > 0
    b = jnp.maximum(size, 1).astype(jnp.float32)
    mean = jnp.sum(query, axis=0, where=here[:, None]) / b
    spread = jnp.sum(jnp.square(query - mean), axis=0, where=here[:, None]) / b
    c = jnp.minimum(moments.windows, SLOWEST)
    moved = jnp.square(mean - moments.mean) * c / (c + 1)
    total = moments.variance * (c - 1 / b) + spread + moved
    # A first window of one query has no variance: the total is 0 there, and so is what divides it.
    variance = total / jnp.where(c + 1 > 1 / b, c + 1 - 1 / b, 1.0)
    new = Moments(moments.windows + 1, (c * moments.mean + mean) / (c + 1), variance)
    return jax.tree.map(lambda own, old: jnp.where(some, own, old), new, moments)


def activation_bias(query: Float[Array, "t c"], moments: Moments) -> Float[Array, " t"]:
    """Measures how far queries lie from the mean: averages `(q - μ)² / (σ² + ε)` over channels.

    Args:
      query: Queries, heads concatenated.
      moments: Moments of the queries so far, this window's included.

    Returns:
      One number a query, where ε is a hundredth of the mean variance; 1 on average for queries
      that are as those before. All are 0 where queries have never differed.
    """
    damped = moments.variance + moments.variance.mean() / DAMPING
    square = jnp.square(query.astype(jnp.float32) - moments.mean)
    return jnp.mean(square / jnp.where(damped > 0, damped, 1.0), axis=1)


def _mean(query: Array, moments: Moments) -> Array:
    return jnp.ones(len(query))


def _last(query: Array, moments: Moments) -> Array:
    return jnp.zeros(len(query))  # nobody weighs: the last one is taken


def _norm(query: Array, moments: Moments) -> Array:
    return safe_norm(query.astype(jnp.float32))


Weighting = Callable[[Array, Moments], Array]
"""Weights [t] of a window's queries [t, c], given moments that know them; of any sum."""
WEIGHTINGS: Mapping[str, Weighting] = {
    "activation": activation_bias,
    "mean": _mean,
    "last": _last,
    "norm": _norm,
}
"""Weightings by name; "mean" gives InfLLM's probe."""
BY_ATTENTION = "attention"
"""Name of the weighting by attention received, which needs more than queries and moments."""


def weighting_of(weighting: str | Weighting) -> Weighting | None:
    """Finds the weighting of a name; a function is its own, and "attention" has none.

    Raises:
      UserError: The name is unknown.
    """
    if callable(weighting):
        return weighting
    if weighting == BY_ATTENTION:
        return None
    if weighting not in WEIGHTINGS:
        raise unknown("weighting", weighting, (*WEIGHTINGS, BY_ATTENTION))
    return WEIGHTINGS[weighting]


def window_attention(
    logits: Float[Array, "*b t t"], mask: Bool[Array, "*#b t"] | None = None
) -> Float[Array, "*b t"]:
    """Sums the attention that each token of a window receives from its queries, itself included.

    It is the sum over queries of a causal softmax over the window alone, for the weighting
    "attention": tokens that others look at make the probe. The authors weigh the queries of a known
    question so, after QLLM; that it may serve any window is ours.

    Args:
      logits: Logits of the window's queries with its own keys.
      mask: Which tokens are text; all if not given.
    """
    t = logits.shape[-1]
    here = jnp.ones(t, bool) if mask is None else mask
    seen = jnp.tril(jnp.ones((t, t), bool)) & here[..., None, :]
    weights = jax.nn.softmax(jnp.where(seen, logits, jnp.finfo(logits.dtype).min), axis=-1)
    return jnp.sum(jnp.where(seen & here[..., None], weights, 0.0), axis=-2)


def probe_query(
    query: Float[Array, "t c"],
    moments: Moments,
    mask: Bool[Array, " t"] | None = None,
    *,
    weighting: str | Weighting = "activation",
    received: Float[Array, " t"] | None = None,
) -> Float[Array, " c"]:
    """Computes the query that looks up blocks for a window: `Σ wᵢ qᵢ`, weights adding up to 1.

    Args:
      query: Queries of the window, heads concatenated.
      moments: Moments of the queries so far, this window's included.
      mask: Which of them are text; all if not given.
      weighting: Name in `WEIGHTINGS`, a function like them, or "attention". Where all weights are 0
        the last query of text is taken: of a window of one query it is that query.
      received: Weights of "attention", such as those of `window_attention`; of no other weighting.

    Raises:
      UserError: The weighting is unknown.
      ValueError: The weighting is "attention" and nothing is said of what was received.
    """
    weigh = weighting_of(weighting)
    if weigh is not None:
        received = weigh(query, moments)
    elif received is None:
        raise ValueError("weighting 'attention' needs received, the attention of each token")
    here = jnp.ones(len(query), bool) if mask is None else mask
    weights = jnp.where(here, received, 0.0)
    total = weights.sum()
    last = jnp.arange(len(query)) == len(query) - 1 - jnp.argmax(here[::-1])
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), last)
    return weights @ query.astype(jnp.float32)


def block_representatives(
    key: Float[Array, "b n g k"],
    received: Float[Array, "b h n"],
    mask: Bool[Array, "b n"],
    *,
    block: int,
    top: int,
) -> Float[Array, "b m h k"]:
    """Averages, for each head, the keys of a block that received most attention.

    Args:
      key: Keys of m blocks, not rotated.
      received: Attention that each key received while it was near.
      mask: Which of them are text; of a block without text the representative is 0.
      block: Keys of one block.
      top: Number of keys that are averaged.

    Returns:
      For each query head a vector, of the keys that it reads.
    """
    b, n, g, k = key.shape
    h = received.shape[1]
    blocks = n // block
    received = jnp.where(mask[:, None], received, -1.0).reshape(b, g, h // g, blocks, block)
    best, place = jax.lax.top_k(received, min(top, block))
    key = key.astype(jnp.float32).reshape(b, blocks, block, g, k)
    texts, groups = jnp.arange(b)[:, None, None, None, None], jnp.arange(g)[:, None, None, None]
    chosen = key[texts, jnp.arange(blocks)[:, None], place, groups]  # [b, g, r, m, top, k]
    text = (best >= 0)[..., None]
    mean = jnp.sum(chosen * text, axis=-2) / jnp.maximum(text.sum(axis=-2), 1)
    return mean.reshape(b, h, blocks, k).swapaxes(1, 2)


def _dot(representatives: Array, probe: Array) -> Array:
    return representatives @ probe * probe.shape[-1] ** -0.5


def _cosine(representatives: Array, probe: Array) -> Array:
    return normalize(representatives) @ normalize(probe)


METRICS: Mapping[str, Callable[[Array, Array], Array]] = {"dot": _dot, "cosine": _cosine}
"""How like a probe [c] representatives [n, c] are: the product of the paper and of InfLLM, over
√c, or the cosine of the authors' code. What all keys have in common moves no product's rank."""


class Found(NamedTuple):
    """What a probe finds.

    Attributes:
      blocks: Numbers of the best blocks, best first.
      scores: Their scores, -inf behind the last block there is.
      information: Entropy of the scores over its greatest value; 1 where there is no choice.
    """

    blocks: Int[Array, " k"]
    scores: Float[Array, " k"]
    information: Float[Array, ""]


def retrieve(
    representatives: Float[Array, "n c"],
    probe: Float[Array, " c"],
    there: Bool[Array, " n"] | None = None,
    *,
    count: int,
    metric: str = "dot",
    temperature: ArrayLike = 1.0,
) -> Found:
    """Looks up the blocks whose representatives are most like the probe.

    Args:
      representatives: One of each block.
      probe: Query that looks up.
      there: Which blocks may be found; all if not given.
      count: Number of blocks; of equal ones the earlier comes first.
      metric: Name in `METRICS`.
      temperature: Divides the scores before the softmax whose entropy is the information. The
        authors have none: then cosines leave the entropy within some percent of its greatest value.

    Raises:
      UserError: The metric is unknown.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    there = jnp.ones(len(representatives), bool) if there is None else there
    scores = jnp.where(there, METRICS[metric](representatives, probe), -jnp.inf)
    best, blocks = jax.lax.top_k(scores, count)
    number = there.sum()
    logits = jnp.where(there, scores / temperature, jnp.finfo(jnp.float32).min)
    logs = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.where(there, jnp.exp(logs) * logs, 0.0))
    most = jnp.log(jnp.maximum(number, 2).astype(jnp.float32))
    return Found(blocks, best, jnp.where(number > 1, entropy / most, 1.0))


def layer_budgets(
    information: Float[Array, " layers"], *, total: int, least: int, most: int
) -> Int[Array, " layers"]:
    """Shares a total of blocks exactly among layers, in proportion to their information.

    The authors give each layer in turn its share of what is left, rounded and then clipped, so
    that later layers pay for clipped ones and the total may be missed. Here one factor serves all
    layers, found by bisection; what rounding down leaves goes to the largest remainders. Their most
    is twice the mean budget or all blocks there are, whichever is fewer, and their information a
    mean over the last hundred calls; here both are the caller's.

    Args:
      information: Information of each layer, at least 0; such as the mean of `Found.information`.
      total: Blocks of all layers together.
      least: Blocks that each layer has at least.
      most: Blocks that each layer has at most.

    Raises:
      ValueError: The bounds leave no way to spend the total.
    """
    layers = len(information)
    if not (0 <= least <= most and least * layers <= total <= most * layers):
        raise ValueError(
            f"total={total} blocks for {layers} layers of least={least} to most={most}, expected "
            f"{least * layers} to {most * layers}"
        )
    top = jnp.max(information)
    share = jnp.where(top > 0, jnp.maximum(information / jnp.where(top > 0, top, 1.0), 1e-6), 1.0)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        enough = jnp.clip(middle * share, least, most).sum() >= total
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    ends = (jnp.zeros((), share.dtype), jnp.max(most / share))
    exact = jnp.clip(jax.lax.fori_loop(0, 60, halve, ends)[0] * share, least, most)
    whole = jnp.floor(exact).astype(jnp.int32)
    # In order of remainders, round after round: what is left exceeds the layers only by rounding.
    order = jnp.argsort(jnp.where(whole < most, whole - exact, 2.0), stable=True)
    rank = jnp.zeros(layers, jnp.int32).at[order].set(jnp.arange(layers, dtype=jnp.int32))
    return whole + (rank < total - whole.sum())
