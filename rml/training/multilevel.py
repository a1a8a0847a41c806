"""Training at several sizes: a transformer is made smaller, trained there and made large again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, Int, PyTree

from rml.errors import UserError, unknown
from rml.models.depth import map_depth
from rml.models.layouts import Sizes, transformer_sizes
from rml.models.width import WidthMap, map_width, of_heads
from rml.ops.trees import check_trees

SCHEMES = ("halves", "neighbours")


class Groups(NamedTuple):
    """Which units of a large model are one unit of a small one; None leaves a space as it is.

    Each is an array with the number of the small unit of every large one.

    Attributes:
      stream: Groups of the token's width.
      heads: Groups of the query heads.
      kv_heads: Groups of the heads of keys and values.
      mlp: Groups of the hidden units.
      layers: Groups of the blocks.
      head_width: Width of a head, which stays.
    """

    stream: Any = None
    heads: Any = None
    kv_heads: Any = None
    mlp: Any = None
    layers: Any = None
    head_width: int = 0


class Level(NamedTuple):
    """One size of a V-cycle.

    Attributes:
      before: Steps before the model is made smaller; with 0 the next level starts afresh, and
        nothing is interpolated with on the way back. Of the smallest level 0.
      after: Steps after that, or at the smallest level.
      rate: Learning rate.
    """

    before: int
    after: int
    rate: float


class Phase(NamedTuple):
    """One training of a V-cycle, whose optimiser and schedule begin anew.

    Attributes:
      level: Size, 0 the largest.
      change: Kind of its beginning: "start", "coalesce" or "decoalesce".
      steps: Steps of training.
      rate: Learning rate.
    """

    level: int
    change: str
    steps: int
    rate: float


def unit_groups(n: int, ratio: int = 2, scheme: str = "halves") -> Int[np.ndarray, " n"]:
    """Assigns units to groups of `ratio` each.

    Args:
      n: Number of units.
      ratio: Units of a group.
      scheme: "neighbours" {0, 1}, {2, 3} ..., or "halves" {0, n/2}, {1, n/2 + 1} ..., parts rather
        than halves for another ratio.

    Returns:
      The number of the group of each unit.

    Raises:
      UserError: The ratio does not divide the units, or the scheme is unknown.

    Source: Zou et al., arXiv:2404.07999, figure 2 (neighbours), and the public code (halves).
    """
    if ratio < 1 or n % ratio:
        raise UserError(f"{n} units cannot be grouped by {ratio}, expected a divisor of {n}")
    if scheme not in SCHEMES:
        raise unknown("scheme", scheme, SCHEMES)
    units = np.arange(n)
    return units // ratio if scheme == "neighbours" else units % (n // ratio)


def groups_of(
    params: PyTree | Sizes,
    *,
    width: int = 2,
    depth: int = 2,
    scheme: str = "halves",
    layer_scheme: str = "halves",
) -> Groups:
    """Groups all units of a `ViT`, `Bert` or `Llama`.

    Heads are grouped whole. Where several queries share keys and values, heads of keys and values
    are grouped, and with them queries at the same place of their group.

    Args:
      params: Its parameters, heads may stand beside it; or the `Sizes` of a model that is to be.
      width: Units of a group of the stream, the heads and the MLP; 1 leaves the width.
      depth: Layers of a group; 1 leaves the depth.
      scheme: Scheme of the units' groups, see `unit_groups`.
      layer_scheme: Scheme of the layers' groups.

    Raises:
      UserError: A number of units is not divided; the message names it.
    """
    sizes = params if isinstance(params, Sizes) else transformer_sizes(params)

    def own(what: str, n: int, ratio: int, scheme: str) -> Int[np.ndarray, " n"]:
        try:
            return unit_groups(n, ratio, scheme)
        except UserError as error:
            raise UserError(f"{what}: {error}") from None

    found = Groups(head_width=sizes.head_width)
    if width > 1:
        shared = sizes.heads // sizes.kv_heads
        keys = own("heads of keys and values", sizes.kv_heads, width, scheme)
        found = found._replace(
            stream=own("width of a token", sizes.width, width, scheme),
            kv_heads=keys,
            heads=(keys[:, None] * shared + np.arange(shared)).reshape(-1),
            mlp=own("hidden units of the MLP", sizes.mlp, width, scheme),
        )
    if depth > 1:
        found = found._replace(layers=own("layers", sizes.depth, depth, layer_scheme))
    return found


def coalesce(params: PyTree, groups: Groups) -> dict[str, Any]:
    """Makes a transformer smaller: a small unit is the mean of its group.

    What units write is averaged, so that what reads them is summed; layers of a group are averaged.

    Args:
      params: Parameters of a `ViT`, `Bert` or `Llama`, and of heads.
      groups: Units that become one, see `groups_of`.

    Returns:
      Parameters of the small model.

    Raises:
      UserError: The groups do not fit; the leaf is named with both shapes.

    Source: Zou et al., arXiv:2404.07999: F_out W F_in and R. The authors' code doubles embeddings
    of BERT and GPT-2 here and halves them in `decoalesce`, which does not keep a pre-norm model's
    function; we do neither.
    """
    return _changed(params, groups, smaller=True)


def decoalesce(params: PyTree, groups: Groups) -> dict[str, Any]:
    """Makes a transformer larger again: units of a group are copies, as are layers.

    In width the function stays: what reads copies has its weights shared out among them. Copied
    layers change it. `coalesce` of the result gives the parameters back.

    Args:
      params: Parameters of the small model.
      groups: Groups of the large model, as `coalesce` had them.

    Returns:
      Parameters of the large model.

    Raises:
      UserError: The groups do not fit; the leaf is named with both shapes.

    Source: Zou et al., arXiv:2404.07999: T and G. That logits of a tied table stay is ours.
    """
    return _changed(params, groups, smaller=False)


def interpolate(before: PyTree, after: PyTree, alpha: ArrayLike) -> PyTree:
    """Mixes parameters from before a smaller model was trained with those that come of it.

    (1 - α) before + α after. Copies of a unit get equal gradients; with α < 1 they part.

    Args:
      before: Parameters when the model was made smaller.
      after: Parameters that `decoalesce` gave.
      alpha: Share α of the latter, from 0 to 1.

    Raises:
      UserError: The share is not between 0 and 1, where it is known outside `jit`, or the trees
        differ; the leaf is named with both shapes.

    Source: Zou et al., arXiv:2404.07999; α is 0.5 or 0.25 there.
    """
    if not isinstance(alpha, jax.core.Tracer):
        share = np.asarray(alpha)
        if not np.all((share >= 0) & (share <= 1)):
            raise UserError(f"alpha={alpha}, expected a share from 0 to 1")
    check_trees(before, {"the large model again": after})
    return jax.tree.map(lambda b, a: ((1 - alpha) * b + alpha * a).astype(b.dtype), before, after)


def v_cycle(levels: Sequence[Level]) -> tuple[Phase, ...]:
    """Lists the trainings of a V-cycle, in their order: down to the smallest level, and up again.

    Args:
      levels: Sizes, the largest first; one alone is an ordinary training.

    Raises:
      UserError: There is no level, a number of steps is negative, or the smallest level has steps
        before it is made smaller.

    Source: Zou et al., arXiv:2404.07999, algorithm 1 and its recursion.
    """
    if not levels:
        raise UserError("levels is empty, expected at least one")
    if any(min(level.before, level.after) < 0 for level in levels) or levels[-1].before:
        steps = [(level.before, level.after) for level in levels]
        raise UserError(f"levels have steps {steps}, expected (at least 0, 0) of the smallest last")
    phases: list[Phase] = []
    for i, level in enumerate(levels):
        if level.before:
            phases.append(Phase(i, _down(levels, i), level.before, level.rate))
    last = len(levels) - 1
    for i in range(last, -1, -1):
        change = "decoalesce" if i < last else _down(levels, i)
        phases.append(Phase(i, change, levels[i].after, levels[i].rate))
    return tuple(phases)


def _down(levels: Sequence[Level], i: int) -> str:
    """How a level begins on the way down."""
    return "coalesce" if i and levels[i - 1].before else "start"


def start_of_phase(
    phase: Phase,
    params: PyTree,
    kept: Mapping[int, PyTree],
    groups: Sequence[Groups],
    *,
    alpha: ArrayLike,
) -> PyTree:
    """Makes the parameters that a phase starts from.

    Args:
      phase: A phase of `v_cycle`.
      params: Parameters at the end of the phase before; not read at a "start".
      kept: Parameters of each level from before it was made smaller.
      groups: Groups from each level to the next.
      alpha: Share of what comes of the smaller level, see `interpolate`.

    Returns:
      Parameters, or None at a "start".
    """
    if phase.change == "start":
        return None
    if phase.change == "coalesce":
        return coalesce(params, groups[phase.level - 1])
    larger = decoalesce(params, groups[phase.level])
    return interpolate(kept[phase.level], larger, alpha) if phase.level in kept else larger


def _changed(params: PyTree, groups: Groups, *, smaller: bool) -> dict[str, Any]:
    maps = {
        "stream": _map(groups.stream, 1, smaller),
        "mlp": _map(groups.mlp, 1, smaller),
        **{name: _map(groups.heads, groups.head_width, smaller) for name in ("query", "heads")},
        **{name: _map(groups.kv_heads, groups.head_width, smaller) for name in ("key", "value")},
    }
    changed = map_width(params, {name: own for name, own in maps.items() if own is not None})
    if groups.layers is None:
        return changed
    one = _indicator(groups.layers)
    mean = (one / one.sum(axis=0)).T
    return map_depth(changed, mean if smaller else one)


def _map(own: Any, block: int, smaller: bool) -> WidthMap | None:
    """Means of groups and sums, or copies and shares."""
    if own is None:
        return None
    one = _indicator(own)
    mean = one / one.sum(axis=0)
    # What is summed on the one side is averaged on the other, so that products keep their size.
    reads, writes = (one, mean) if smaller else (mean.T, one.T)
    return WidthMap(*(of_heads(matrix, block) for matrix in (reads, writes)))


def _indicator(own: Any) -> np.ndarray:
    """[n, m] with 1 where a unit is in a group."""
    numbers = np.asarray(own)
    count = int(numbers.max()) + 1
    if set(numbers.tolist()) != set(range(count)):
        raise UserError(f"groups are {numbers.tolist()}, expected every number below {count}")
    return np.eye(count, dtype=np.float32)[numbers]
