"""Augmentation on the device: batched, pure, inside the jitted step.

Every random augmentation is `(key, images, *, options) -> images` and draws independently for each
example of the batch. `compose` chains them from a config, `views` draws several.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped, UInt8

from rml.data.color import color_jitter as color_jitter
from rml.data.color import gaussian_blur as gaussian_blur
from rml.data.color import normalize as normalize
from rml.data.color import random_grayscale as random_grayscale
from rml.data.color import solarize as solarize
from rml.data.geometry import center_crop as center_crop
from rml.data.geometry import random_affine as random_affine
from rml.data.geometry import random_erase as random_erase
from rml.data.geometry import random_flip as random_flip
from rml.data.geometry import random_resized_crop as random_resized_crop
from rml.data.geometry import resize as resize
from rml.errors import unknown

Pipeline = Callable[..., Float[Array, "b h w c"]]
"""`(key, images, *, copies=1) -> images`, drawing by example; `copies` as for `draws.uniforms`."""

AUGMENTATIONS: dict[str, Callable[..., Array]] = {
    function.__name__: function
    for function in (
        center_crop,
        color_jitter,
        gaussian_blur,
        normalize,
        random_affine,
        random_erase,
        random_flip,
        random_grayscale,
        random_resized_crop,
        resize,
        solarize,
    )
}
"""What `compose` knows, by name. Those that draw nothing take no key."""

Images = UInt8[Array | np.ndarray, "*b h w c"] | Float[Array | np.ndarray, "*b h w c"]


def to_float(images: Images) -> Float[Any, "*b h w c"]:
    """Converts uint8 images to float32 in [0, 1]; floating-point images stay as they are."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return images.astype(jnp.float32) / 255


def compose(steps: Sequence[Any]) -> Pipeline:
    """Chains augmentations named in a config.

    Args:
      steps: Augmentations, each a name, `(name,)` or `(name, options)`, for example
        `(("random_resized_crop", {"scale": (0.5, 1.0)}), "random_flip")`; applied in order.

    Returns:
      `(key, images, *, copies=1) -> images`. Step i draws from `fold_in(key, i)`.

    Raises:
      ValueError: If a step is malformed, or its name or an option is unknown.
    """
    bound = [_bind(step) for step in steps]

    def pipeline(
        key: Key[Array, ""], images: Float[Array, "b h w c"], *, copies: int = 1
    ) -> Float[Array, "b out_h out_w c"]:
        for index, (function, keyed, options) in enumerate(bound):
            if keyed:
                own = jax.random.fold_in(key, index)
                images = function(own, images, copies=copies, **options)
            else:
                images = function(images, **options)
        return images

    return pipeline


def views(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"] | Float[Array, "b n h w c"],
    pipeline: Pipeline,
    *,
    n: int = 2,
) -> Float[Array, "n b out_h out_w c"]:
    """Makes independently augmented copies of a batch, in one call of the pipeline.

    Inside, the views of an image are neighbours: split over devices, no image leaves its own. For
    the same reason a model should see them by `flat_views`.

    Args:
      key: Random key of the draw.
      images: Batch of images, or of `n` crops of each, as `stacked_views` cuts them on the host.
      pipeline: Augmentations, as `compose` chains them.
      n: Number of views.

    Returns:
      The views, stacked in front: `first, second = views(...)`.

    Raises:
      ValueError: If `n` is not positive, or images have another number of crops.
    """
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    if images.ndim == 5 and images.shape[1] != n:
        raise ValueError(f"images {images.shape} have {images.shape[1]} crops each, expected {n}")
    whole = images.ndim == 4
    rows = jnp.repeat(images, n, axis=0) if whole else images.reshape(-1, *images.shape[2:])
    out = pipeline(key, rows, copies=n)
    return out.reshape(len(images), n, *out.shape[1:]).swapaxes(0, 1)


def flat_views(views: Shaped[Array, "n b *shape"]) -> Shaped[Array, " n*b *shape"]:
    """Puts views into one batch, those of an image neighbours; `split_views` is the inverse."""
    return views.swapaxes(0, 1).reshape(-1, *views.shape[2:])


def split_views(flat: Shaped[Array, " rows *shape"], *, n: int = 2) -> Shaped[Array, "n b *shape"]:
    """Splits what a model made of `flat_views` view by view."""
    return flat.reshape(-1, n, *flat.shape[1:]).swapaxes(0, 1)


def _bind(step: Any) -> tuple[Callable[..., Array], bool, dict[str, Any]]:
    parts = (step,) if isinstance(step, str) else tuple(step)
    if not 1 <= len(parts) <= 2 or not isinstance(parts[0], str):
        raise ValueError(f"an augmentation is a name or (name, options), got {step!r}")
    name, options = parts[0], dict(parts[1]) if len(parts) == 2 else {}
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    function = AUGMENTATIONS[name]
    parameters = inspect.signature(function).parameters
    known = {
        key: parameter
        for key, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key != "copies"
    }
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise ValueError(f"{name} needs the option {key!r}")
    return function, "key" in parameters, options
