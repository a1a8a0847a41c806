"""Accuracy of few-shot methods over thousands of episodes in one call."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree

from rml.errors import UserError
from rml.evaluation.checks import require_finite
from rml.fewshot.episodes import Episodes
from rml.ops.shapes import check_shapes
from rml.training.mesh import BATCH_AXES
from rml.training.processes import everywhere, local_copy

Method = Callable[..., Array]


def evaluate_episodes(
    method: Method,
    features: Float[Array, "n d"],
    episodes: Episodes,
    *,
    ways: int,
    memory_bytes: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " e"]:
    """Computes the accuracy of a method in each of many episodes.

    All are solved in one jitted call, as many at a time as `memory_bytes` allows.

    Args:
      method: `method(support, support_labels, query, *, num_classes)` to probabilities; a
        function of this package or a `functools.partial` of one. Compiled once for each object.
      features: Rows of which the episodes are made.
      episodes: Drawn by `sample_episodes`, the same ones for all methods that are compared.
      ways: Classes in an episode.
      memory_bytes: What the episodes solved at one time may take, roughly; by default 1 GiB, on a
        CPU 16 MiB and no more than four episodes take, which its caches keep.
      mesh: Episodes are shared out over its data axes; features are on every device.

    Returns:
      Accuracies, shares of the queries.

    Raises:
      ValueError: If features are not finite.
      UserError: If episodes name rows or classes that there are not, or the method's scores are not
        finite.
    """
    found = _evaluate(
        _Fixed(method), (), features, episodes, ways=ways, memory_bytes=memory_bytes, mesh=mesh
    )
    require_accuracies(found, method, {})
    return found


def require_accuracies(
    accuracies: Float[Array | np.ndarray, " e"], method: Method, options: Mapping[str, Any]
) -> None:
    """Raises an error that names a method and its options where accuracies of it are NaN.

    Inside `jit` it is silent.

    Args:
      accuracies: Accuracy in each episode.
      method: The method.
      options: Options that are no part of `method`.

    Raises:
      UserError: The method's scores are not finite in some episodes.
    """
    if isinstance(accuracies, jax.core.Tracer) or not np.isnan(accuracies).any():
        return
    function: Any = method
    if isinstance(function, partial):
        function, options = function.func, {**function.keywords, **options}
    short = {name: one for name, one in options.items() if getattr(one, "shape", ()) == ()}
    given = ", ".join(f"{name}={one!r}" for name, one in short.items())
    raise UserError(
        f"scores of {getattr(function, '__name__', function)}({given}) are not finite in "
        f"{np.isnan(accuracies).sum()} of {len(accuracies)} episodes, expected probabilities"
    )


def sweep(
    method_of: Callable[[PyTree], Method],
    grid: PyTree[Array],
    features: Float[Array, "n d"],
    episodes: Episodes,
    *,
    ways: int,
    memory_bytes: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "e ..."]:
    """Computes a method's accuracy for each of many hyperparameters in each of many episodes.

    All are computed in one call, in which a hyperparameter is an array: what does not depend on
    it, such as an episode's graph, is computed once.

    Args:
      method_of: Maps one entry of `grid` to a method. Compiled once for each object.
      grid: Hyperparameters, arrays of one leading length g.
      features: Rows of which the episodes are made.
      episodes: Drawn by `sample_episodes`.
      ways: Classes in an episode.
      memory_bytes: See `evaluate_episodes`.
      mesh: See `evaluate_episodes`.

    Returns:
      Accuracies [e, g], shares of the queries; [e] where `grid` has no array. NaN where a method's
      scores are not finite.

    Raises:
      ValueError: As `evaluate_episodes`.
      UserError: As `evaluate_episodes`.
    """
    return _evaluate(
        method_of, grid, features, episodes, ways=ways, memory_bytes=memory_bytes, mesh=mesh
    )


def mean_and_interval(accuracies: Float[Array | np.ndarray, " e"]) -> tuple[float, float]:
    """Computes the mean over episodes, and half the width of its 95% interval, 1.96 std / √e.

    The deviation is that of the sample (divisor e - 1); for a single episode the interval is
    infinite.

    Raises:
      ValueError: If there is no episode.
    """
    check_shapes(accuracies=(accuracies, "n"))
    values = np.asarray(accuracies, np.float64)
    if values.size < 2:
        return float(values.mean()), float("inf")
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(values.size))


class _Fixed:
    """A method without hyperparameters; equal to another of the same method."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def __call__(self, _: Any) -> Method:
        return self.method

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Fixed) and self.method is other.method

    def __hash__(self) -> int:
        return id(self.method)


def _evaluate(
    method_of: Callable[[PyTree], Method],
    grid: PyTree,
    features: Array,
    episodes: Episodes,
    *,
    ways: int,
    memory_bytes: int | None,
    mesh: Mesh | None,
) -> Array:
    require_finite("features", features)
    _require_rows(episodes, rows=features.shape[0], ways=ways)
    # An episode holds its rows twice and a few square matrices and assignments.
    leaves = jax.tree.leaves(grid)
    count, support = episodes.support.shape
    rows, entries = support + episodes.query.shape[1], leaves[0].shape[0] if leaves else 1
    bytes_each = jnp.promote_types(features.dtype, jnp.float32).itemsize  # methods widen them
    size = bytes_each * rows * (2 * features.shape[1] + (4 + entries) * rows)
    if memory_bytes is None:
        memory_bytes = min(2**24, 4 * size) if jax.default_backend() == "cpu" else 2**30
    devices = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    # Whole chunks on every device; what is added to fill them is dropped.
    share = -(-count // devices)
    chunk = -(-share // -(-share // max(1, memory_bytes // size)))
    padded = devices * chunk * -(-share // chunk)
    fill = jnp.arange(padded) % count
    filled = jax.tree.map(lambda part: part[fill], episodes) if padded > count else episodes
    if mesh is not None:
        grid, features, filled = everywhere((grid, features, filled), mesh)
    accuracies = _accuracies(
        grid, features, filled, method_of=method_of, ways=ways, chunk=chunk, mesh=mesh
    )
    return local_copy(accuracies)[:count]


def _require_rows(episodes: Episodes, *, rows: int, ways: int) -> None:
    if episodes.support.ndim != 2 or not episodes.support.shape[0]:
        raise UserError(
            "episodes must be drawn by `sample_episodes`, one a row, got support of shape "
            f"{episodes.support.shape}"
        )
    if any(isinstance(part, jax.core.Tracer) for part in episodes):
        return
    for row in _ends(episodes.support, episodes.query):
        if not 0 <= row < rows:
            raise UserError(f"episodes name row {row}, expected 0 to {rows - 1}: features' rows")
    classes = 1 + _ends(episodes.support_labels)[1]
    if classes != ways:
        raise UserError(f"ways is {ways}, but the episodes have {classes} classes")
    for label in _ends(episodes.support_labels, episodes.query_labels):
        if not 0 <= label < ways:
            raise UserError(f"episodes name class {label}, expected 0 to {ways - 1}")


def _ends(*parts: Array) -> tuple[int, int]:
    """The least and the largest number of arrays."""
    return min(int(jnp.min(part)) for part in parts), max(int(jnp.max(part)) for part in parts)


@partial(jax.jit, static_argnames=("method_of", "ways", "chunk", "mesh"))
def _accuracies(
    grid: PyTree,
    features: Array,
    episodes: Episodes,
    *,
    method_of: Callable[[PyTree], Method],
    ways: int,
    chunk: int,
    mesh: Mesh | None = None,
) -> Array:
    def accuracy(grid: PyTree, features: Array, episode: Episodes) -> Array:
        # Read at once: that a method joins the parts again is then no copy.
        rows = features[jnp.concatenate([episode.support, episode.query])]
        support, query = jnp.split(rows, [episode.support.shape[0]])

        def under(hyperparameters: PyTree) -> Array:
            method = method_of(hyperparameters)
            scores = method(support, episode.support_labels, query, num_classes=ways)
            share = jnp.mean(jnp.argmax(scores, axis=1) == episode.query_labels)
            # The largest of scores that are no numbers would be that of class 0.
            return jnp.where(jnp.all(jnp.isfinite(scores)), share, jnp.nan)

        return jax.vmap(under)(grid) if jax.tree.leaves(grid) else under(grid)

    def all_(grid: PyTree, features: Array, episodes: Episodes) -> Array:
        solve = jax.vmap(partial(accuracy, grid, features))
        chunks = jax.tree.map(lambda part: part.reshape(-1, chunk, part.shape[1]), episodes)
        found = jax.lax.map(solve, chunks)
        return found.reshape(-1, *found.shape[2:])

    if mesh is not None:
        whole, shared = PartitionSpec(), PartitionSpec(BATCH_AXES)
        all_ = jax.shard_map(
            all_,
            mesh=mesh,
            in_specs=(whole, whole, shared),
            out_specs=shared,
            check_vma=False,
        )
    return all_(grid, features, episodes)
