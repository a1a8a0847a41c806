"""Gaussian processes of wide networks on images: convolutions with and without pooling, and none.

Novak et al., arXiv:1810.05148; Garriga-Alonso et al., arXiv:1808.05587. Three networks of infinite
width classify images by exact regression on labels: a fully connected one, a convolutional
one whose output reads all locations, and one whose output reads their mean. Without the mean the
process is that of a network whose locations share no weights. Of each number of training images,
drawn by the seed, each network chooses its depth and the variance of its noise on validation
images, from as many tries. They are further images of the training split.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.images import open_images, warn_of_oddities
from experiments.common.selection import at_edge
from experiments.kernels.image_machines import about_zero, check_patch
from experiments.ranges import ABOVE_0, SIZE, Range
from rml import kernels
from rml.errors import UserError
from rml.ops import cholesky, t_interval
from rml.training import Claim, Progress, RunDirectory

FULLY, FLAT, POOLED = "nngp", "conv_nngp_flat", "conv_nngp"
LABELS = {
    FULLY: "fully connected networks",
    FLAT: "convolutions without pooling",
    POOLED: "convolutions with pooling",
}
SOURCE = "arXiv:1810.05148, of CIFAR-10; data and margins are ours, after a look at seed 0"
GAINS = {
    "pooled_gain": (POOLED, FULLY),
    "flat_gain": (FLAT, FULLY),
    "pooling_gain": (POOLED, FLAT),
}
CLAIMS = (
    Claim("With most images, convolutions with pooling classify better than fully connected "
          "networks", "pooled_gain", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null_run="shuffled",
          says="Convolutions with pooling change accuracy by {mean:+.1p} points over fully "
          "connected networks, both infinitely wide"),
    Claim("With most images, convolutions without pooling classify better by a point than fully "
          "connected networks", "flat_gain", ">=", 0.01, SOURCE,
          stated="2026-12-01", null_run="shuffled",
          says="Without pooling they change it by {mean:+.1p} points"),
    Claim("With most images, convolutions with pooling classify better by a point than "
          "convolutions without pooling", "pooling_gain", ">=", 0.01, SOURCE,
          stated="2026-12-01", null_run="shuffled",
          says="Pooling changes accuracy of convolutions by {mean:+.1p} points"),
)  # fmt: skip
# Pixels change places, in all images alike: only a network without convolutions does not notice.
NULLS = {"shuffled": {"data.shuffled": True}}
RANGES = {
    "data.sizes": Range(2, whole=True), "data.validation": SIZE, "data.test_images": SIZE,
    "model.depths": SIZE, "model.noises": ABOVE_0,
}  # fmt: skip
CAPTIONS = {
    "accuracy.png": "Test accuracy against the number of training images (log2); bands: 95% "
    "intervals over test images.",
    "depths.png": "Accuracy on validation images against the number of layers, with most training "
    "images and the best noise.",
}
PICTURE = "accuracy.png"


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Computes the kernels, chooses depth and noise, classifies, draws."""
    found = open_images(config, "train", labelled=True), open_images(config, "test", labelled=True)
    warn_of_oddities(*found)
    check_patch(config)
    train, *judged = drawn(config, *(source.arrays() for source in found))
    progress, sizes = Progress(), sorted(config.data.sizes)
    metrics: dict[str, float] = {}
    right, by_depth = {}, {}
    for method, label in LABELS.items():
        valid, test = scores(config, method, train, judged, classes=found[0].num_classes)
        shown = ", ".join(f"{own.max():.3f}" for own in valid)
        progress.note(f"{method}: accuracies on validation images of {sizes} images: {shown}")
        best = [np.unravel_index(own.argmax(), own.shape) for own in valid]
        right[method] = [own[at] for own, at in zip(test, best, strict=True)]
        by_depth[label] = (np.array(config.model.depths), valid[-1].max(1))
        for n, at, tried, own in zip(sizes, best, valid, right[method], strict=True):
            metrics |= {f"{method}_accuracy_{n}": own.mean(), f"{method}_validation_{n}": tried[at]}
            metrics |= options_chosen(config, at, f"{method}_{{}}_{n}")
    for name, (better, worse) in GAINS.items():
        metrics |= with_bounds(name, t_interval(right[better][-1] - right[worse][-1]))
    draw(config, run, right, by_depth)
    return {name: float(value) for name, value in metrics.items()}


def scores(
    config: Any, method: str, train: Any, judged: Any, *, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Classifies validation and test images by training images of each number, in every way tried.

    Returns:
      Shares [sizes, depths, noises] of validation images that are classified rightly, and 1 or 0
      [sizes, depths, noises, images] for each test image.
    """
    (x, y), model = train, config.model
    images, labels = (np.concatenate(both) for both in zip(*judged, strict=True))
    of_depths = list(zip(*compute(config, method, x, images), strict=True))
    given = dict(noises=jnp.asarray(model.noises), classes=classes)
    found = np.stack([
        [predict(k[:n, :n], ti[:, :n], y[:n], **given) == labels for k, ti in of_depths]
        for n in sorted(config.data.sizes)
    ]).astype(float)  # fmt: skip
    valid, test = np.split(found, [len(judged[0][0])], axis=-1)
    return valid.mean(-1), test


def options_chosen(config: Any, at: Any, name: str) -> dict[str, float]:
    """Which options were chosen, by place, and whether they lie at an end of those tried."""
    found = {}
    for key, values, place in zip(("depth", "noise"), _options(config), at, strict=True):
        found[name.format(key)] = values[place]
        if len(values) > 2:
            found[f"{name.format(key)}_at_edge"] = float(at_edge(values[place], values))
    return found


def _options(config: Any) -> tuple[Any, Any]:
    return config.model.depths, config.model.noises


def tries(config: Any) -> dict[str, int]:
    """Counts the options from which validation images choose, by method."""
    return dict.fromkeys(LABELS, math.prod(map(len, _options(config))))


def drawn(config: Any, train: Any, test: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws training, validation and test images with labels, in which pixels may change places.

    Raises:
      UserError: There are fewer images than the config asks for.
    """
    data, rng, found = config.data, np.random.default_rng(config.seed), []
    most = max(data.sizes)
    wanted = {"train": (train, most + data.validation), "test": (test, data.test_images)}
    places = np.arange(np.prod(data.image_shape[:2]))
    if data.shuffled:  # by draws of their own: the images are the same
        np.random.default_rng((config.seed, 1)).shuffle(places)
    for split, (arrays, count) in wanted.items():
        if (images := len(arrays["image"])) < count:
            raise UserError(
                f"data.{split}, {data[split]!r} of {data.name}, has {images} images, expected at "
                f"least {count}: see data.sizes, data.validation and data.test_images"
            )
        rows = rng.permutation(images)[:count]
        x = np.asarray(about_zero(arrays["image"][rows]))
        x = x.reshape(count, len(places), -1)[:, places].reshape(x.shape)
        found.append((x, arrays["label"][rows]))
    (x, y), judged = found
    return [(x[:most], y[:most]), (x[most:], y[most:]), judged]


def compute(config: Any, method: str, train: Any, images: Any) -> tuple[Array, Array]:
    """Computes networks' kernels of training images, and of images with them, one a depth."""
    options = dict(kernel=kernels.build(config.model.kernel), depth=tuple(config.model.depths))
    if method == FULLY:
        return _fully(train, images, **options)
    options |= dict(size=config.model.patch, pool=method == POOLED)
    k = _convolutional(np.concatenate([train, images]), train, **options)
    return k[:, : len(train)], k[:, len(train) :]


_convolutional = jax.jit(kernels.conv_nngp, static_argnames=("kernel", "depth", "size", "pool"))


@partial(jax.jit, static_argnames=("kernel", "depth"))
def _fully(
    train: Array, images: Array, *, kernel: Any, depth: tuple[int, ...]
) -> tuple[Array, Array]:
    rows = (x.reshape(len(x), -1) for x in (train, images))
    found = [kernels.input_blocks(*rows)]
    for _ in range(max(depth)):
        found.append(kernels.gram_blocks(kernel, found[-1]))
    return jnp.stack([found[own].ii for own in depth]), jnp.stack([found[own].ti for own in depth])


@partial(jax.jit, static_argnames="classes")
def predict(k: Array, ti: Array, labels: Array, noises: Array, *, classes: int) -> Array:
    """Classifies images by regression on their labels, once with each noise.

    Args:
      k: Kernel [n, n] of the training images.
      ti: Kernel [t, n] of the images with them.
      labels: Classes of the training images.
      noises: Variances, as shares of the training images' mean variance.
      classes: Number of classes.

    Returns:
      Classes [noises, t].
    """
    y = jax.nn.one_hot(labels, classes, dtype=k.dtype)  # without their mean they rank alike

    def classify(noise: Array) -> Array:
        own = k + noise * jnp.mean(jnp.diagonal(k)) * jnp.eye(len(k), dtype=k.dtype)
        return jnp.argmax(ti @ cho_solve((cholesky(own).factor, True), y), axis=1)

    return jax.lax.map(classify, noises)


def draw(config: Any, run: RunDirectory, right: Any, by_depth: Any) -> None:
    """Draws accuracies against numbers of images, and those of each depth."""
    sizes = sorted(config.data.sizes)
    series = {
        label: (np.log2(sizes), *np.array([t_interval(own) for own in right[method]]).T)
        for method, label in LABELS.items()
    }
    axis = "training images (log2)"
    figures.curves(run.figure("accuracy.png"), series, axis, "test accuracy")
    figures.curves(run.figure("depths.png"), by_depth, "layers", "accuracy on validation images")
