"""Episodes: few-shot tasks drawn from labelled rows."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rml.errors import UserError


class Episodes(NamedTuple):
    """Few-shot tasks, as row numbers into a feature matrix.

    Attributes:
      support: Rows of the support, class by class.
      support_labels: Their classes within the task.
      query: Rows of the queries, class by class, none of them in the support.
      query_labels: Their classes within the task.
    """

    support: Int[Array, "*e s"]
    support_labels: Int[Array, "*e s"]
    query: Int[Array, "*e q"]
    query_labels: Int[Array, "*e q"]


class Setting(NamedTuple):
    """What kind of episodes, as arguments of `sample_episodes`.

    Attributes:
      ways: Classes in an episode.
      shots: Support rows of a class.
      queries: Query rows of a class, or their mean over the classes.
      concentration: Concentration of the Dirichlet distribution of the queries' classes; None for
        balanced queries.
    """

    ways: int
    shots: int
    queries: int
    concentration: float | None = None

    @property
    def name(self) -> str:
        """Name for metrics, such as `5way_1shot` or `5way_1shot_imbalanced`."""
        balance = "" if self.concentration is None else "_imbalanced"
        return f"{self.ways}way_{self.shots}shot{balance}"

    @property
    def title(self) -> str:
        """Name for figures."""
        balance = "" if self.concentration is None else ", imbalanced"
        return f"{self.ways}-way {self.shots}-shot{balance}"


class ClassIndex(NamedTuple):
    """Where the rows of every class are.

    Attributes:
      rows: Row numbers of each class, padded with zeros.
      counts: Rows of each class.
    """

    rows: Int[Array, "c m"]
    counts: Int[Array, " c"]


def class_index(
    labels: Int[Array | np.ndarray, " n"], num_classes: int | None = None
) -> ClassIndex:
    """Prepares labels for drawing episodes under `jit`; computed on the host.

    Args:
      labels: Class of every row, in [0, num_classes).
      num_classes: Number of classes; the highest label and one by default.

    Returns:
      The index.

    Raises:
      UserError: If there are no labels, they are no integers, or one is out of range.
    """
    host = np.asarray(labels)
    if host.size == 0:
        raise UserError("labels must not be empty: episodes are drawn from them")
    if host.ndim != 1 or not np.issubdtype(host.dtype, np.integer):
        raise UserError(
            f"labels are {host.dtype} of shape {host.shape}, expected integers, one a row"
        )
    num_classes = int(host.max()) + 1 if num_classes is None else num_classes
    if host.min() < 0 or host.max() >= num_classes:
        raise UserError(
            f"labels must lie between 0 and {num_classes - 1}, got values from {host.min()} "
            f"to {host.max()}"
        )
    counts = np.bincount(host, minlength=num_classes)
    order = np.argsort(host, kind="stable")
    rows = np.zeros((num_classes, counts.max()), np.int32)
    rows[np.arange(counts.max()) < counts[:, None]] = order
    return ClassIndex(jnp.asarray(rows), jnp.asarray(counts, jnp.int32))


def draw_without_replacement(
    uniforms: Float[Array, " draws"], size: Int[Array, ""]
) -> Int[Array, " draws"]:
    """Draws distinct numbers below `size`, in random order; what goes beyond `size` is arbitrary.

    A Fisher-Yates shuffle that is written down only where it was touched, so the cost does not
    depend on `size`.

    Args:
      uniforms: Random numbers in [0, 1), one for each draw.
      size: How many numbers there are; may be traced.

    Returns:
      The numbers.
    """
    draws = uniforms.shape[0]
    place = jnp.arange(draws)
    room = jnp.maximum(size - place, 1)
    picks = place + jnp.minimum((uniforms * room).astype(int), room - 1)

    def swap(moved: Array, i: Array) -> tuple[Array, Array]:
        def at(position: Array) -> Array:
            """What lies at a position: what was moved there last, or its own number."""
            last = jnp.max(jnp.where((picks == position) & (place < i), place, -1))
            return jnp.where(last < 0, position, moved[last])

        return moved.at[i].set(at(i)), at(picks[i])

    return jax.lax.scan(swap, jnp.zeros(draws, picks.dtype), place)[1]


def dirichlet_counts(
    key: Key[Array, ""],
    room: Int[Array, " c"],
    *,
    total: int,
    concentration: float | Float[Array, ""],
) -> Int[Array, " c"]:
    """Splits `total` over classes in proportions drawn from a symmetric Dirichlet distribution.

    One at a time goes to the class that is furthest below its share and has room left.

    Args:
      key: Random key.
      room: The most that each class can take.
      total: How many to split.
      concentration: Concentration of the distribution; small is uneven.

    Returns:
      Counts that sum to `total` if there is room for it.
    """
    shares = total * jax.random.dirichlet(key, jnp.full(room.shape, concentration))

    def give(_: Array, counts: Array) -> Array:
        lack = jnp.where(counts < room, shares - counts, -jnp.inf)
        return counts.at[jnp.argmax(lack)].add(1)

    return jax.lax.fori_loop(0, total, give, jnp.zeros_like(room))


def sample_episode(
    key: Key[Array, ""],
    index: ClassIndex,
    *,
    ways: int,
    shots: int,
    queries: int,
    concentration: float | None = None,
) -> Episodes:
    """Draws one episode; see `sample_episodes`, which also checks the sizes."""
    draw_key, count_key = (key, key) if concentration is None else jax.random.split(key)
    total = ways * queries
    most = queries if concentration is None else min(total, index.rows.shape[1] - shots)
    # One call for all draws: a random number generator is long to compile.
    uniforms = jax.random.uniform(draw_key, (ways, 1 + shots + most))
    usable = index.counts >= shots + queries
    order = jnp.argsort(~usable)  # usable ones first
    classes = order[draw_without_replacement(uniforms[:, 0], jnp.sum(usable))]
    sizes = index.counts[classes]
    if concentration is None:
        counts = jnp.full(ways, queries)
    else:
        counts = dirichlet_counts(
            count_key, sizes - shots, total=total, concentration=concentration
        )
    drawn = jax.vmap(draw_without_replacement)(uniforms[:, 1:], sizes)
    rows = jnp.take_along_axis(index.rows[classes], drawn, axis=1)
    ends = jnp.cumsum(counts)
    query_labels = jnp.searchsorted(ends, jnp.arange(total), side="right")
    place = jnp.arange(total) - (ends - counts)[query_labels]
    return Episodes(
        support=rows[:, :shots].reshape(-1),
        support_labels=jnp.repeat(jnp.arange(ways), shots),
        query=rows[query_labels, shots + place],
        query_labels=query_labels.astype(int),
    )


def require_classes(index: ClassIndex, *, ways: int, shots: int, queries: int) -> None:
    """Raises `UserError` unless enough classes are large enough; unchecked in `jit`."""
    if min(ways, shots, queries) < 1:
        raise UserError(
            f"ways, shots and queries must be at least 1, got {ways}, {shots} and {queries}"
        )
    if ways > index.counts.shape[0]:
        raise UserError(f"{ways} ways need as many classes, got {index.counts.shape[0]}")
    if isinstance(index.counts, jax.core.Tracer):
        return
    sizes = np.sort(np.asarray(index.counts))[::-1]
    if sizes[ways - 1] < shots + queries:
        shown = ", ".join(str(size) for size in sizes[:10]) + (", ..." if sizes.size > 10 else "")
        raise UserError(
            f"{ways} ways need {ways} classes of at least {shots} + {queries} examples (shots and "
            f"queries), got {np.sum(sizes >= shots + queries)}; the class sizes are {shown}"
        )


def sample_episodes(
    key: Key[Array, ""],
    labels: Int[Array | np.ndarray, " n"] | ClassIndex,
    *,
    episodes: int,
    ways: int,
    shots: int,
    queries: int,
    num_classes: int | None = None,
    concentration: float | None = None,
) -> Episodes:
    """Draws few-shot tasks, each by its own key.

    Classes are drawn evenly among those with at least `shots + queries` examples; smaller ones
    never occur, as the field's samplers either do or require. No row occurs twice in a task.

    Args:
      key: Random key.
      labels: Class of every row, or their `class_index`, with which this function can be jitted.
      episodes: Number of tasks e.
      ways: Classes in a task.
      shots: Support rows of a class.
      queries: Query rows of a class; with `concentration`, their mean over the classes.
      num_classes: Number of classes in `labels`; the highest label and one by default.
      concentration: Spread the task's `ways * queries` queries over its classes in proportions
        drawn from a symmetric Dirichlet distribution, by default evenly. A class that is too small
        for its share gives what it has and the others take the rest.

    Returns:
      The tasks.

    Raises:
      UserError: If there are too few classes of that size, a label is no integer or out of range,
        `episodes` is below 1, or `concentration` is not above 0.

    Source: for the imbalanced queries Veilleux et al., arXiv:2204.11181 (concentration 2); its
      code rounds shares a little differently.
    """
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, got {episodes}")
    if concentration is not None and not concentration > 0:
        raise UserError(f"concentration must be above 0, got {concentration}")
    index = labels if isinstance(labels, ClassIndex) else class_index(labels, num_classes)
    require_classes(index, ways=ways, shots=shots, queries=queries)
    return _sample_all(
        jax.random.split(key, episodes), index, ways=ways, shots=shots, queries=queries,
        concentration=concentration,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("ways", "shots", "queries", "concentration"))
def _sample_all(keys: Array, index: ClassIndex, **sizes: Any) -> Episodes:
    return jax.vmap(lambda key: sample_episode(key, index, **sizes))(keys)
