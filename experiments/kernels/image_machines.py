"""Machines that classify images as a config describes them: dense, or convolutional.

Inducing points of a dense machine are whole images, of all classes alike. With `model.patch` the
machine is convolutional, and its inducing points are patches of so many pixels a side.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.images import open_images
from experiments.kernels.machines import Machine, propagation
from rml import kernels
from rml.data import augment
from rml.errors import UserError

IMAGES = 200
"""Most training images from which inducing patches are drawn."""


class Points(NamedTuple):
    """What a machine begins with.

    Attributes:
      inducing: Inducing points, images as rows or patches [p, k, k, c].
      images: Images [t, h, w, c] whose patches those of hidden layers are; none for rows.
    """

    inducing: Any
    images: Any


def convolutional(config: Any) -> bool:
    """Whether a config's machines are convolutional."""
    return "patch" in config.model


def about_zero(images: Any) -> Any:
    """Images between -1 and 1."""
    return 2 * augment.to_float(images) - 1


def flatten(images: Any) -> Any:
    """Images as rows, about zero."""
    return about_zero(images).reshape(len(images), -1)


def first_machine(config: Any, *, learned: bool) -> Machine:
    """Makes a config's machine at its prior; its data are read when it is computed."""
    model, shape = config.model, tuple(config.data.image_shape)
    layers: dict[str, Any] = dict(depth=model.depth, outputs=model.classes, learned=learned)
    inducing: tuple[int, ...] = (math.prod(shape),)
    if convolutional(config):
        inducing = (model.patch, model.patch, shape[2])
    images = min(IMAGES, config.data.total) if convolutional(config) else 0
    spec = Points(
        jax.ShapeDtypeStruct((model.inducing, *inducing), jnp.float32),
        jax.ShapeDtypeStruct((images, *shape), jnp.float32),
    )
    # The seed may be traced, where several runs are one program.
    seed = jnp.asarray(config.seed, jnp.uint32)
    points = jax.pure_callback(
        lambda seed: first_points(config, int(seed)), spec, seed, vmap_method="sequential"
    )
    if not convolutional(config):
        return kernels.init_sparse(points.inducing, **layers)
    keys = jax.random.split(jax.random.key(seed))
    layers["amplitude"] = model.amplitude
    machine = kernels.init_conv(keys[0], points.inducing, **layers)
    return kernels.project_mixers(keys[1], machine, points.images, **propagation(config))


def check_patch(config: Any) -> None:
    """Raises `UserError` where patches have no middle or are larger than images."""
    size, shape = config.model.patch, config.data.image_shape
    if size % 2 == 0 or not 0 < size <= min(shape[:2]):
        raise UserError(
            f"model.patch is {size}, expected an odd number of pixels, at most those of images of "
            f"{shape[0]} x {shape[1]}"
        )


def first_points(config: Any, seed: int) -> Points:
    """Draws what a machine begins with from the training images.

    Raises:
      UserError: They have too few images of a class or different patches, or patches are no odd
        part of an image.
    """
    arrays = open_images(config, "train", labelled=True).arrays()
    draw = _patches if convolutional(config) else _rows
    return Points(*(np.asarray(part, np.float32) for part in draw(config, arrays, seed)))


def _rows(config: Any, arrays: Any, seed: int) -> Points:
    """Draws images of all classes alike, sorted by class."""
    model = config.model
    rows = kernels.inducing_rows(arrays["label"], model.inducing, classes=model.classes, seed=seed)
    if len(rows) < model.inducing:
        raise UserError(
            f"model.inducing is {model.inducing}, of which each of {model.classes} classes has an "
            f"equal share, but the training images of {config.data.name} have {len(rows)} of them"
        )
    images = arrays["image"]
    return Points(flatten(images[rows]), about_zero(images[:0]))


def _patches(config: Any, arrays: Any, seed: int) -> Points:
    """Draws different patches, sorted by brightness: background is one patch, seen many times."""
    check_patch(config)
    size, count, shape = config.model.patch, config.model.inducing, config.data.image_shape
    rng, images = np.random.default_rng(seed), arrays["image"]
    some = images[rng.permutation(len(images))[:IMAGES]]
    windows = np.lib.stride_tricks.sliding_window_view(some, (size, size), (1, 2))
    found = np.unique(np.moveaxis(windows, 3, 5).reshape(-1, size * size * shape[2]), axis=0)
    if len(found) < count:
        raise UserError(
            f"model.inducing is {count}, but {len(some)} training images of {config.data.name} "
            f"have {len(found)} different patches of {size} x {size}"
        )
    drawn = found[rng.permutation(len(found))[:count]]
    drawn = drawn[np.argsort(drawn.mean(axis=1, dtype=float), kind="stable")]
    return Points(about_zero(drawn.reshape(count, size, size, shape[2])), about_zero(some))


def bound(machine: Machine, images: Any, labels: Any, key: Any, **options: Any) -> Any:
    """Estimates a machine's objective from a batch, see `rml.kernels.elbo`."""
    if isinstance(machine, kernels.ConvMachine):
        return kernels.conv_elbo(machine, about_zero(images), labels, key, **options)
    given = dict(likelihood="categorical", key=key, **options)
    return kernels.elbo(machine, flatten(images), labels, **given)


def predict(machine: Machine, images: Any, **options: Any) -> kernels.Prediction:
    """Computes marginals of a machine's outputs for images."""
    if isinstance(machine, kernels.ConvMachine):
        return kernels.propagate_conv(machine, about_zero(images), **options).prediction
    return kernels.propagate_sparse(machine, flatten(images), **options).prediction
