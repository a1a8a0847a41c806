"""A target with few labels, or none, and the vectors of other tasks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.merging.atlas_learning import (
    Views,
    augmented,
    cached,
    few_batches,
    others,
    probe,
    scaled_vectors,
    tuned,
    unlabelled,
)
from experiments.merging.bed import Bed
from experiments.merging.finetuning import features, scores
from experiments.merging.judging import Part, Reading, best, halves, judged, of_hits, read
from experiments.merging.tasks import Images, draw_rows, few_of_each
from rml import data
from rml.errors import UserError
from rml.merging import draw_parts, trusted_examples
from rml.training import Progress

FEW = ("base", "isotropic", "atlas", "probe", "cache", "lora", "full")


def few_shots(config: Any, bed: Bed) -> dict[int, dict[str, list[Reading]]]:
    """Readings of test images of each target by each way, by images a class."""
    options = config.few
    found: dict[int, dict[str, list[Reading]]] = {
        shots: {way: [] for way in FEW} for shots in options.shots
    }
    for name in options.targets:
        alone, vectors = bed.alone(name), others(bed, name)
        chosen, test = judged(alone, "validation"), judged(alone, "test")
        for shots in options.shots:
            own = images_of(few_of_each(bed.tasks[name].train, shots, config.seed))
            readings = by_ways(config, alone, vectors, own, chosen, test)
            for way in FEW:
                found[shots][way].append(readings[way])
            Progress().note(f"{name}, {shots} images a class: " + ", ".join(
                f"{way} {100 * one.normalised.mean():.1f}" for way, one in readings.items()
            ))  # fmt: skip
    return found


def by_ways(
    config: Any, alone: Bed, vectors: Any, own: Images, chosen: Part, test: Part
) -> dict[str, Reading]:
    """Readings of test images by each way that learns from a few images with labels."""
    options, scale = config.few, alone.config.head.scale
    batches = few_batches(config, own, steps=options.steps, batch_size=options.batch_size)
    found = {"base": read(alone, test, alone.base)}
    module, heads = alone.module, alone.heads
    for way, by_block in (("isotropic", False), ("atlas", True)):
        scaling = functools.partial(
            scaled_vectors, module, alone.base, vectors, heads, batches, scale,
            decay=config.decay, by_block=by_block, cosine=True,
        )  # fmt: skip
        found[way] = read(alone, test, best(alone, chosen, options.rates.atlas, scaling)[0])
    for way, adapted in (("lora", True), ("full", False)):
        tuning = functools.partial(
            tuned, module, alone.base, heads, batches, scale, key=jax.random.key(config.seed),
            adapted=adapted,
        )  # fmt: skip
        found[way] = read(alone, test, best(alone, chosen, options.rates[way], tuning)[0])
    seen, held, last = (
        features(alone.module, alone.base, images.image)
        for images in (own, chosen.images, test.images)
    )
    probes = [
        probe(heads[0], seen, own.label, scale, rate, steps=options.probe_steps)
        for rate in options.rates.probe
    ]
    head = max(probes, key=lambda one: _right(alone, chosen, one).mean())
    found["probe"] = of_hits(test, _right(alone, test, head))

    def by_cache(queries: Array, labels: Array, share: float) -> np.ndarray:
        logits = cached(heads[0], seen, own.label, queries, scale, share)
        return np.asarray(jnp.argmax(logits, axis=-1) == labels)

    share = max(
        options.rates.cache, key=lambda one: by_cache(held, chosen.images.label, one).mean()
    )
    found["cache"] = of_hits(test, by_cache(last, test.images.label, share))
    return found


def few_parameters(config: Any, bed: Bed) -> dict[str, list[Reading]]:
    """Readings of one target by coefficients of blocks and of parts of blocks, and by adapters.

    They are learned from a share of the target's training images, and from all of them, in as many
    steps.
    """
    options, few, name = config.parts, config.few, config.parts.target
    alone, vectors, scale = bed.alone(name), others(bed, name), bed.config.head.scale
    chosen, test = judged(alone, "validation"), judged(alone, "test")
    numbers = {f"by_{count}": count for count in options.counts} | {"parts": options.count}
    everything = images_of(bed.tasks[name].train)
    found = {"base": [read(alone, test, alone.base)]}
    for end, share in (("share", options.share), ("all", 1.0)):
        size = len(everything.label)
        rows = draw_rows(size, int(share * size), config.seed)
        own = jax.tree.map(lambda x, rows=rows: x[rows], everything)
        batches = few_batches(config, own, steps=options.steps, batch_size=few.batch_size)
        scaling = functools.partial(
            scaled_vectors, alone.module, alone.base, vectors, alone.heads, batches, scale,
            decay=config.decay, cosine=True,
        )  # fmt: skip
        tuning = functools.partial(
            tuned, alone.module, alone.base, alone.heads, batches, scale,
            key=jax.random.key(config.seed), adapted=True,
        )  # fmt: skip
        ways: dict[str, tuple[Callable[[Any], Any], Any]] = {"atlas": (scaling, few.rates.atlas)}
        for way, number in numbers.items():
            drawn = draw_parts(jax.random.key(config.seed), bed.base, parts=number)
            of_parts = functools.partial(scaling, parts=drawn, count=number)
            ways[way] = (of_parts, few.rates.atlas)
        ways["lora"] = (tuning, few.rates.lora)
        for way, (function, rates) in ways.items():
            found[f"{way}_{end}"] = [read(alone, test, best(alone, chosen, rates, function)[0])]
    return found


def without_labels(config: Any, bed: Bed) -> dict[str, list[Reading]]:
    """Readings of each target by pseudo-labels of half of its test images, on the other half.

    Beside the rule with a threshold: all labels of the base trusted, which is what the public code
    does, and the same rule with labels of other images in the place of an image's own.
    """
    options = config.test_time
    found: dict[str, list[Reading]] = {way: [] for way in ("base", "ufm", "literal", "exchanged")}
    for name in config.few.targets:
        alone, vectors, scale = bed.alone(name), others(bed, name), bed.config.head.scale
        chosen, (seen, held) = judged(alone, "validation"), halves(judged(alone, "test"))
        ways = labelled(views(config, alone, seen.images), config.seed)
        found["base"].append(read(alone, held, alone.base))
        for way, batches in ways.items():
            learn = functools.partial(
                unlabelled, alone.module, alone.base, vectors, alone.heads[0], batches, scale,
                decay=config.decay, threshold=options.threshold,
            )  # fmt: skip
            params, _ = best(alone, chosen, options.rates, learn)
            found[way].append(read(alone, held, params))
    return found


def labelled(given: Views, seed: int) -> dict[str, Views]:
    """Makes the batches of each way: what of them is trusted, and whose labels they have.

    Args:
      given: Batches with labels of the base.
      seed: Seed of the exchange of labels.

    Returns:
      By "ufm" the batches as they are, by "literal" with all labels trusted, by "exchanged" with
      labels of other images, at places that are trusted or not as before.
    """
    moved = np.random.default_rng(seed).permutation(given.labels.size)
    exchanged = given.labels.reshape(-1)[moved].reshape(given.labels.shape)
    return {
        "ufm": given,
        "literal": given._replace(trusted=jnp.ones_like(given.trusted)),
        "exchanged": given._replace(labels=exchanged),
    }


def views(config: Any, alone: Bed, images: Images) -> Views:
    """Both views of batches of all steps, a quarter of each of trusted images."""
    options, rng = config.test_time, np.random.default_rng([config.seed, 3])
    found = scores(alone.module, alone.base, alone.heads, images, alone.config.head.scale)
    classes = int(np.any(np.asarray(alone.heads[0]) != 0, axis=-1).sum())
    trusted = np.asarray(trusted_examples(jax.nn.softmax(found)[:, :classes]))
    if trusted.all():
        raise UserError(
            f"all {len(trusted)} images of {next(iter(alone.tasks))} are trusted, expected more "
            "images than the most confident of each class"
        )
    labels = jnp.argmax(found, axis=-1)
    count = options.batch_size // 4
    rows = np.concatenate([
        rng.choice(np.flatnonzero(trusted), (options.steps, count)),
        rng.choice(np.flatnonzero(~trusted), (options.steps, options.batch_size - count)),
    ], axis=1)  # fmt: skip
    weak = images.image[rows]
    return Views(weak, augmented(config, weak), labels[rows], jnp.asarray(trusted[rows]))


def images_of(source: data.ArraySource) -> Images:
    """All images of one task."""
    arrays = source.arrays()
    label = jnp.asarray(arrays["label"], jnp.int32)
    return Images(jnp.asarray(arrays["image"]), label, jnp.zeros_like(label))


def _right(alone: Bed, part: Part, head: Array) -> np.ndarray:
    """Which images the base names rightly with another head."""
    found = scores(alone.module, alone.base, head[None], part.images, alone.config.head.scale)
    return np.asarray(jnp.argmax(found, axis=-1) == part.images.label)
