"""Methods of merging by name, with one signature, and the one call that applies any."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from rml.errors import UserError, unknown
from rml.merging.averages import average, task_arithmetic, weighted_average
from rml.merging.dare import dare
from rml.merging.fisher import fisher_merge
from rml.merging.ties import ties
from rml.ops import trees


class Method(NamedTuple):
    """A method of merging.

    Attributes:
      function: `function(base, experts, **options) -> params`, experts stacked on a leading axis.
      static: Options that are no arrays.
      scaled: Whether the result is the base plus `scale` times a vector that `scale` leaves alone.
    """

    function: Callable[..., PyTree]
    static: tuple[str, ...] = ()
    scaled: bool = False


METHODS = {
    "average": Method(average),
    "weighted_average": Method(weighted_average),
    "task_arithmetic": Method(task_arithmetic, scaled=True),
    "ties": Method(ties, ("keep",), scaled=True),
    "dare": Method(dare, scaled=True),
    "fisher": Method(fisher_merge, ("favour_first", "normalise")),
}
"""By name: see the docstring of each function for what it is and what its options are."""


def merge(method: str, base: PyTree, experts: Sequence[PyTree] | PyTree, **options: Any) -> PyTree:
    """Merges models that were fine-tuned from one base, in one compiled call.

        merged = merge("ties", base, [first, second], keep=0.2, scale=1.0)

    Args:
      method: Name of a row of `METHODS`.
      base: Parameters of the base.
      experts: A list or tuple of their parameters, or one tree with all stacked.
      **options: The method's own, such as `scale`, `weights`, or `fishers` as a list or stacked.

    Returns:
      Parameters of one model, of the base's structure and types.

    Raises:
      UserError: The method is unknown, there is no expert, or trees differ in a leaf or a shape.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    given = {"experts": experts, **{k: options[k] for k in ("fishers",) if k in options}}
    stacked = {name: _stacked(base, name, tree) for name, tree in given.items()}
    counts = {name: jax.tree.leaves(tree)[0].shape[0] for name, tree in stacked.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"numbers of {counts} differ, expected one of each for every expert")
    weights = options.get("weights")
    if weights is not None and weights.shape != (counts["experts"],):
        raise UserError(
            f"weights is {list(weights.shape)}, expected [{counts['experts']}]: one for each expert"
        )
    return _compiled(method)(base, stacked.pop("experts"), **options | stacked)


@functools.cache
def _compiled(method: str) -> Callable[..., PyTree]:
    found = METHODS[method]
    return jax.jit(found.function, static_argnames=found.static)


def _stacked(base: PyTree, name: str, trees_: Sequence[PyTree] | PyTree) -> PyTree:
    """One stacked tree, after its leaves are held against the base's."""
    if isinstance(trees_, list | tuple):
        if not trees_:
            raise UserError(f"{name} is empty, expected at least one tree of parameters")
        trees.check_trees(base, {f"{name}[{i}]": tree for i, tree in enumerate(trees_)})
        return trees.stack_trees(trees_)
    leaves = jax.tree.leaves(trees_)
    if not leaves or not leaves[0].ndim or not leaves[0].shape[0]:
        raise UserError(f"{name} is empty, expected at least one tree of parameters")
    trees.check_trees(base, {name: trees_}, lead=leaves[0].shape[0])
    return trees_
