"""TempScale: attention sharpened in a trained text encoder, and what stands beside it.

Yuqi Zhou, Sunhao Dai, Zhanshuo Cao, Xiao Zhang, Jun Xu: Length-Induced Embedding Collapse in
Transformer-based Models, arXiv:2410.24200. The paper argues that self-attention is a low-pass
filter, the stronger the longer the text, so that embeddings of long texts come out alike. It
divides the logits of every layer by one temperature below 1, without any training.

Each function below makes of a `TextEncoder` a function of variables, tokens and their mask, as
`embed` takes it. Its number is one of the variables, so that one program serves all of its values.
`choose_temperature` finds it on queries whose answers are known. An index is built anew for it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from rml.evaluation import make_qrels, ndcg, rank, ranked_grades
from rml.models.attention import Attend, tempered
from rml.models.bert import Bert
from rml.models.llama import Llama
from rml.models.text_encoder import TextEncoder
from rml.ops.attention_parts import Visible
from rml.ops.precision import full_precision
from rml.ops.shapes import check_between, check_count, check_shapes, check_whole
from rml.ops.similarity import normalize
from rml.retrieval.search import search

Encode = Callable[[PyTree, Int[Array, "b t"], Bool[Array, "b t"]], Float[Array, "b d"]]


EmbedAt = Callable[[float, Sequence[str]], Float[Array | np.ndarray, "n d"]]
"""Vectors of texts at a temperature."""


class Choice(NamedTuple):
    """The best temperature of a grid.

    Attributes:
      temperature: The first of those whose score is highest.
      ndcg: Mean nDCG over queries at each temperature of the grid.
    """

    temperature: float
    ndcg: Float[np.ndarray, " values"]


def choose_temperature(
    embed: EmbedAt,
    queries: Sequence[str],
    documents: Sequence[str],
    relevant: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]],
    grid: Sequence[float | int],
    *,
    embed_queries: EmbedAt | None = None,
    k: int = 10,
) -> Choice:
    """Chooses the temperature whose vectors rank the answers of known queries best.

    Queries and documents are embedded at the same temperature each time; an `embed_queries` that
    takes no notice of it chooses for documents alone. Equal scores are ordered as the documents
    are.

    Args:
      embed: Vectors of documents at a temperature, such as `embed` with `tuned_encode`.
      queries: Queries of the choice, which are not those of a later test.
      documents: Documents that are searched.
      relevant: Query, document and grade of each judgement; every query needs one.
      grid: Temperatures to try.
      embed_queries: Vectors of queries at a temperature; `embed` if not given.
      k: Depth of nDCG.

    Returns:
      The choice.

    Raises:
      ValueError: The grid is empty, a temperature is not above 0, `k` is no whole number of at
        least 1, or the judgements do not fit.

    Source: arXiv:2410.24200 sets one temperature for each model and does not say how; that the
      choice is by nDCG is ours.
    """
    check_count(1, k=k)
    if not len(grid):
        raise ValueError("grid has no temperature, expected at least one")
    _require_positive("grid", np.asarray(grid, float))
    qrels = make_qrels(*relevant, num_queries=len(queries))
    order, scores = jnp.arange(len(documents)), []
    for temperature in grid:
        asked = (embed_queries or embed)(temperature, queries)
        found = search(
            jnp.asarray(asked), jnp.asarray(embed(temperature, documents)),
            k=min(k, len(documents)),
        )  # fmt: skip
        grades = ranked_grades(rank(found[0], order, documents=found[1]), qrels)
        scores.append(float(ndcg(grades, qrels.grades, k=k).mean()))
    return Choice(grid[int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))], np.array(scores))


class Tuned(NamedTuple):
    """Variables of an encoder, and the number that its attention is changed by.

    Attributes:
      variables: Variables of the encoder.
      value: The temperature; for all layers, or [layers], or [layers, heads].
    """

    variables: PyTree
    value: Float[Array, "..."] | float


def temper(encoder: TextEncoder, temperature: float | Array) -> TextEncoder:
    """Makes an encoder whose attention's logits are divided by a temperature in every layer.

    The authors encode queries and documents with the same temperature. Documents alone are worth a
    trial: in the runs of results/tempscale they ranked better on docstrings with code, and worse on
    pages of manuals. Either way an index is built anew.
    A bias that the attention adds by itself is not divided.

    Args:
      encoder: An encoder whose backbone has a field `attention` with what attends, or with one for
        each layer, such as `rml.models.Bert`. An encoder may be tempered twice.
      temperature: Below 1 attention is sharper; a number, one for each layer, or [layers, heads].

    Returns:
      The encoder; with 1 it is the same bit for bit.

    Raises:
      ValueError: The temperatures are not as many as the layers or heads, or not positive; or the
        backbone has no attention that can be changed, or one for all layers alone.

    Source: arXiv:2410.24200, TempScale, as in the authors' code: logits, mask included, over τ.
    """
    _require_positive("temperature", temperature)
    if jnp.ndim(temperature) == 0:
        return _changed(encoder, lambda own: tempered(own, temperature))
    backbone, rows = encoder.backbone, jnp.asarray(temperature)
    own = _attention(backbone)
    if not isinstance(backbone, Bert | Llama):
        raise ValueError(
            f"{type(backbone).__name__} has one attention for all layers, expected one "
            f"temperature, not {rows.shape}"
        )
    if len(rows) != backbone.depth:
        raise ValueError(f"{len(rows)} temperatures for {backbone.depth} layers")
    if rows.ndim > 1 and rows.shape[1:] != (backbone.heads,):
        raise ValueError(
            f"temperatures have shape {rows.shape}, expected {(backbone.depth, backbone.heads)} of "
            "layers and heads"
        )
    layers = own if isinstance(own, tuple) else (own,) * backbone.depth
    if len(layers) != backbone.depth:
        raise ValueError(f"attention has {len(layers)} entries for depth={backbone.depth}")
    attention = tuple(tempered(one, row) for one, row in zip(layers, rows, strict=True))
    return encoder.clone(backbone=backbone.clone(attention=attention))


def scale_by_length(encoder: TextEncoder, reference: float | Array) -> TextEncoder:
    """Makes an encoder whose logits are multiplied by log n / log n₀ for a text of n tokens.

    Args:
      encoder: Encoder as for `temper`.
      reference: The length n₀, above 1, whose texts are encoded as before.

    Returns:
      The encoder.

    Raises:
      ValueError: The reference is not above 1, or the backbone has no attention to be changed.

    Source: the logarithmic scale of attention by length (Chiang & Cholak, arXiv:2202.12172), which
    keeps the entropy of attention more even over lengths. A rival of TempScale, not the paper's.
    """
    if not isinstance(reference, jax.core.Tracer) and not float(reference) > 1:
        raise ValueError(f"reference={reference} tokens, expected more than 1")

    def scaled(own: Attend) -> Attend:
        def attention(query: Array, key: Array, value: Array, visible: Visible) -> Any:
            number = jnp.asarray(key.shape[1])[None]
            if visible.keys is not None:
                number = jnp.sum(jnp.asarray(visible.keys), axis=1)
            factor = jnp.log(jnp.maximum(number, 2)) / jnp.log(reference)
            query = (query * factor[:, None, None, None]).astype(query.dtype)
            return own(query, key, value, visible)

        return attention

    return _changed(encoder, scaled)


def tuned_encode(
    encoder: TextEncoder, change: Callable[[TextEncoder, Any], TextEncoder] = temper
) -> Encode:
    """Makes a changed encoder a function of `Tuned` variables, tokens and mask.

    Args:
      encoder: The encoder.
      change: `temper` or `scale_by_length`.

    Returns:
      A pure function, compiled once for all values.
    """

    def encode(tuned: Tuned, tokens: Array, mask: Array) -> Array:
        apply: Callable[..., Any] = change(encoder, jnp.asarray(tuned.value)).apply
        return apply(tuned.variables, tokens, mask)

    return encode


def chunked_encode(encoder: TextEncoder, size: int) -> Encode:
    """Makes a function that encodes a text in chunks and takes the mean of their vectors.

    Args:
      encoder: An encoder of unit vectors.
      size: Tokens of a chunk; the last may be shorter.

    Returns:
      A pure function of variables, tokens and mask; vectors of unit length, weighted by the number
      of tokens of their chunk. A text of one chunk has the vector that it has uncut.

    Raises:
      ValueError: If a chunk has no whole number of tokens of at least 1, or the encoder's vectors
        are those of a first token that only the first chunk has.
    """
    check_whole(size=size)
    if size < 1:
        raise ValueError(f"size={size} tokens of a chunk, expected at least 1")
    if encoder.pooling == "cls":
        raise ValueError("pooling='cls' of chunks that do not begin with it, expected another one")

    apply: Callable[..., Any] = encoder.apply

    def encode(variables: PyTree, tokens: Array, mask: Array) -> Array:
        b, t = tokens.shape
        width = max(1, min(size, t))  # a short batch is not filled up to the chunk
        chunks = -(-t // width)
        fill = ((0, 0), (0, chunks * width - t))
        cut = [jnp.pad(x, fill).reshape(b * chunks, width) for x in (tokens, mask)]
        weights = cut[1].sum(axis=1).reshape(b, chunks, 1)
        vectors = apply(variables, *cut).reshape(b, chunks, -1)
        return normalize(jnp.sum(weights * jnp.where(weights > 0, vectors, 0.0), axis=1))

    return encode


class Whitening(NamedTuple):
    """A linear map after which embeddings are spread evenly over directions.

    Attributes:
      center: [d], subtracted first.
      matrix: [d, d].
    """

    center: Float[Array, " d"]
    matrix: Float[Array, "d d"]


@full_precision
def fit_whitening(
    x: Float[Array, "n d"], *, shrinkage: float | Float[Array, ""] = 0.0
) -> Whitening:
    """Fits the whitening of embeddings, which takes away the direction that they share.

    Args:
      x: Embeddings.
      shrinkage: 1 takes the mean away and leaves the rest as it is; 0 makes the covariance the
        identity, between them its eigenvalues are drawn to their mean.

    Returns:
      The map (x - center) @ matrix, up to a common factor; of orthogonal columns of length 1 where
      all embeddings are the same.

    Raises:
      ValueError: There are fewer than two embeddings, or the shrinkage is not between 0 and 1.

    Source: Su et al., Whitening Sentence Representations, arXiv:2103.15316, equation 8; the
    shrinkage is ours.
    """
    check_between(0, 1, shrinkage=shrinkage)
    if len(x) < 2:
        raise ValueError(f"x has shape {x.shape}, expected at least two embeddings to fit to")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The rounded mean of equal embeddings may lie beside them.
    same = jnp.all(x == x[:1])
    center = jnp.where(same, x[0], jnp.mean(x, axis=0))
    values, vectors = jnp.linalg.eigh(jnp.atleast_2d(jnp.cov(x.T, bias=True)))
    mean = jnp.where(same, 0, jnp.mean(values))
    values = (1 - shrinkage) * values + shrinkage * mean
    floor = jnp.finfo(values.dtype).eps * mean * len(values)
    # Embeddings that are all the same have no spread to even out.
    spread = jnp.where(mean > 0, jnp.maximum(values, floor) / jnp.where(mean > 0, mean, 1), 1)
    return Whitening(center, vectors * jax.lax.rsqrt(spread))


@full_precision
def whiten(x: Float[Array, "n d"], fitted: Whitening) -> Float[Array, "n d"]:
    """Whitens embeddings and scales them to unit length.

    Args:
      x: Embeddings.
      fitted: What `fit_whitening` returned for embeddings as wide.

    Raises:
      ValueError: The widths differ.
    """
    check_shapes(x=(x, "m d"), center=(fitted.center, "d"))
    return normalize((x - fitted.center) @ fitted.matrix)


def _attention(backbone: Any) -> Attend | tuple[Attend, ...]:
    """What attends in a backbone, in all layers or one for each."""
    own = getattr(backbone, "attention", None)
    if callable(own):
        return own
    if isinstance(own, Sequence) and own and all(map(callable, own)):
        return tuple(own)
    raise ValueError(
        f"{type(backbone).__name__} has attention={own!r}, expected what attends, or one a layer"
    )


def _changed(encoder: TextEncoder, change: Callable[[Attend], Attend]) -> TextEncoder:
    """The encoder with each of its attentions changed, once where layers share it."""
    backbone: Any = encoder.backbone
    own = _attention(backbone)
    if isinstance(own, tuple):
        made = {one: change(one) for one in own}
        return encoder.clone(backbone=backbone.clone(attention=tuple(made[one] for one in own)))
    return encoder.clone(backbone=backbone.clone(attention=change(own)))


def _require_positive(name: str, value: Any) -> None:
    """Raises a ValueError for a number that is known and not positive."""
    if not isinstance(value, jax.core.Tracer) and not bool(jnp.all(jnp.asarray(value) > 0)):
        raise ValueError(f"{name}={value}, expected above 0")
