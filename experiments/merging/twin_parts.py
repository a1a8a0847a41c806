"""Parts of twin-merging on a bed: the shared expert, its router, and features by weights."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.merging.bed import Bed
from experiments.merging.concrete_masks import of_tasks, without
from experiments.merging.finetuning import ROWS, features, logits
from experiments.merging.judging import Part, Reading, candidates, of_hits, read
from experiments.merging.networks import seen
from experiments.merging.ranking import scaled
from experiments.merging.tasks import Images, joined
from rml.merging import Twin, modularise, twin_apply, twin_params
from rml.models import LearnedRouter, Router, learn_router, route
from rml.ops import trees


class Merged(NamedTuple):
    """Twin-merged experts of some tasks.

    Attributes:
      bed: The bed of these tasks alone.
      tuned: Task arithmetic of the best scale, which is the shared expert.
      twin: Shared expert and exclusive vectors.
      learned: The router.
    """

    bed: Bed
    tuned: Any
    twin: Twin
    learned: LearnedRouter

    def logits(self, images: Images) -> Float[Array, "b n"]:
        """What the router says of images."""
        found = features(self.bed.module, self.tuned, images.image)
        return Router(len(self.bed.tasks)).apply(self.learned.variables, found)  # type: ignore[return-value]

    def weights(self, images: Images) -> Float[Array, "b n"]:
        """Weights of experts for images."""
        return route(self.logits(images))


def merged(config: Any, bed: Bed, validation: Part, places: list[int]) -> Merged:
    """Merges the experts at some places of a bed; scale and router are those of their tasks."""
    names = list(bed.tasks)
    some = without(bed, tuple(name for i, name in enumerate(names) if i not in places))
    chosen = of_tasks(validation, sorted(places))
    tuned = scaled(config, some, "task_arithmetic", chosen)[0]
    train = joined(some.tasks, "train", config.router.most, config.seed)
    learned = _learned(
        Router(len(some.tasks)), jax.random.key(config.seed),
        features(some.module, tuned, train.image), train.task,
        (features(some.module, tuned, chosen.images.image), chosen.images.task),
        config.router.learning_rate, epochs=config.router.epochs,
        batch_size=config.router.batch_size,
    )  # fmt: skip
    return Merged(some, tuned, parts_of(some, tuned, fraction=config.twin.fraction), learned)


def parts_of(
    bed: Bed, shared: Any, *, compress: str = "svd", fraction: float = 1.0, seed: int = 0,
    excluded: tuple[str, ...] = (),
) -> Twin:  # fmt: skip
    """Exclusive vectors to a shared expert."""
    return _parts(
        bed.base, bed.experts, shared, jax.random.key(seed), compress=compress, fraction=fraction,
        excluded=excluded,
    )  # fmt: skip


def of_weights(bed: Bed, twin: Twin, weights: Any, images: Images, own: Any = None) -> Array:
    """Features of images by weights of each."""
    return _by_weights(bed.module, twin, weights, weights if own is None else own, images.image)


def of_static(bed: Bed, twin: Twin, weights: Array, images: Images) -> Array:
    """Features of images by the same weights of all."""
    return features(bed.module, _moved(twin, weights), images.image)


def best_static(config: Any, bed: Bed, twin: Twin, validation: Part) -> Array:
    """The static weights that are best on validation images.

    They are none at all, which leaves the shared expert, equal weights and draws of
    Dirichlet(1, ..., 1), and all these at half their size.
    """
    drawn = candidates(config.seed, len(bed.tasks), config.search.tries)
    tried = jnp.concatenate([jnp.zeros_like(drawn[:1]), drawn, drawn / 2])
    values = [
        float(read(bed, validation, _moved(twin, weights)).normalised.mean()) for weights in tried
    ]
    return tried[int(np.argmax(values))]


def static_tries(config: Any) -> int:
    """How many static weights `best_static` tries."""
    return 1 + 2 * config.search.tries


def by_task_heads(bed: Bed, part: Part, found: Array) -> Reading:
    """The reading of features by the head of each image's own task."""
    return by_heads_of(bed, part, found, part.images.task)


def by_heads_of(bed: Bed, part: Part, found: Array, tasks: Array) -> Reading:
    """The reading of features by heads of tasks that a router may have chosen."""
    own = jnp.argmax(logits(found, bed.heads[tasks], 1.0), axis=-1)
    right = (own == part.images.label) & (tasks == part.images.task)
    return of_hits(part, np.asarray(right))


def by_one_head(bed: Bed, part: Part, found: Array) -> Reading:
    """The reading of features by one head over the classes of all tasks."""
    classes = bed.heads.shape[1]
    own = jnp.argmax(logits(found, bed.heads.reshape(-1, bed.heads.shape[2]), 1.0), axis=-1)
    return of_hits(part, np.asarray(own == part.images.task * classes + part.images.label))


def accuracy_lost(part: Part, first: Reading, second: Reading) -> np.ndarray:
    """Values of images whose mean is the difference of two readings' mean accuracies over tasks."""
    experts: np.ndarray = part.experts[np.asarray(part.images.task)]
    return (first.normalised - second.normalised) * experts


@functools.partial(jax.jit, static_argnames=("compress", "fraction", "excluded"))
def _parts(base: Any, experts: Any, shared: Any, key: Array, **options: Any) -> Twin:
    return modularise(base, experts, shared=shared, key=key, **options)


@functools.partial(jax.jit, static_argnames="module")
def _by_weights(module: Any, twin: Twin, weights: Array, own: Array, images: Array) -> Array:
    def of_image(given: tuple[Array, ...]) -> Array:
        image, mine, other = (x[None] for x in given)
        found = twin_apply(module, twin.shared, twin.exclusive, mine, seen(image), own=other)
        return found[0]

    return jax.lax.map(of_image, (images, weights, own), batch_size=ROWS)


@jax.jit
def _moved(twin: Twin, weights: Array) -> Any:
    return twin_params(twin.shared, twin.exclusive, weights)


@functools.partial(jax.jit, static_argnames=("router", "epochs", "batch_size"))
def _learned(
    router: Router, key: Array, found: Array, tasks: Array, validation: Any, rate: Any, *,
    epochs: int, batch_size: int,
) -> LearnedRouter:  # fmt: skip
    return learn_router(
        router, key, found, tasks, validation, epochs=epochs, batch_size=batch_size,
        learning_rate=rate,
    )  # fmt: skip


def bytes_of(twin: Twin, *, sparse: bool = False) -> int:
    """Bytes of a shared expert and exclusive vectors.

    Args:
      twin: Shared expert and vectors.
      sparse: Whether the vectors are masked, so that of each entry a bit says if it is stored.
    """
    if not sparse:
        return trees.count_bytes(twin)
    leaves = jax.tree.leaves(twin.exclusive)
    stored = sum(int(jnp.count_nonzero(x)) * x.dtype.itemsize for x in leaves)
    return trees.count_bytes(twin.shared) + stored + sum(-(-x.size // 8) for x in leaves)
