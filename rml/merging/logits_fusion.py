"""Dynamic logits fusion: what small experts learned, given to a large model while it decodes.

Fan et al., On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion,
arXiv:2406.15480, NeurIPS 2024. All models have one vocabulary. The large model's logits are moved
by α_t (M_t - M), the difference of an expert t and the small model that it was fine-tuned from; α
is chosen at every token, so that the large model moves as far as the experts moved the small one.
α = 1 at every token is proxy tuning (Liu et al., arXiv:2401.08565).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from rml.models.generate_together import Member, generate_together
from rml.ops.shapes import check_shapes, check_whole
from rml.ops.similarity import wide
from rml.ops.trees import check_finite

GOLDEN = (5**0.5 - 1) / 2


class Shift(NamedTuple):
    """How far two distributions are apart, in nats.

    Attributes:
      forward: KL(p‖q) [...].
      backward: KL(q‖p) [...].
    """

    forward: Array
    backward: Array


class Choice(NamedTuple):
    """The weights of experts at every token.

    Attributes:
      alpha: [t, ...] for t experts.
      loss: Σ_t of the squared differences of shifts [...], see `choose_alpha`.
    """

    alpha: Array
    loss: Array


class Fused(NamedTuple):
    """Texts that several models wrote together.

    Attributes:
      tokens: The tokens added [b, n].
      alpha: The weight of every expert at each of them [t, b, n].
    """

    tokens: Array
    alpha: Array


def fuse_logits(
    large: Float[Array, "*b v"],
    experts: Float[Array, "t *b v"],
    base: Float[Array, "*b v"],
    alpha: Float[Array, "..."],
) -> Float[Array, "*b v"]:
    """Computes M_L + Σ_t α_t (M_t - M), logits of the next token.

    Args:
      large: Logits of the large model, M_L; -inf says that it never gives a token.
      experts: Logits of small experts, M_t.
      base: Logits of the small model, M, that they were fine-tuned from.
      alpha: Weights of the experts [t, ...].

    Returns:
      Logits in float32 at least; -inf at tokens for which any of the models has it.

    Raises:
      ValueError: If the models' logits are of different vocabularies or examples, or the weights
        are not of as many experts.

    Source: section 3.2 and the paper's equation for several experts.
    """
    used, _, moved = _differences(large, experts, base)
    if alpha.shape[:1] != moved.shape[:1]:
        raise ValueError(f"alpha has shape {alpha.shape}, expected weights of {len(moved)} experts")
    moved = jnp.einsum("t...v,t...->...v", moved, alpha.astype(moved.dtype))
    return jnp.where(used, wide(large)[0] + moved, -jnp.inf)


def kl_shift(log_p: Float[Array, "*b v"], log_q: Float[Array, "*b v"]) -> Shift:
    """Computes both Kullback-Leibler divergences of two distributions.

    Args:
      log_p: Logits or log-probabilities of p. Tokens at which p or q has -inf are left out, and
        both distributions are made to sum to 1 without them.
      log_q: Those of q.

    Returns:
      Both divergences [...], in float32 at least.

    Raises:
      ValueError: If they are of different vocabularies or examples.
    """
    check_shapes(log_p=(log_p, "... v"), log_q=(log_q, "... v"))
    used = jnp.isfinite(log_p) & jnp.isfinite(log_q)
    log_p, log_q = (_normalised(wide(x)[0], used) for x in (log_p, log_q))
    apart = jnp.where(used, log_p - log_q, 0.0)
    return Shift(
        jnp.sum(_exp(log_p, used) * apart, axis=-1), -jnp.sum(_exp(log_q, used) * apart, axis=-1)
    )


def choose_alpha(
    large: Float[Array, "*b v"],
    experts: Float[Array, "t *b v"],
    base: Float[Array, "*b v"],
    *,
    low: float | Sequence[float] = 0.0,
    high: float | Sequence[float] = 2.0,
    step: float = 0.1,
    active: str = "one",
    refine: int = 0,
) -> Choice:
    """Chooses the experts' weights at every token: the large model moves as far as the small did.

    Minimises Σ_t (KL(P_α‖P) - KL(Q_t‖Q))² + (KL(P‖P_α) - KL(Q‖Q_t))² over a grid, P being the large
    model's distribution, P_α the fused one, Q the small model's and Q_t the experts'. One point of
    the grid is held at a time, so that memory is that of the logits. Of equal losses the first
    counts: of one expert that of the lowest weight, of two that of the first expert, of
    combinations the first in the order of their weights.

    Args:
      large: Logits of the large model. Tokens at which any model has -inf are left out.
      experts: Logits of the experts.
      base: Logits of the small model.
      low: First weight of the grid, one for all experts or one for each.
      high: Last weight, likewise. It belongs to the grid, also where it is less than a step away
        from the weight before it.
      step: Distance of the weights.
      active: "one": at each token one expert has a weight, the one with the least loss (the
        paper's; t times the grid's points). "all": every combination of weights (as many points
        to the power t). "first": the first expert alone has a weight.
      refine: Number n of golden sections within a step of the best point on both sides, not for
        "all". With 0 the weight is one of the grid, as in the paper. Where the loss has one
        minimum there, the weight is found to 0.62^n of a step.

    Returns:
      Weights [t, ...] and the loss [...].

    Raises:
      ValueError: A grid is empty or endless, there are not as many as experts, `active` is another
        word, `refine` is no whole number of at least 0, "all" is to be refined, or the models'
        logits are of different vocabularies or examples.

    Source: the paper's objective and Algorithm 1, whose running minimum is set once before
    decoding begins; it has to start anew at every token. Golden sections are this library's.
    """
    grids = _grids(low, high, step, len(experts))
    if active not in ("one", "all", "first"):
        raise ValueError(f"active must be 'one', 'all' or 'first', got {active!r}")
    check_whole(refine=refine)
    if refine < 0 or (refine and active == "all"):
        raise ValueError(f"refine must be at least 0, and 0 with active='all', got {refine}")
    points = (
        np.asarray(list(itertools.product(*grids)))
        if active == "all"
        else _together(grids[:1] if active == "first" else grids)
    )
    return _choose(large, experts, base, points, step, active=active, refine=refine)


@functools.partial(jax.jit, static_argnames=("active", "refine"))
def _choose(
    large: Array, experts: Array, base: Array, points: Array, step: Array, *, active: str,
    refine: int,
) -> Choice:  # fmt: skip
    """`choose_alpha` of points [n, t] of the grid, as one program for equal shapes."""
    used, log_p, moved = _differences(large, experts, base)
    points = points.astype(log_p.dtype).reshape(*points.shape, *(1,) * (log_p.ndim - 1))
    wanted = jax.vmap(kl_shift, in_axes=(0, None))(
        jnp.where(used, experts, -jnp.inf), jnp.where(used, base, -jnp.inf)
    )

    def loss(shifted: Array) -> Array:
        """Of logits moved so far [..., v], the loss [...]."""
        found = _moved_shift(log_p, shifted, used)
        return jnp.sum(
            (found.forward - wanted.forward) ** 2 + (found.backward - wanted.backward) ** 2, axis=0
        )

    if active == "all":
        return Choice(*_least(
            lambda point: loss(jnp.einsum("t...,t...v->...v", point, moved)), points,
            log_p.shape[:-1],
        ))  # fmt: skip

    tried = moved[:1] if active == "first" else moved

    def of_each(alpha: Array) -> Array:
        """Of a weight [t, ...] of each expert alone, its loss [t, ...]."""
        return jax.vmap(lambda own, difference: loss(own[..., None] * difference))(alpha, tried)

    alpha, least = _least(of_each, points, tried.shape[:-1])
    if refine:
        alpha, least = _golden_sections(
            of_each, alpha, least, (points[0], points[-1], step), refine
        )
    best = jnp.argmin(least, axis=0)
    chosen = jnp.arange(len(moved)).reshape(-1, *(1,) * best.ndim) == best
    return Choice(jnp.where(chosen, alpha, 0.0), jnp.min(least, axis=0))


def fuse_decode(
    large: Member,
    experts: Member,
    base: Member,
    tokens: Int[Array, "b t"],
    mask: Any = None,
    *,
    steps: int,
    alpha: float | None = None,
    stop: int | None = None,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    **options: Any,
) -> Fused:
    """Continues texts by a large model with the experts of a small one.

    Args:
      large: The large model.
      experts: The small experts: one module whose variables are stacked, also where it is one.
      base: The small model that they were fine-tuned from.
      tokens: The texts.
      mask: Which tokens are text rather than padding; all if not given.
      steps: Number of tokens to add.
      alpha: A weight for all experts at all tokens; chosen at each if not given.
      stop: Token that ends a text and from then on repeats.
      temperature: 0 takes the most probable token.
      key: A typed key to draw with.
      **options: Options of `choose_alpha`; several weights as a tuple.

    Returns:
      The tokens added, and the weight of every expert at each.

    Raises:
      ValueError: The models have different vocabularies, the experts are not stacked, or `steps`,
        a temperature or an option is not as described.
      UserError: A model holds NaN or infinite values, which would read as tokens that it never
        gives. Traced ones are not looked at.
    """
    if not experts.stacked:
        raise ValueError("experts.stacked is False, expected variables with an axis of experts")
    check_finite({
        "the large model": large.variables, "experts": experts.variables,
        "the base": base.variables,
    })  # fmt: skip
    chosen = _Chosen(tuple(sorted(options.items())))
    written = generate_together(
        (large, base, experts), chosen if alpha is None else Partial(_weighted, alpha), tokens,
        mask, steps=steps, stop=stop, temperature=temperature, key=key,
    )  # fmt: skip
    return Fused(written.tokens, jnp.moveaxis(written.found, 0, -1))


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Fuses logits with weights that are chosen; equal options are one program."""

    options: tuple[tuple[str, Any], ...]

    def __call__(self, logits: tuple[Array, ...]) -> tuple[Array, Array]:
        large, base, experts = logits
        alpha = choose_alpha(large, experts, base, **dict(self.options)).alpha
        return fuse_logits(large, experts, base, alpha), alpha


def _weighted(weight: Any, logits: tuple[Array, ...]) -> tuple[Array, Array]:
    """Fuses logits with one weight of all experts."""
    large, base, experts = logits
    alpha = jnp.full(experts.shape[:-1], weight, wide(large)[0].dtype)
    return fuse_logits(large, experts, base, alpha), alpha


def _grids(
    low: float | Sequence[float], high: float | Sequence[float], step: float, count: int
) -> list[np.ndarray]:
    """The weights of every expert, of which the last may be less than a step from its neighbour."""
    if {np.size(low), np.size(high)} - {1, count}:
        raise ValueError(f"low={low}, high={high}, expected one weight or {count}, one an expert")
    ends = np.broadcast_arrays(low, high, np.zeros(count))
    finite = np.isfinite([*ends[0], *ends[1], step]).all()
    if not (finite and step > 0 and np.all(ends[0] <= ends[1])):
        raise ValueError(f"low={low}, high={high}, step={step} give no grid of weights")
    return [
        np.minimum(first + step * np.arange(math.ceil((last - first) / step - 1e-6) + 1), last)
        for first, last, _ in zip(*ends, strict=True)
    ]


def _together(grids: Sequence[np.ndarray]) -> np.ndarray:
    """Points [n, t] of several grids, whose last weights repeat in shorter ones."""
    most = max(map(len, grids))
    return np.stack([np.pad(own, (0, most - len(own)), mode="edge") for own in grids], axis=1)


def _differences(large: Array, experts: Array, base: Array) -> tuple[Array, Array, Array]:
    """Tokens that all models use [..., v], the large model's log-probabilities, and M_t - M."""
    check_shapes(large=(large, "... v"), experts=(experts, "t ... v"), base=(base, "... v"))
    large, experts, base = (wide(x)[0] for x in (large, experts, base))
    used = jnp.isfinite(large) & jnp.isfinite(base) & jnp.isfinite(experts).all(0)
    moved = jnp.where(used, experts, 0.0) - jnp.where(used, base, 0.0)
    return used, _normalised(large, used), moved


def _normalised(logits: Array, used: Array) -> Array:
    """Log-probabilities among the tokens that are used, and 0 at the others."""
    total = jax.nn.logsumexp(logits, axis=-1, where=used, keepdims=True)
    return jnp.where(used, logits - total, 0.0)


def _exp(log_p: Array, used: Array) -> Array:
    return jnp.where(used, jnp.exp(log_p), 0.0)


def _moved_shift(log_p: Array, shifted: Array, used: Array) -> Shift:
    """KL(P_s‖P) and KL(P‖P_s) of P_s, P with logits moved by s: by ψ = log E_P exp(s)."""
    psi = jax.nn.logsumexp(log_p + shifted, axis=-1, where=used, keepdims=True)
    after = jnp.sum(_exp(log_p + shifted - psi, used) * shifted, axis=-1)
    before = jnp.sum(_exp(log_p, used) * shifted, axis=-1)
    return Shift(after - psi[..., 0], psi[..., 0] - before)


def _least(
    loss: Callable[[Array], Array], points: Array, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """The first of points [n, ...] with the least loss [...] of a shape, and that loss."""

    def look(best: tuple[Array, Array], point: Array) -> tuple[tuple[Array, Array], None]:
        alpha, least = best
        own = loss(jnp.broadcast_to(point, alpha.shape))
        better = own < least
        return (jnp.where(better, point, alpha), jnp.where(better, own, least)), None

    start = jnp.broadcast_to(points[0], jnp.broadcast_shapes(points.shape[1:], shape))
    first = jnp.full(shape, jnp.inf, points.dtype)
    return jax.lax.scan(look, (start, first), points)[0]


def _golden_sections(
    loss: Callable[[Array], Array], alpha: Array, least: Array,
    grid: tuple[Array, Array, Array], rounds: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Narrows what is within a step of grid points; these stay where they are better."""
    low, high, step = grid
    ends = jnp.maximum(alpha - step, low), jnp.minimum(alpha + step, high)

    def inside(left: Array, right: Array) -> tuple[Array, Array]:
        return right - GOLDEN * (right - left), left + GOLDEN * (right - left)

    def narrow(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = ends
        first, second = inside(left, right)
        down = loss(first) <= loss(second)
        return jnp.where(down, left, first), jnp.where(down, second, right)

    left, right = jax.lax.fori_loop(0, rounds, narrow, ends)
    middle = (left + right) / 2
    found = loss(middle)
    return jnp.where(found < least, middle, alpha), jnp.minimum(found, least)
