"""Methods of merging by name, with one signature, and the one call that applies any."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from rml.errors import UserError, unknown
from rml.merging.averages import (
    array_of_weights,
    average,
    check_integers,
    task_arithmetic,
    weighted_average,
)
from rml.merging.dare import check_rate, dare
from rml.merging.fisher import fisher_merge
from rml.merging.regmean import regmean, stacked_grams
from rml.merging.ties import ties
from rml.ops import trees
from rml.ops.shapes import check_finite


class Method(NamedTuple):
    """A method of merging.

    Attributes:
      function: `function(base, experts, **options) -> params`, experts stacked on a leading axis.
      static: Options that are no arrays.
      scaled: Whether the result is the base plus `scale` times a vector that `scale` leaves alone.
        Others take nothing but types from the base.
    """

    function: Callable[..., PyTree]
    static: tuple[str, ...] = ()
    scaled: bool = False


METHODS = {
    "average": Method(average),
    "weighted_average": Method(weighted_average),
    "task_arithmetic": Method(task_arithmetic, scaled=True),
    "ties": Method(ties, ("keep", "disjoint"), scaled=True),
    "dare": Method(dare, scaled=True),
    "fisher": Method(fisher_merge, ("exclude", "favour_first", "normalise")),
    "regmean": Method(regmean, ("alpha", "averaged", "ridge")),
}
"""By name: see the docstring of each function for what it is and what its options are."""
VARIANCES = ("var", "running_var")
"""Last names of leaves that hold running variances, in Flax and in PyTorch."""


def merge(
    method: str, base: PyTree, experts: Sequence[PyTree] | PyTree, *, farthest: float = 1.0,
    **options: Any,
) -> PyTree:  # fmt: skip
    """Merges models that were fine-tuned from one base, in one compiled call.

        merged = merge("ties", base, [first, second], keep=0.2, scale=1.0)

    Args:
      method: Name of a row of `METHODS`.
      base: Parameters of the base.
      experts: A list or tuple of their parameters, or one tree with all stacked.
      farthest: Largest distance of an expert from the base, as a share of the base's norm, for
        methods that add to the base; see `rml.ops.trees.check_values`.
      **options: The method's own, such as `scale`, `weights`, or `fishers` or `grams` as a list or
        stacked.

    Returns:
      Parameters of one model, of the base's structure and types.

    Raises:
      UserError: The method is unknown; there is no expert, no floating-point leaf or, for
        "regmean", no matrix; trees differ in a leaf or a shape, hold NaN or infinite values;
        experts differ in a leaf of integers or truth values; an expert is too far from the base;
        weights are below 0, infinite or all 0; a rate of dropping is not in [0, 1); or a running
        variance would become negative. Values of traced trees are not looked at.
      ValueError: A scale is not finite.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    given = {"experts": experts, **{k: options[k] for k in ("fishers",) if k in options}}
    stacked = {name: _stacked(base, name, tree) for name, tree in given.items()}
    check_integers(base, stacked["experts"])
    if "grams" in options:
        stacked["grams"] = stacked_grams(base, options["grams"], options.get("averaged"))
    counts = {name: jax.tree.leaves(tree)[0].shape[0] for name, tree in stacked.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"numbers of {counts} differ, expected one of each for every expert")
    if options.get("weights") is not None:
        options["weights"] = array_of_weights(options["weights"], counts["experts"])
    if "rate" in options:
        check_rate(options["rate"])
    check_finite(scale=options.get("scale"))  # to a compiled method it is traced
    limit = farthest if METHODS[method].scaled else math.inf
    trees.check_fine_tuned(base, stacked, farthest=limit)
    given = stacked.pop("experts")
    merged = compiled(method)(base, given, **options | stacked)
    leaves = jax.tree_util.tree_leaves_with_path(merged)
    for (path, leaf), own in zip(leaves, jax.tree.leaves(given), strict=True):
        check_variance(trees.leaf_name(path), leaf, own)
    return merged


def check_variance(name: str, merged: Array | np.ndarray, experts: Array | np.ndarray) -> None:
    """Raises `UserError` for a running variance that merging made negative.

    It is known by its last name, see `VARIANCES`, and by experts that are nowhere below 0. Traced
    values are not looked at.
    """
    if name.rpartition(".")[2] not in VARIANCES or isinstance(merged, jax.core.Tracer):
        return
    if merged.min(initial=0) < 0 <= experts.min(initial=0):
        raise UserError(
            f"leaf {name!r} is a variance and as low as {float(merged.min()):.3g} once merged, "
            "expected at least 0: running statistics are averaged, as by the method 'average', or "
            "estimated anew"
        )


@functools.cache
def compiled(method: str) -> Callable[..., PyTree]:
    """Compiles the function of a method as one program, without the checks of `merge`."""
    found = METHODS[method]
    return jax.jit(found.function, static_argnames=found.static)


def _stacked(base: PyTree, name: str, trees_: Sequence[PyTree] | PyTree) -> PyTree:
    """One stacked tree, after its leaves are held against the base's."""
    if isinstance(trees_, list | tuple):
        if not trees_:
            raise UserError(f"{name} is empty, expected at least one tree of parameters")
        trees.check_trees(base, {f"{name}[{i}]": tree for i, tree in enumerate(trees_)})
        return trees.stack_trees(trees_)
    trees.check_stacked(base, name, trees_)
    return trees_
