"""InfoNCE of gated features, each anchor in the subspace of its pair of classes."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from rml.errors import unknown
from rml.ops import full_precision
from rml.ops.shapes import check_above_0
from rml.ops.similarity import normalize, unit_scale
from rml.ops.strips import scan, split, strip_rows

POSITIVES = ("partner", "both")
DENOMINATORS = ("own", "all")
REDUCTIONS = ("mean", "positives", "none")
_ABSENT = -1e9  # far below any logit, and its gradient is a clean zero, unlike -inf's


@full_precision
def hydra_loss(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    partners: Int[Array, " n"],
    gates: Float[Array, "n d"],
    keys: Float[Array, "n d"] | None = None,
    *,
    temperature: float | Float[Array, ""],
    positives: str = "partner",
    itself: bool = False,
    denominator: str = "own",
    renormalize: bool = True,
    ungated: float | Float[Array, ""] = 0.0,
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes InfoNCE in which row a is an anchor of the pair (labels[a], partners[a]).

    With the gates g of row a, s_ak = cos(g ∘ x_a, g ∘ x_k) / temperature, as two matrix products:
    (x ∘ g²) xᵀ for the inner products, g² (x²)ᵀ for the squared lengths. Memory is that of the
    matrix of pairs of rows, or of a strip of it, whatever the number of classes. Strips are a loop,
    which every call outside `jax.jit` compiles anew.

    The authors' code (v1) is `itself=True, reduction="positives"`; their later one beside it
    contrasts first views with second ones as `keys`, without `renormalize` and with `ungated`.

    Args:
      features: Embeddings of the anchors, not normalised: all views, or with `keys` one of each.
      labels: Class of each row.
      partners: The other class of each row's pair; its own class where the pair is (i, i).
      gates: Gates in [0, 1] of each row's pair.
      keys: Embeddings that anchors are compared with, row i another view of anchor i and of its
        class; by default the anchors.
      temperature: Divides the cosines.
      positives: "partner", the rows of the partner class; or "both", of either class.
      itself: Whether key i is a positive of anchor i where its class is. Among the anchors that is
        the anchor itself, whose cosine of 1 teaches nothing but widens the average.
      denominator: Beside the negatives, which are the rows of neither class, each positive "own"
        to its term, or "all" positives as in SupCon.
      renormalize: Cosine in the subspace; otherwise the inner product there of rows that were
        normalised before, which weighs an anchor by how much of it the gates let through.
      ungated: Times the cosine in the whole space, which is subtracted from the logits: it rewards
        what the pair shares in its subspace alone. The authors' α, which is learned.
      reduction: Mean over the anchors that have a positive, each the mean of its terms; mean over
        all "positives", so that anchors weigh as many as they have; or each anchor's loss ("none"),
        zero without a positive.
      block_size: Rows of one strip of logits; automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axis over which rows are sharded: rows of all
        devices are candidates and the mean is that of the whole batch.

    Returns:
      The loss; zero if no anchor has a positive, as where its partner class is not in the batch.

    Raises:
      ValueError: If an option is unknown, shapes do not fit, or a number as temperature is not
        above 0.

    Source: arXiv:2410.18200; see `rml.hydra` for what differs between its versions.
    """
    if positives not in POSITIVES:
        raise unknown("positives of hydra_loss", positives, POSITIVES)
    if denominator not in DENOMINATORS:
        raise unknown("denominator of hydra_loss", denominator, DENOMINATORS)
    if reduction not in REDUCTIONS:
        raise unknown("reduction of hydra_loss", reduction, REDUCTIONS)
    check_above_0(temperature=temperature)
    n = features.shape[0]
    if gates.shape != features.shape:
        raise ValueError(f"gates must have the shape of features, {features.shape}: {gates.shape}")
    if keys is not None and keys.shape != features.shape:
        raise ValueError(f"keys must have the shape of features, {features.shape}: {keys.shape}")
    if labels.shape != (n,) or partners.shape != (n,):
        raise ValueError(
            f"labels and partners must be of shape ({n},), got {labels.shape} and {partners.shape}"
        )
    x = normalize(features)
    gates = gates.astype(x.dtype)
    # The cosine sees ratios of a row's gates alone, of which small ones would have no square.
    squares = jnp.square(gates * unit_scale(gates, axis=1) if renormalize else gates)
    keys = x if keys is None else normalize(keys)
    key_labels, start = labels, jnp.zeros((), jnp.int32)
    if axis_name is not None:
        keys, key_labels = lax.all_gather((keys, labels), axis_name, tiled=True)
        start = lax.axis_index(axis_name) * n
    rows = (x, squares, labels, partners, start + jnp.arange(n))
    strip = partial(
        _strip,
        keys=keys,
        key_labels=key_labels,
        scale=1 / jnp.asarray(temperature, x.dtype),
        both=positives == "both",
        itself=itself,
        alone=denominator == "own",
        cosine=renormalize,
        ungated=ungated,
    )
    block = strip_rows(n, keys.shape[0], block_size)
    if not block:
        total, number = strip(rows)
    else:
        count = -(-n // block)
        size = -(-n // count)
        # Recomputed in the backward pass: kept, the strips would be the whole matrix.
        body = jax.checkpoint(lambda _, row: (None, strip(row)), prevent_cse=False)
        cut = tuple(split(part, count, size) for part in rows)
        total, number = (part.reshape(-1)[:n] for part in scan(body, None, cut, count)[1])
    if reduction != "positives":
        has = number > 0
        total, number = jnp.where(has, total / jnp.maximum(number, 1), 0.0), has
    if reduction == "none":
        return total
    total, number = jnp.sum(total), jnp.sum(number)
    if axis_name is not None:
        total, number = lax.psum((total, number), axis_name)
    return total / jnp.maximum(number, 1)


def _strip(
    rows: tuple, *, keys: Array, key_labels: Array, scale: Array, both: bool, itself: bool,
    alone: bool, cosine: bool, ungated: float | Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Sum of the terms of each anchor of a strip, and how many positives it has."""
    x, squares, labels, partners, index = rows
    s = (x * squares) @ keys.T * scale
    if cosine:
        own = _inverse_length(jnp.sum(squares * x * x, 1))
        s = s * own[:, None] * _inverse_length(squares @ jnp.square(keys).T)
    if not isinstance(ungated, float) or ungated:
        s = s - ungated * (x @ keys.T)
    same = labels[:, None] == key_labels
    partner = partners[:, None] == key_labels
    positive = (partner | same) if both else partner
    if not itself:
        positive &= index[:, None] != jnp.arange(keys.shape[0])
    number = jnp.sum(positive, 1)
    if alone:
        rest = jax.nn.logsumexp(jnp.where(same | partner, _ABSENT, s), 1)
        terms = jax.nn.softplus(rest[:, None] - s)
    else:
        candidates = positive | ~(same | partner)
        terms = jax.nn.logsumexp(jnp.where(candidates, s, _ABSENT), 1)[:, None] - s
    return jnp.sum(jnp.where(positive, terms, 0.0), 1), number


def _inverse_length(squared: Array) -> Array:
    """Inverse length, finite where all gates are closed."""
    return lax.rsqrt(jnp.maximum(squared, 1e-12))
