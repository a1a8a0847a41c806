"""InfoNCE of gated features, each anchor in the subspace of its pair of classes."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from rml.errors import unknown
from rml.ops.similarity import normalize
from rml.ops.strips import scan, split, strip_rows

POSITIVES = ("partner", "both")
DENOMINATORS = ("own", "all")
_ABSENT = -1e9  # far below any logit, and its gradient is a clean zero, unlike -inf's


def hydra_loss(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    partners: Int[Array, " n"],
    gates: Float[Array, "n d"],
    *,
    temperature: float | Float[Array, ""],
    positives: str = "partner",
    denominator: str = "own",
    renormalize: bool = True,
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Computes InfoNCE in which row a is an anchor of the pair (labels[a], partners[a]).

    With the gates g of row a, s_ak = cos(g ∘ x_a, g ∘ x_k) / temperature, as two matrix products:
    (x ∘ g²) xᵀ for the inner products, g² (x²)ᵀ for the squared lengths. Memory is that of the
    matrix of pairs of rows, or of a strip of it, whatever the number of classes.

    Args:
      features: Embeddings of all views, not normalised.
      labels: Class of each row.
      partners: The other class of each row's pair; its own class where the pair is (i, i).
      gates: Gates in [0, 1] of each row's pair.
      temperature: Divides the cosines.
      positives: "partner", the rows of the partner class; or "both", of either class. Never the
        anchor itself.
      denominator: Beside the negatives, which are the rows of neither class, each positive "own"
        to its term, or "all" positives as in SupCon.
      renormalize: Cosine in the subspace; otherwise the inner product there of rows that were
        normalised before, which weighs an anchor by how much of it the gates let through.
      reduction: Mean over the anchors that have a positive, or each anchor's loss, zero without.
      block_size: Rows of one strip of logits; automatic by default.
      axis_name: Inside `jax.shard_map`, the mesh axis over which rows are sharded: rows of all
        devices are candidates and the mean is that of the whole batch.

    Returns:
      The loss; zero if no anchor has a positive, as where its partner class is not in the batch.

    Raises:
      ValueError: If an option is unknown or shapes do not fit.

    Source: arXiv:2410.18200; see `rml.hydra` for what differs between its versions.
    """
    if positives not in POSITIVES:
        raise unknown("positives of hydra_loss", positives, POSITIVES)
    if denominator not in DENOMINATORS:
        raise unknown("denominator of hydra_loss", denominator, DENOMINATORS)
    if reduction not in ("mean", "none"):
        raise unknown("reduction of hydra_loss", reduction, ("mean", "none"))
    n = features.shape[0]
    if gates.shape != features.shape:
        raise ValueError(f"gates must have the shape of features, {features.shape}: {gates.shape}")
    if labels.shape != (n,) or partners.shape != (n,):
        raise ValueError(
            f"labels and partners must be of shape ({n},), got {labels.shape} and {partners.shape}"
        )
    x = normalize(features)
    squares = jnp.square(gates.astype(x.dtype))
    keys, key_labels, start = x, labels, jnp.zeros((), jnp.int32)
    if axis_name is not None:
        keys, key_labels = lax.all_gather((x, labels), axis_name, tiled=True)
        start = lax.axis_index(axis_name) * n
    rows = (x, squares, labels, partners, start + jnp.arange(n))
    strip = partial(
        _strip,
        keys=keys,
        key_labels=key_labels,
        scale=1 / jnp.asarray(temperature, x.dtype),
        both=positives == "both",
        alone=denominator == "own",
        cosine=renormalize,
    )
    block = strip_rows(n, keys.shape[0], block_size)
    if not block:
        loss, has = strip(rows)
    else:
        count = -(-n // block)
        size = -(-n // count)
        # Recomputed in the backward pass: kept, the strips would be the whole matrix.
        body = jax.checkpoint(lambda _, row: (None, strip(row)), prevent_cse=False)
        cut = tuple(split(part, count, size) for part in rows)
        loss, has = (part.reshape(-1)[:n] for part in scan(body, None, cut, count)[1])
    if reduction == "none":
        return loss
    total, anchors = jnp.sum(loss), jnp.sum(has)
    if axis_name is not None:
        total, anchors = lax.psum((total, anchors), axis_name)
    return total / jnp.maximum(anchors, 1)


def _strip(
    rows: tuple, *, keys: Array, key_labels: Array, scale: Array, both: bool, alone: bool,
    cosine: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Loss of the anchors of a strip, and which of them have a positive."""
    x, squares, labels, partners, index = rows
    s = (x * squares) @ keys.T * scale
    if cosine:
        own = _inverse_length(jnp.sum(squares * x * x, 1))
        s = s * own[:, None] * _inverse_length(squares @ jnp.square(keys).T)
    same = labels[:, None] == key_labels
    partner = partners[:, None] == key_labels
    positive = (partner | same) if both else partner
    positive &= index[:, None] != jnp.arange(keys.shape[0])
    number = jnp.sum(positive, 1)
    has = number > 0
    if alone:
        rest = jax.nn.logsumexp(jnp.where(same | partner, _ABSENT, s), 1)
        terms = jax.nn.softplus(rest[:, None] - s)
    else:
        candidates = positive | ~(same | partner)
        terms = jax.nn.logsumexp(jnp.where(candidates, s, _ABSENT), 1)[:, None] - s
    total = jnp.sum(jnp.where(positive, terms, 0.0), 1)
    return jnp.where(has, total / jnp.maximum(number, 1), 0.0), has


def _inverse_length(squared: Array) -> Array:
    """Inverse length, finite where all gates are closed."""
    return lax.rsqrt(jnp.maximum(squared, 1e-12))
