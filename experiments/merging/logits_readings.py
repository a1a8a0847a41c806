"""Nats of real texts under fused logits: all weights of experts in one pass over the texts."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from experiments.common import small_lm
from experiments.merging.logits_models import LARGE, SMALL, Models, sized
from rml.merging import choose_alpha, fuse_logits, kl_shift
from rml.models import Llama


class Reading(NamedTuple):
    """Of windows of text [m, t], by token 1 to n, n = t - 1.

    Attributes:
      large: Nats of the large model [m, n].
      expert: Nats of the one expert [m, n].
      mean: Nats of the mean of their logits [m, n].
      fixed: Nats with each weight of the grid for the one expert [m, g, n].
      dynamic: Nats with a weight chosen at every token [m, n].
      refined: The same beyond the grid [m, n].
      shuffled: The same weights at other tokens of the window [m, n].
      alpha: The weights [m, n].
      same: The weights where the small model is the large one too [m, n].
      moved: KL of the one expert from the small model [m, n].
      several: Nats with one of all experts chosen at every token [m, n].
      active: Their weights [m, t, n].
      uniform: Nats with all experts at one t-th [m, n].
    """

    large: Any
    expert: Any
    mean: Any
    fixed: Any
    dynamic: Any
    refined: Any
    shuffled: Any
    alpha: Any
    same: Any
    moved: Any
    several: Any
    active: Any
    uniform: Any


Modules = tuple[Llama, Llama]
Params = tuple[Any, Any, Any]


def read(
    config: Any, models: Models, experts: Any, own: int, windows: Int[np.ndarray, "m t"]
) -> Reading:
    """Reads windows with the large model, the small one and experts, by every way.

    Args:
      config: The run's config.
      models: Large and small model.
      experts: Parameters of small experts, stacked.
      own: Which expert is the one.
      windows: Tokens.

    Returns:
      The reading, as arrays of NumPy.
    """
    params = (models.large, models.small, experts)
    key = jax.random.key(config.seed)
    found = _read(modules(config), tuple(grid(config)), params, jnp.asarray(own), windows, key)
    return jax.tree.map(np.asarray, found)


def read_fixed(config: Any, models: Models, expert: Any, windows: Int[np.ndarray, "m t"]) -> Any:
    """Nats of windows with each weight of the grid for an expert, [m, g, n]."""
    params = (models.large, models.small, expert)
    large, small = modules(config)
    return np.asarray(_read_fixed((large, small, small), tuple(grid(config)), params, windows))


def read_contrastive(config: Any, models: Models, windows: Int[np.ndarray, "m t"]) -> Any:
    """Nats of windows under M_L + β (M_L - M) with each β of the grid, [m, g, n].

    This is contrastive decoding with the small model as amateur, in the form that leaves out no
    token (O'Brien and Lewis, arXiv:2309.09117): the one expert is the large model itself.
    """
    params = (models.large, models.small, models.large)
    large, small = modules(config)
    return np.asarray(_read_fixed((large, small, large), tuple(grid(config)), params, windows))


def read_dynamic(config: Any, models: Models, expert: Any, windows: Int[np.ndarray, "m t"]) -> Any:
    """Nats of windows with weight 1 for an expert, and with chosen weights, both [m, n]."""
    params = (models.large, models.small, expert)
    found = _read_dynamic(modules(config), tuple(grid(config)), params, windows)
    return jax.tree.map(np.asarray, found)


def modules(config: Any) -> Modules:
    """The large and the small decoder."""
    large, small = (small_lm.language_model(sized(config, kind)) for kind in (LARGE, SMALL))
    return large, small


def grid(config: Any) -> np.ndarray:
    """Weights that are tried at every token, and for all of them."""
    return np.linspace(0.0, config.alpha.high, config.alpha.points)


@functools.partial(jax.jit, static_argnames=("modules", "points"))
def _read(
    modules: Modules, points: tuple[float, ...], params: Params, own: Array, windows: Array,
    key: Array,
) -> Reading:  # fmt: skip
    choose = functools.partial(choose_alpha, high=points[-1], step=points[1])

    def of_window(given: tuple[Array, Array]) -> Reading:
        window, key = given
        large, small = (_logits(*pair, window) for pair in zip(modules, params[:2], strict=True))
        experts = jax.vmap(lambda one: _logits(modules[1], one, window))(params[2])
        expert, nats = experts[own], functools.partial(_nats, window)

        def of_one(alpha: Array) -> Array:
            return nats(fuse_logits(large, expert[None], small, alpha[None]))

        chosen = choose(large, expert[None], small).alpha[0]
        refined = choose(large, expert[None], small, refine=12).alpha[0]
        several = choose(large, experts, small).alpha
        share = jnp.full_like(several, 1 / len(several))
        return Reading(
            large=nats(large),
            expert=nats(expert),
            mean=nats((large + expert) / 2),
            fixed=_fixed(points, large, expert, small, window),
            dynamic=of_one(chosen),
            refined=of_one(refined),
            shuffled=of_one(jax.random.permutation(key, chosen)),
            alpha=chosen,
            same=choose(small, expert[None], small).alpha[0],
            moved=kl_shift(expert, small).forward,
            several=nats(fuse_logits(large, experts, small, several)),
            active=several,
            uniform=nats(fuse_logits(large, experts, small, share)),
        )

    return jax.lax.map(of_window, (windows, jax.random.split(key, len(windows))))


@functools.partial(jax.jit, static_argnames=("modules", "points"))
def _read_fixed(
    modules: tuple[Llama, Llama, Llama], points: tuple[float, ...], params: Params, windows: Array
) -> Array:
    def of_window(window: Array) -> Array:
        large, small, expert = (_logits(*o, window) for o in zip(modules, params, strict=True))
        return _fixed(points, large, expert, small, window)

    return jax.lax.map(of_window, windows)


@functools.partial(jax.jit, static_argnames=("modules", "points"))
def _read_dynamic(
    modules: Modules, points: tuple[float, ...], params: Params, windows: Array
) -> tuple[Array, Array]:
    def of_window(window: Array) -> tuple[Array, Array]:
        kinds = (modules[0], modules[1], modules[1])
        large, small, expert = (_logits(*o, window) for o in zip(kinds, params, strict=True))
        chosen = choose_alpha(large, expert[None], small, high=points[-1], step=points[1]).alpha
        one = jnp.ones_like(chosen)
        first, second = (
            _nats(window, fuse_logits(large, expert[None], small, alpha)) for alpha in (one, chosen)
        )
        return first, second

    return jax.lax.map(of_window, windows)


def _fixed(
    points: tuple[float, ...], large: Array, expert: Array, small: Array, window: Array
) -> Array:
    def of_point(point: Array) -> Array:
        alpha = jnp.full((1, len(large)), point)
        return _nats(window, fuse_logits(large, expert[None], small, alpha))

    return jax.lax.map(of_point, jnp.asarray(points, large.dtype))


def _nats(window: Array, logits: Array) -> Array:
    """Nats of a window's tokens but the first under logits [n, v]."""
    return small_lm.next_nats(logits[None], window[None])[0]


def _logits(module: Llama, params: Any, window: Array) -> Array:
    """Logits [n, v] of every token of a window but the first."""
    return small_lm.logits_of(module, params, window[None, :-1])[0][0]
