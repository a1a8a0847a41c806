"""Class vectors that stay on the sphere."""

from typing import Any

import jax
import optax
from jaxtyping import PyTree

from rml.ops.similarity import normalize


def unit_rows(name: str = "prototypes") -> optax.GradientTransformation:
    """Makes rows of some parameters unit after every update; it stands last in a chain.

    Where logits normalise class vectors it changes no loss, but the length of the steps that
    follow: a gradient is inversely proportional to the length of its row.

    Args:
      name: Last name of the parameters.

    Returns:
      The transformation, which needs the parameters at every update.

    Source: the constraint on the class vectors in the public code of Pereira et al.,
    arXiv:2102.03243.
    """

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        def of_leaf(path: tuple[Any, ...], step: Any, param: Any) -> Any:
            if getattr(path[-1], "key", None) != name:
                return step
            return (normalize(param + step) - param).astype(step.dtype)

        return jax.tree_util.tree_map_with_path(of_leaf, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
