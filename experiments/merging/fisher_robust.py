"""Accuracy in and out of distribution along the line from a base to its fine-tuned model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from experiments.merging.bed import Bed, ones_like, stack, take
from experiments.merging.finetuning import hits
from experiments.merging.fishers import fishers_of, shuffled
from experiments.merging.tasks import Images
from rml import data
from rml.merging import fisher_merge, grid_weights


class Line(NamedTuple):
    """Accuracies along weights from the base, at 0, to the fine-tuned model, at 1.

    Attributes:
      weights: Weight of the fine-tuned model.
      validation: Accuracy on the task's validation images.
      inside: Accuracy on its test images.
      outside: Accuracy on each shifted set, [weights, sets].
    """

    weights: np.ndarray
    validation: np.ndarray
    inside: np.ndarray
    outside: np.ndarray


def lines(config: Any, bed: Bed) -> dict[str, Line]:
    """Lines by Fisher merging, by averages (WiSE-FT), and by Fishers out of their places.

    The fine-tuned model is the bed's expert on handwritten digits. Out of distribution are the
    same images turned, blurred and noisy, other handwriting, and digits in fonts, of which the base
    has seen half.
    """
    options, names = config.robust, list(bed.tasks)
    at = names.index(options.task)
    task, head = bed.tasks[options.task], bed.heads[at]
    sets = [_images(task.validation), _images(task.test), *shifted(config, bed)]
    models = stack([bed.base, take(bed.experts, at)])
    fishers = fishers_of(bed, models, jnp.stack([head] * 2), [task.train] * 2, **config.fisher)
    given = {
        "fisher": fishers,
        "average": ones_like(models),
        "shuffled": shuffled(fishers, jax.random.key(config.seed)),
    }
    grid = grid_weights(options.points)
    merge = jax.jit(
        lambda own, weights: fisher_merge(
            bed.base, models, fishers=own, weights=weights, favour_first=True
        )
    )
    found = {}
    for name, own in given.items():
        rows = []
        for weights in grid:
            params = merge(own, weights)
            rows.append([
                float(hits(bed.module, params, head[None], one, bed.config.head.scale).mean())
                for one in sets
            ])  # fmt: skip
        table = np.array(rows)
        found[name] = Line(np.asarray(grid[:, 1]), table[:, 0], table[:, 1], table[:, 2:])
    return found


def robustness(line: Line, least: float) -> float:
    """Mean accuracy out of distribution at a validation accuracy that is asked for.

    Args:
      line: The line; between two weights its accuracies are taken as linear.
      least: Validation accuracy. The place nearest to the base that has it is taken; where none
        has, the weight that comes nearest to it.
    """
    mean = line.outside.mean(1)
    reached = np.flatnonzero(line.validation >= least)
    if not len(reached):
        return float(mean[line.validation.argmax()])
    at = int(reached[0])
    if at == 0:
        return float(mean[0])
    before, after = line.validation[at - 1 : at + 1]
    share = (least - before) / (after - before)
    return float((1 - share) * mean[at - 1] + share * mean[at])


def area(line: Line, levels: np.ndarray) -> float:
    """The mean of `robustness` over validation accuracies."""
    return float(np.mean([robustness(line, level) for level in levels]))


def shifted(config: Any, bed: Bed) -> list[Images]:
    """Images of the robust task's classes from elsewhere, in the order of `SHIFTS`."""
    options, rng = config.robust, np.random.default_rng(0)
    test = bed.tasks[options.task].test.arrays()
    image, label = (test[key][: options.most] for key in ("image", "label"))
    noise = rng.normal(0, 255 * options.noise, image.shape)
    changes: dict[str, Callable[[], np.ndarray]] = {
        "turned": lambda: ndimage.rotate(image, options.degrees, axes=(1, 2), reshape=False,
                                         order=1),
        "blurred": lambda: ndimage.gaussian_filter(image, (0, options.blur, options.blur, 0)),
        "noisy": lambda: np.clip(image + noise, 0, 255),
    }  # fmt: skip
    made = [Images(*_arrays(change().astype(np.uint8), label)) for change in changes.values()]
    other = bed.tasks[options.other].test
    return [*made, _images(other), _images(font_digits(config))]


SHIFTS = ("turned", "blurred", "noisy", "other hand", "fonts")


def font_digits(config: Any) -> data.ArraySource:
    """The ten digits in all fonts."""
    source = data.load("glyphs", "all", data_dir=config.data.data_dir,
                       image_size=tuple(config.data.image_shape[:2]))  # fmt: skip
    wanted = [source.class_names.index(str(digit)) for digit in range(10)]
    return data.select_classes(source, np.array(wanted))


def _images(source: data.ArraySource) -> Images:
    arrays = source.arrays()
    return Images(*_arrays(arrays["image"], arrays["label"]))


def _arrays(image: np.ndarray, label: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.asarray(image), jnp.asarray(label, jnp.int32), jnp.zeros(len(label), jnp.int32)
