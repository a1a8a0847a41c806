"""Accuracy of few-shot methods over thousands of episodes in one call."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from rml.evaluation.checks import require_finite
from rml.fewshot.episodes import ClassIndex, class_index, require_classes, sample_episode
from rml.training.mesh import BATCH_AXES

Method = Callable[..., Array]


def evaluate_episodes(
    method: Method,
    features: Float[Array, "n d"],
    labels: Int[Array, " n"] | ClassIndex,
    key: Key[Array, ""],
    *,
    episodes: int,
    ways: int,
    shots: int,
    queries: int,
    concentration: float | None = None,
    memory_bytes: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " e"]:
    """The accuracy of a method in each of many random episodes.

    Episodes are drawn and solved in one jitted call, as many at a time as `memory_bytes` allows;
    neither that number nor the mesh changes which episodes are drawn.

    Args:
      method: `method(support, support_labels, query, *, num_classes)` to probabilities; a
        function of this package or a `functools.partial` of one. Compiled once for each object.
      features: Rows from which episodes are drawn.
      labels: Their classes, or the `class_index` of them.
      key: Random key.
      episodes: Number of episodes e.
      ways: Classes in an episode.
      shots: Support rows of a class.
      queries: Query rows of a class.
      concentration: For queries of unequal class sizes, see `sample_episodes`.
      memory_bytes: What the episodes solved at one time may take, roughly; by default what a CPU
        keeps in its caches, or 1 GiB elsewhere.
      mesh: Episodes are shared out over its data axes; features are on every device.

    Returns:
      Accuracies, shares of the queries.

    Raises:
      ValueError: If features are not finite or as many as labels.
      UserError: If there are too few classes that are large enough.
    """
    return _evaluate(
        _Fixed(method), (), features, labels, key, episodes=episodes, ways=ways, shots=shots,
        queries=queries, concentration=concentration, memory_bytes=memory_bytes, mesh=mesh,
    )  # fmt: skip


def sweep(
    method_of: Callable[[PyTree], Method],
    grid: PyTree[Array],
    features: Float[Array, "n d"],
    labels: Int[Array, " n"] | ClassIndex,
    key: Key[Array, ""],
    *,
    episodes: int,
    ways: int,
    shots: int,
    queries: int,
    concentration: float | None = None,
    memory_bytes: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " g"]:
    """The mean accuracy of a method for each of many hyperparameters, over the same episodes.

    All are computed in one call, in which a hyperparameter is an array: what does not depend on
    it, such as an episode's graph, is computed once.

    Args:
      method_of: Maps one entry of `grid` to a method.
      grid: Hyperparameters, arrays of one leading length g.
      features: Rows from which episodes are drawn.
      labels: Their classes, or the `class_index` of them.
      key: Random key.
      episodes: Number of episodes.
      ways: Classes in an episode.
      shots: Support rows of a class.
      queries: Query rows of a class.
      concentration: For queries of unequal class sizes, see `sample_episodes`.
      memory_bytes: What the episodes solved at one time may take, roughly; by default what a CPU
        keeps in its caches, or 1 GiB elsewhere.
      mesh: Episodes are shared out over its data axes.

    Returns:
      Mean accuracy of each entry.

    Raises:
      ValueError: As `evaluate_episodes`.
    """
    accuracies = _evaluate(
        method_of, grid, features, labels, key, episodes=episodes, ways=ways, shots=shots,
        queries=queries, concentration=concentration, memory_bytes=memory_bytes, mesh=mesh,
    )  # fmt: skip
    return jnp.mean(accuracies, axis=0)


def mean_and_interval(accuracies: Float[Array, " e"]) -> tuple[float, float]:
    """The mean over episodes, and half the width of its 95% interval, 1.96 std / √e.

    The deviation is that of the sample (divisor e - 1); for a single episode the interval is
    infinite.
    """
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
    labels: Array | ClassIndex,
    key: Array,
    *,
    episodes: int,
    ways: int,
    shots: int,
    queries: int,
    concentration: float | None,
    memory_bytes: int | None,
    mesh: Mesh | None,
) -> Array:
    require_finite("features", features)
    if not isinstance(labels, ClassIndex):
        if labels.shape[0] != features.shape[0]:
            raise ValueError(
                f"features and labels must have as many rows, got {features.shape[0]} and "
                f"{labels.shape[0]}"
            )
        labels = class_index(labels)
    require_classes(labels, ways=ways, shots=shots, queries=queries)
    if memory_bytes is None:
        memory_bytes = 2**24 if jax.default_backend() == "cpu" else 2**30
    # An episode holds its rows twice and a few square matrices and assignments.
    leaves = jax.tree.leaves(grid)
    rows, entries = ways * (shots + queries), leaves[0].shape[0] if leaves else 1
    size = features.dtype.itemsize * rows * (2 * features.shape[1] + (4 + entries) * rows)
    devices = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    # Whole chunks on every device; what is added to fill them is dropped.
    share = -(-episodes // devices)
    chunk = -(-share // -(-share // max(1, memory_bytes // size)))
    padded = devices * chunk * -(-share // chunk)
    keys = jax.random.split(key, episodes)
    keys = jnp.concatenate([keys, keys[jnp.arange(padded - episodes) % episodes]])
    accuracies = _accuracies(
        grid, features, labels, keys, method_of=method_of, ways=ways, shots=shots,
        queries=queries, concentration=concentration, chunk=chunk, mesh=mesh,
    )  # fmt: skip
    return accuracies[:episodes]


@partial(
    jax.jit,
    static_argnames=("method_of", "ways", "shots", "queries", "concentration", "chunk", "mesh"),
)
def _accuracies(
    grid: PyTree,
    features: Array,
    index: ClassIndex,
    keys: Array,
    *,
    method_of: Callable[[PyTree], Method],
    ways: int,
    shots: int,
    queries: int,
    concentration: float | None,
    chunk: int,
    mesh: Mesh | None = None,
) -> Array:
    def accuracy(grid: PyTree, features: Array, index: ClassIndex, key: Array) -> Array:
        episode = sample_episode(
            key, index, ways=ways, shots=shots, queries=queries, concentration=concentration
        )
        support, query = features[episode.support], features[episode.query]

        def with_(hyperparameters: PyTree) -> Array:
            method = method_of(hyperparameters)
            scores = method(support, episode.support_labels, query, num_classes=ways)
            return jnp.mean(jnp.argmax(scores, axis=1) == episode.query_labels)

        return jax.vmap(with_)(grid) if jax.tree.leaves(grid) else with_(grid)

    def all_(grid: PyTree, features: Array, index: ClassIndex, keys: Array) -> Array:
        solve = jax.vmap(partial(accuracy, grid, features, index))
        chunks = jax.lax.map(solve, keys.reshape(-1, chunk))
        return chunks.reshape(-1, *chunks.shape[2:])

    if mesh is not None:
        everywhere, shared = PartitionSpec(), PartitionSpec(BATCH_AXES)
        all_ = jax.shard_map(
            all_,
            mesh=mesh,
            in_specs=(everywhere, everywhere, everywhere, shared),
            out_specs=shared,
            check_vma=False,
        )
    return all_(grid, features, index, keys)
