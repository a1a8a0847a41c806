"""How merged models are judged: mean normalised accuracy over tasks, options by validation."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.common.claims import with_bounds
from experiments.merging.bed import Bed, take
from experiments.merging.finetuning import hits
from experiments.merging.tasks import Images
from rml.merging import dirichlet_weights, fisher_merge, search_weights
from rml.ops import t_interval, trees


class Part(NamedTuple):
    """Images that models are judged on.

    Attributes:
      images: Images of all tasks.
      weights: What a right answer to each counts, [n]: the sum over right ones is the mean over
        tasks of a model's accuracy over that of the task's expert.
      experts: Accuracy of each task's expert on its own images.
    """

    images: Images
    weights: Array
    experts: np.ndarray


class Reading(NamedTuple):
    """What a model made of a part's images.

    Attributes:
      normalised: Value of each image [n], whose mean is the mean normalised accuracy.
      accuracy: Accuracy on each task.
    """

    normalised: np.ndarray
    accuracy: np.ndarray


def judged(bed: Bed, part: str) -> Part:
    """The images of a part of a bed, and what each counts."""
    images, count = bed.images(part), len(bed.tasks)
    task = np.asarray(images.task)
    right = np.zeros(len(task))
    for i in range(count):
        own = hits(bed.module, take(bed.experts, i), bed.heads, images,
                   bed.config.head.scale)  # fmt: skip
        right[task == i] = np.asarray(own)[task == i]
    sizes = np.bincount(task, minlength=count)
    experts = np.bincount(task, right, minlength=count) / sizes
    weights = 1 / (count * sizes * np.maximum(experts, 1e-9))
    return Part(images, jnp.asarray(weights[task], jnp.float32), experts)


def read(bed: Bed, part: Part, params: Any) -> Reading:
    """Judges one model on all tasks."""
    found = hits(bed.module, params, bed.heads, part.images, bed.config.head.scale)
    return of_hits(part, np.asarray(found))


def over_targets(each: Sequence[np.ndarray]) -> np.ndarray:
    """Values of images of several targets, so that their mean counts every target equally."""
    total = sum(len(own) for own in each)
    return np.concatenate([own * total / (len(each) * len(own)) for own in each])


def averaged(readings: Sequence[Reading]) -> Reading:
    """The mean of several readings of the same images, which are one sample of images."""
    return Reading(*(np.mean(own, axis=0) for own in zip(*readings, strict=True)))


def halves(part: Part) -> tuple[Part, Part]:
    """A random half of each task's images, such as to learn from, and the others.

    Data sets are stored class by class in turns, so that every second image would be every second
    class.
    """
    task, rng = np.asarray(part.images.task), np.random.default_rng(0)
    first = np.zeros(len(task), bool)
    for i in np.unique(task):
        own = np.flatnonzero(task == i)
        first[rng.permutation(own)[: -(-len(own) // 2)]] = True
    return _of_rows(part, np.flatnonzero(first)), _of_rows(part, np.flatnonzero(~first))


def _of_rows(part: Part, rows: np.ndarray) -> Part:
    images = jax.tree.map(lambda x: x[rows], part.images)
    before, task = np.bincount(np.asarray(part.images.task)), np.asarray(images.task)
    share = before[task] / np.bincount(task)[task]
    return Part(images, part.weights[rows] * jnp.asarray(share, jnp.float32), part.experts)


def best(
    bed: Bed, chosen: Part, tries: Iterable[Any], learn: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """What was learned by the try that is best on images with labels: the model and all.

    Args:
      bed: The bed, whose heads judge.
      chosen: Images that the try is chosen on.
      tries: What is tried, such as rates.
      learn: Function from a try to a model, or to a tuple that begins with it.
    """
    found = []
    for one in tries:
        own = learn(one)
        model = own[0] if isinstance(own, tuple) else own
        found.append((float(read(bed, chosen, model).normalised.mean()), model, own))
    _, model, own = max(found, key=lambda own: own[0])
    return model, own


def differences(
    setting: str, found: Mapping[str, list[Reading]], pairs: Mapping[str, tuple[str, str]]
) -> dict[str, float]:
    """Mean normalised accuracies, and differences with their intervals over test images.

    Args:
      setting: What names of metrics begin with.
      found: Readings of one bed of tasks, or of several targets, which count equally, by name.
      pairs: Names of the two that are compared, by metric.
    """
    metrics = {
        f"{setting}_{name}": float(np.mean([one.normalised.mean() for one in own]))
        for name, own in found.items()
    }
    for metric, (first, second) in pairs.items():
        each = [
            a.normalised - b.normalised for a, b in zip(found[first], found[second], strict=True)
        ]
        metrics |= with_bounds(metric, t_interval(over_targets(each)))
    return metrics


def of_hits(part: Part, found: np.ndarray) -> Reading:
    """The reading of which images were named rightly."""
    task = np.asarray(part.images.task)
    accuracy = np.bincount(task, found) / np.bincount(task)
    return Reading(len(found) * np.asarray(part.weights, float) * found, accuracy)


@functools.partial(jax.jit, static_argnames="module")
def search_scale(
    module: Any, base: Any, vector: Any, scales: Array, heads: Array, part: Part, temperature: Any
) -> tuple[Any, Array]:
    """The model and score of the best multiple of a vector that is added to the base."""

    def merge(scale: Array) -> Any:
        return jax.tree.map(lambda b, v: b + scale * v, base, vector)

    found = search_weights(merge, _score(module, heads, part, temperature), scales)
    return merge(found.weights), jnp.append(found.scores, found.weights)


def search_fisher(
    module: Any, experts: Any, fishers: Any, candidates: Array, heads: Array, part: Part,
    temperature: Any, *, favour_first: bool,
) -> tuple[Any, np.ndarray]:  # fmt: skip
    """The model of the best weights of a Fisher merge, and all scores.

    With Fishers of ones it is the weighted average. Merge and score are a program each, called for
    every candidate: with two models XLA's CPU backend crashed where one program held the search.
    """
    merge = functools.partial(_merged, experts, fishers, favour_first=favour_first)
    scores = np.array([
        float(_scored(module, merge(weights), heads, part, temperature)) for weights in candidates
    ])  # fmt: skip
    return merge(candidates[int(scores.argmax())]), scores


@functools.partial(jax.jit, static_argnames="favour_first")
def _merged(experts: Any, fishers: Any, weights: Array, *, favour_first: bool) -> Any:
    base = trees.take_tree(experts, 0)
    return fisher_merge(base, experts, fishers=fishers, weights=weights, favour_first=favour_first)


@functools.partial(jax.jit, static_argnames="module")
def _scored(module: Any, params: Any, heads: Array, part: Part, temperature: Any) -> Array:
    return _score(module, heads, part, temperature)(params)


def candidates(seed: int, models: int, tries: int) -> Float[Array, "k n"]:
    """Weights of several models to choose from: equal ones, and draws of Dirichlet(1, ..., 1)."""
    drawn = dirichlet_weights(jax.random.key(seed), models=models, draws=tries - 1)
    return jnp.concatenate([jnp.full((1, models), 1 / models), drawn])


def _score(module: Any, heads: Array, part: Part, temperature: Any) -> Callable[[Any], Array]:
    def score(params: Any) -> Array:
        return jnp.sum(part.weights * hits(module, params, heads, part.images, temperature))

    return score
