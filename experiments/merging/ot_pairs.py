"""Pairs of models to fuse, and the search over options of their alignment."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.claims import with_bounds
from rml.merging import Aligned, LayerActivations, align, shortcut_shares
from rml.ops import t_interval

STATIC = ("features", "solver", "residual", "query_key", "heads", "metric", "scale")
SHARES = ("mean", "residual", "branch", "weighted_scalar", "weighted_matrix")
"""Policies of residual sums that are a share of the shortcut: one program for all."""
POLICIES = (*SHARES, "identity", "shared")
ONE = {"solver": "exact", "heads": "kept", "query_key": "shared", "residual": "shared"}
"""One permutation of the stream and whole heads, which keeps the function of a model."""
UNIFORM = 1e3
"""Entropy at which every unit goes everywhere."""


@functools.partial(jax.jit, static_argnames=STATIC)
def _align(
    first: Any, anchor: Any, acts0: LayerActivations, acts1: LayerActivations, reg: Any,
    shares: Any, **options: Any,
) -> Aligned:  # fmt: skip
    given = options if shares is None else options | {"residual": shares}
    return align(first, anchor, acts0, acts1, reg=reg, **given)


_shares = jax.jit(shortcut_shares, static_argnums=1)


class Pair(NamedTuple):
    """Two models, and what their units gave on the same inputs.

    Attributes:
      first: Parameters of the model that is aligned.
      anchor: Parameters of the other.
      acts: Activations of both.
    """

    first: Any
    anchor: Any
    acts: tuple[LayerActivations, LayerActivations]

    def align(self, **options: Any) -> Aligned:
        """The first model in the places of the anchor, by options of `rml.merging.align`."""
        policy, reg = options.get("residual", "mean"), jnp.asarray(options.get("reg", 1.0))
        static = {name: own for name, own in options.items() if name not in ("residual", "reg")}
        if policy in SHARES:
            shares = _shares(self.acts[1], policy)
            return _align(self.first, self.anchor, *self.acts, reg, shares, **static)
        return _align(self.first, self.anchor, *self.acts, reg, None, residual=policy, **static)

    def fuse(self, **options: Any) -> Any:
        """The mean of both after alignment."""
        return blended(self.align(**options).params, self.anchor, 0.5)

    def exchanged(self, seed: int) -> "Pair":
        """The pair with units of the first model out of their places, for a null.

        One permutation of the stream, and one of each other kind of units.
        """
        rng, own = np.random.default_rng([seed, 1]), self.acts[0]
        places: dict[int | str, np.ndarray] = {}

        def of(name: str, leaf: Any) -> Any:
            kind = name if name in ("query", "key", "value", "mlp") else "stream"
            if kind not in places:
                places[kind] = rng.permutation(leaf.shape[-1])
            return leaf[..., places[kind]]

        changed = {
            name: of(name, leaf)
            for name, leaf in own._asdict().items() if name != "mask"
        }  # fmt: skip
        return self._replace(acts=(own._replace(**changed), self.acts[1]))


class Searched(NamedTuple):
    """The best of several tries on validation data.

    Attributes:
      params: The fused model.
      options: Its options.
      scores: Mean validation score of each try, in their order.
    """

    params: Any
    options: dict[str, Any]
    scores: np.ndarray


@jax.jit
def blended(first: Any, anchor: Any, weight: Any) -> Any:
    """(1 - weight) times the first model plus weight times the anchor."""
    return jax.tree.map(lambda a, b: (1 - weight) * a + weight * b, first, anchor)


def search(
    pair: Pair, tries: Iterable[Mapping[str, Any]], score: Callable[[Any], np.ndarray]
) -> Searched:
    """Fuses a pair with each of several options; the best mean score wins.

    Args:
      pair: The pair.
      tries: Options of each try.
      score: Validation scores of a model by example, of which more is better.
    """
    given = [dict(own) for own in tries]
    models = [pair.fuse(**own) for own in given]
    scores = np.array([np.mean(score(params)) for params in models])
    best = int(scores.argmax())
    return Searched(models[best], given[best], scores)


def families(regs: Iterable[float]) -> dict[str, list[dict[str, Any]]]:
    """Tries of each kind of alignment: soft ones by entropy, hard ones by residual policy."""
    soft = [{"reg": reg} for reg in regs]
    hard = [{"solver": "exact", "residual": policy} for policy in SHARES[: len(soft)]]
    weights = {"features": "weights"}
    return {
        "soft": soft,
        "hard": hard,
        "weights": [own | weights for own in soft],
        "kept": [own | {"heads": "kept", "query_key": "shared"} for own in soft],
        **{kind: [own | {"query_key": kind} for own in soft] for kind in ("shared", "joint")},
    }


def along(
    pair: Pair, options: Mapping[str, Any], score: Callable[[Any], np.ndarray], points: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of examples along lines from the first model, as it is and aligned, to the anchor.

    Args:
      pair: The pair.
      options: Options of soft alignment.
      score: Scores of a model by example.
      points: Number of points of each line.

    Returns:
      By name the weights of the anchor [k], and scores [k, n].
    """
    weights = np.linspace(0, 1, points)
    starts = {
        "as they are": pair.first, "aligned, soft": pair.align(**options).params,
        "aligned, one permutation": pair.align(**ONE).params,
    }  # fmt: skip
    return {
        name: (weights, np.stack([score(blended(start, pair.anchor, w)) for w in weights]))
        for name, start in starts.items()
    }


def differences(
    found: Mapping[str, np.ndarray], pairs: Mapping[str, tuple[str, str]]
) -> dict[str, float]:
    """Differences of mean scores, with their intervals over test examples."""
    metrics: dict[str, float] = {}
    for name, (first, second) in pairs.items():
        metrics |= with_bounds(name, t_interval(found[first] - found[second]))
    return metrics
