"""The arc-cosine kernel of order 1 with derivatives that exist where two points coincide.

Of an inner product c and squared norms v and w, with the angle θ = arccos(c / √(v w)),

    k = √(v w) (sin θ + (π - θ) cos θ) / π,    ∂k/∂c = (π - θ) / π,    ∂k/∂v = sin θ √(w / v) / 2π.

The derivative of θ by the entries of a Gram matrix is infinite at θ = 0 and π. By the points the
second derivative of k is finite there: it is that of c, as the rest of k grows with |x - y|³. So
the derivative of θ counts as 0 there, which central differences by the points agree with. At a
point of norm zero the angle counts as π/2, the mean over all directions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rml.ops.similarity import wide


def positive_root(v: Array) -> Array:
    """Computes the square root, with a gradient of 0 at 0."""
    return jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0)


def ratio(a: Array, b: Array) -> Array:
    """Divides a by b, to 0 where b is 0."""
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1.0), 0.0)


def _norm(v: Array, w: Array) -> Array:
    """√(v w): exact where both are equal, and of each root alone, as their product may overflow."""
    return jnp.where(v == w, v, positive_root(v) * positive_root(w))


@jax.custom_jvp
def cosine(c: Array, v: Array, w: Array) -> Array:
    """Divides c by √(v w), to 0 where one of v and w is 0; rounding may take it past 1."""
    return ratio(c, _norm(v, w))


@cosine.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (c, v, w), (dc, dv, dw) = primals, tangents
    # In one piece: the powers of short norms that its parts would have are not numbers.
    found = cosine(c, v, w)
    return found, ratio(dc, _norm(v, w)) - found / 2 * (ratio(dv, v) + ratio(dw, w))


@jax.custom_jvp
def angle(c: Array, v: Array, w: Array) -> Array:
    """Computes the angle θ between two points; see the module's docstring for its edges."""
    return jnp.arccos(jnp.clip(cosine(c, v, w), -1.0, 1.0))


@angle.defjvp
def _(primals: Any, tangents: Any) -> Any:
    found = angle(*primals)
    along, change = jax.jvp(cosine, primals, tangents)
    return found, -ratio(change, jnp.where(jnp.abs(along) < 1, jnp.sin(found), 0.0))


@jax.custom_jvp
def _arc_cosine(c: Array, v: Array, w: Array) -> Array:
    theta = angle(c, v, w)
    along = jnp.clip(cosine(c, v, w), -1.0, 1.0)
    return _norm(v, w) * (jnp.sin(theta) + (jnp.pi - theta) * along) / jnp.pi


@_arc_cosine.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (c, v, w), (dc, dv, dw) = primals, tangents
    theta, a, b = angle(c, v, w), positive_root(v), positive_root(w)
    by_norms = ratio(b, a) * dv + ratio(a, b) * dw
    slope = (1 - theta / jnp.pi) * dc + jnp.sin(theta) / (2 * jnp.pi) * by_norms
    return _arc_cosine(c, v, w), slope


def arc_cosine(c: Array, v: Array, w: Array) -> Array:
    """Computes twice the mean of relu(u) relu(u'), u, u' normal of variances v, w, covariance c.

    Source: Cho and Saul 2009, Kernel Methods for Deep Learning, k_1.
    """
    return _arc_cosine(*jnp.broadcast_arrays(*wide(c, v, w)))
