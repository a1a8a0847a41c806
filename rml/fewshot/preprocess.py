"""Transforms of features before they are compared: UN, L2N, CL2N."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.errors import unknown
from rml.ops.shapes import check_shapes
from rml.ops.similarity import normalize, wide

KINDS = ("UN", "L2N", "CL2N")


def transform(
    x: Float[Array, "n d"], *, kind: str, center: Float[Array, " d"] | None = None
) -> Float[Array, "n d"]:
    """Transforms features as SimpleShot does.

    Args:
      x: Features.
      kind: "UN" leaves them as they are, "L2N" scales rows to unit length, "CL2N" subtracts
        `center` first.
      center: Mean of the base classes' features, for CL2N; the rows' own mean by default.

    Returns:
      The transformed features, in float32 or wider.

    Raises:
      UserError: If `kind` is unknown.
      ValueError: If the centre has not one number a feature.

    Source: Wang et al., SimpleShot, arXiv:1911.04623, where the centre is the base classes' mean.
    """
    if kind not in KINDS:
        raise unknown("feature transform", kind, KINDS)
    check_shapes(x=(x, "rows d"), center=(center, "d"))
    (x,) = wide(x)
    if kind == "UN":
        return x
    if kind == "CL2N":
        x = x - (jnp.mean(x, axis=0) if center is None else center)
    return normalize(x)


def transform_episode(
    support: Float[Array, "s d"],
    query: Float[Array, "q d"],
    *,
    kind: str,
    center: Float[Array, " d"] | None = None,
) -> tuple[Float[Array, "s d"], Float[Array, "q d"]]:
    """Transforms an episode; without a centre, by the mean of support and queries together.

    Args:
      support: Support features.
      query: Query features.
      kind: "UN", "L2N" or "CL2N".
      center: The base classes' mean; the episode's, which is transductive, by default.

    Returns:
      Transformed support and queries.

    Raises:
      UserError: If `kind` is unknown.
    """
    rows = transform(jnp.concatenate([support, query]), kind=kind, center=center)
    return rows[: support.shape[0]], rows[support.shape[0] :]


def shift_queries(support: Float[Array, "s d"], query: Float[Array, "q d"]) -> Float[Array, "q d"]:
    """Moves the queries so that their mean is that of the support.

    Source: Liu et al., arXiv:1911.10713 (cross-class bias); also the first step of the public
      code of arXiv:2106.09516.
    """
    support, query = wide(support, query)
    return query + jnp.mean(support, axis=0) - jnp.mean(query, axis=0)


def preprocessed(
    method: Callable[..., Any], *, kind: str, center: Float[Array, " d"] | None = None
) -> Callable[..., Any]:
    """Makes a method that transforms an episode's features before `method` sees them.

    Args:
      method: Any few-shot method of this package.
      kind: "UN", "L2N" or "CL2N".
      center: The base classes' mean; each episode's own by default.

    Returns:
      A method of the same signature.
    """

    @wraps(method)
    def wrapped(support: Array, support_labels: Array, query: Array, **options: Any) -> Any:
        support, query = transform_episode(support, query, kind=kind, center=center)
        return method(support, support_labels, query, **options)

    return wrapped
