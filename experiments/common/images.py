"""Images as a config names them: sources, batches and augmentations."""

import logging
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jaxtyping import Array

from rml import data
from rml.data import augment
from rml.data.images import pair
from rml.errors import UserError, unknown
from rml.training.processes import is_primary

log = logging.getLogger("rml.experiments")

CROP = "random_resized_crop"


def open_images(config: Any, split: str, *, labelled: bool = False) -> data.Source:
    """Opens a source of a config, its images brought to `data.image_shape`.

    With `data.domains`, by split the values of the feature `data.domain_key` that are read, parts
    are by different designers; see `rml.data.open_domains`.

    Args:
      config: The run's config.
      split: Key of `config.data` that holds the split, such as "train".
      labelled: Whether the experiment needs labels.

    Returns:
      The source.

    Raises:
      UserError: The data cannot be read, is not of the config's channels and type, or lacks labels
        that are needed.
    """
    shape = tuple(config.data.image_shape)
    if len(shape) != 3:
        raise UserError(f"data.image_shape is {shape}, expected height, width and channels")
    source: data.Source
    given = {"data_dir": config.data.data_dir, "image_size": shape[:2]}
    if "domains" in config.data:
        named = {key: config.data[key] for key in ("domain_key", "label_key", "classes")}
        wanted = config.data.domains[split]
        source = data.open_domains(config.data.name, config.data[split], wanted, **given, **named)
    else:
        source = data.load(config.data.name, config.data[split], **given)
    image = source[0]["image"]
    if image.shape != shape or image.dtype != config.data.image_dtype:
        raise UserError(
            f"images of {config.data.name} are {image.dtype}{list(image.shape)}, expected "
            f"{config.data.image_dtype}{list(shape)}: set --config.data.image_shape and "
            "--config.data.image_dtype"
        )
    return data.require_labels(source, config.experiment) if labelled else source


def warn_of_oddities(train: data.Source, test: data.Source, *others: str) -> None:
    """Warns of what makes results on two sources say little, see `rml.data.oddities`.

    Args:
      train: Source that is trained on.
      test: Source that is tested on.
      *others: Further lines.
    """
    for one in (*data.oddities(train, test), *others) if is_primary() else ():
        log.warning("%s", one)


def training_batches(config: Any, source: data.Source, part: int, parts: int) -> grain.IterDataset:
    """Shuffled batches of a source for ever, this part of `parts` equal parts of each.

    With `data.host_crops` they hold random crops of each image, `[b, n, h, w, c]`, cut on the host
    from the image as it is stored and not as the source resizes it; n is `data.views`, by default
    two.
    """
    transform = None
    if crops_on_host(config):
        transform = host_crops(config)
        source = data.load(config.data.name, config.data.train, data_dir=config.data.data_dir)
    return data.batches(
        source, batch_size=config.train.batch_size, seed=config.seed, part=part, parts=parts,
        transform=transform,
    )  # fmt: skip


def crops_on_host(config: Any) -> bool:
    """Whether random crops of training images are cut on the host, from their full resolution."""
    return config.data.get("host_crops", False)


def views_on_host(config: Any) -> int:
    """How many crops of each image the host cuts, one or two."""
    return int(config.data.get("views", 2))


def host_crops(config: Any) -> Callable[..., Any]:
    """The host's part of the augmentation: a random crop of each of the two views, or of the one.

    It is `random_resized_crop` with the options of `augment`, and of `augment_second` for the
    second view where there is one.

    Raises:
      UserError: A view's augmentation does not begin with a crop, sizes differ, or images are
        chosen by domain, of which stored images know nothing.
    """
    if "domains" in config.data:
        raise UserError(
            f"data.host_crops is True and data.domains is {config.data.domains!r}; expected one of "
            "the two: crops are cut from all images of data.train as they are stored"
        )
    parts = [part for part in ("augment", "augment_second") if part in config]
    for part in parts:
        if tuple(config[part].order[:1]) != (CROP,):
            raise UserError(
                f"{part}.order is {tuple(config[part].order)}, expected {CROP} first, because "
                "data.host_crops is True"
            )
    options = [dict(config[part][CROP]) for part in (parts[0], parts[-1])][: views_on_host(config)]
    sizes = [one.pop("size") for one in options]
    if sizes[0] != sizes[-1]:
        raise UserError(
            f"{CROP}.size is {sizes[0]} and {sizes[1]}, expected one size of both views"
        )
    return data.stacked_views([data.decode_and_resize(sizes[0], **one) for one in options])


def all_batches(source: data.Source, batch_size: int) -> grain.IterDataset:
    """All of a source once, in order."""
    return data.batches(
        source, batch_size=batch_size, seed=0, shuffle=False, repeat=False, drop_remainder=False
    )


def batch_spec(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch, known without opening data."""
    size, shape = config.train.batch_size, tuple(config.data.image_shape)
    if crops_on_host(config):
        shape = (views_on_host(config), *pair(config.augment[CROP].size), shape[-1])
    return {
        "image": jax.ShapeDtypeStruct((size, *shape), jnp.dtype(config.data.image_dtype)),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


def augmentation(
    config: Any, part: str = "augment", *, whole: bool = False
) -> Callable[[Any, Array], Array]:
    """The augmentation of a config: the steps that `augment.order` names, with their options.

    With `data.host_crops` the crop is left out, which training images have had on the host.

    With `augment.exchange` the images of a batch are exchanged before, at random: neither views nor
    labels of an image belong to it then, which is the null of claims on what is learned from them.

    Args:
      config: The run's config.
      part: Key of the augmentation, where views have different ones.
      whole: Whether it is for images that the host has not cropped, such as test images.

    Returns:
      `(key, images) -> images`.

    Raises:
      UserError: The order names a step that the config lacks.
    """
    steps = config[part]
    known = [name for name in steps if name not in ("order", "exchange")]
    for name in steps.order:
        if name not in known:
            raise unknown(f"augmentation in {part}.order", name, known)
    on_host = (CROP,) if crops_on_host(config) and not whole else ()
    pipeline = augment.compose(
        [(name, dict(steps[name])) for name in steps.order if name not in on_host]
    )
    if not steps.get("exchange", False):
        return pipeline

    def exchanged(key: Any, images: Array, **options: Any) -> Array:
        own, rest = jax.random.split(key)
        return pipeline(rest, jax.random.permutation(own, images), **options)

    return exchanged
