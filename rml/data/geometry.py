"""Augmentations that move pixels: crops, affine maps, flips, erasing; and plain resizing.

Crops and resizes are two small matrix products an image (bilinear resampling is separable), affine
maps one bilinear gather. Under `vmap` on CPU both are far faster than dm-pix's general resampling.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rml.data.draws import (
    Number,
    Range,
    between,
    check_probability,
    check_range,
    choose,
    uniforms,
)

_ATTEMPTS = 10
Fill = Number | Sequence[Number] | str
"""What takes the place of pixels that are not there: a value, one a channel, or "mean"."""


def random_resized_crop(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    *,
    size: int | Sequence[int] | None = None,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
    copies: int = 1,
) -> Float[Array, "b out_h out_w c"]:
    """Crops a box of random area and aspect and resizes it (antialiased bilinear).

    Args:
      key: Random key of the draw.
      images: Batch of images.
      size: Height and width of the result; the input's if not given.
      scale: Range of the box's area as a share of the image's.
      ratio: Range of the box's aspect, width by height, drawn log-uniformly.
      copies: Rows of the batch that each image has, see `rml.data.draws.uniforms`.

    Returns:
      The crops.

    Raises:
      ValueError: If a range is not ascending and positive, or scale exceeds 1.

    Source:
        Szegedy et al., "Going Deeper with Convolutions" (2015), section 6. A box that does not fit
        is drawn again up to ten times, then clipped.
    """
    check_range("scale", scale, high=1.0)
    check_range("ratio", ratio)
    b, h, w, _ = images.shape
    top, left, box_h, box_w = _random_boxes(key, b, h, w, scale, ratio, copies)
    out_h, out_w = _size(size, images)
    return separable(images, _resampling(top, box_h, h, out_h), _resampling(left, box_w, w, out_w))


def random_affine(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    *,
    degrees: Number = 0.0,
    translate: Number | Range = 0.0,
    scale: Range = (1.0, 1.0),
    shear: Number = 0.0,
    fill: Fill = 0.0,
    copies: int = 1,
) -> Float[Array, "b h w c"]:
    """Rotates, shears, scales about the centre and translates, in one bilinear resampling.

    Args:
      key: Random key of the draw.
      images: Batch of images.
      degrees: Rotation is uniform in ±degrees.
      translate: Shift is uniform in ± this share of height and width (or a pair of shares).
      scale: Range of magnification.
      shear: Horizontal shear is uniform in ±shear degrees.
      fill: Value outside the image, one for each channel, "mean" of each image's channels, or
        "edge", the nearest pixel of the image.
      copies: Rows of the batch that each image has, see `rml.data.draws.uniforms`.

    Returns:
      Images of the same size; the images themselves where every range is a point at identity.

    Raises:
      ValueError: If a range is not ascending and positive, shear is 90 degrees or more, or the
        fill is none of these.
    """
    check_range("scale", scale)
    if not 0 <= shear < 90:
        raise ValueError(f"shear must be in [0, 90) degrees, got {shear}")
    shift_h, shift_w = (translate, translate) if isinstance(translate, int | float) else translate
    b, h, w, _ = images.shape
    u_angle, u_scale, u_shear, u_y, u_x = uniforms(key, b, 5, copies)
    angle = between(-math.radians(degrees), math.radians(degrees), u_angle)
    slope = jnp.tan(between(-math.radians(shear), math.radians(shear), u_shear))
    zoom = 1 / between(scale[0], scale[1], u_scale)
    shift = jnp.stack(
        [between(-shift_h * h, shift_h * h, u_y), between(-shift_w * w, shift_w * w, u_x)], axis=-1
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Maps output to input, rows first: the inverse of scale · rotation · shear.
    inverse = zoom[:, None, None] * jnp.stack(
        [
            jnp.stack([cos, -sin], -1),
            jnp.stack([sin - slope * cos, cos + slope * sin], -1),
        ],
        axis=-2,
    )
    return affine_warp(images, inverse, shift, fill=fill)


def affine_warp(
    images: Float[Array, "b h w c"],
    inverse: Float[Array, "b 2 2"],
    shift: Float[Array, "b 2"],
    *,
    fill: Fill = 0.0,
) -> Float[Array, "b h w c"]:
    """Resamples bilinearly at `inverse @ (p - centre - shift) + centre` for each output pixel p.

    Args:
      images: Batch of images.
      inverse: Map from output to input offsets, in (row, column) pixels.
      shift: Shift of the content, in (row, column) pixels.
      fill: The plane outside the image, see `random_affine`.

    Returns:
      Images of the same size.

    Raises:
      ValueError: If the fill is none of those.
    """
    b, h, w, c = images.shape
    centre_y, centre_x = (h - 1) / 2, (w - 1) / 2
    rows = jnp.arange(h)[None, :, None] - centre_y - shift[:, 0, None, None]
    columns = jnp.arange(w)[None, None, :] - centre_x - shift[:, 1, None, None]
    m = inverse[:, :, :, None, None]
    y = m[:, 0, 0] * rows + m[:, 0, 1] * columns + centre_y
    x = m[:, 1, 0] * rows + m[:, 1, 1] * columns + centre_x
    y0, x0 = jnp.floor(y), jnp.floor(x)
    fy, fx = (y - y0)[..., None], (x - x0)[..., None]
    # One pixel of fill all around; whatever lies further out is clipped onto it.
    ring = ((0, 0), (1, 1), (1, 1), (0, 0))
    if fill == "edge":
        padded = jnp.pad(images, ring, mode="edge")
    else:
        value = _filling(fill, images, "a number, one a channel, 'mean' or 'edge'")
        inside = jnp.pad(jnp.ones((1, h, w, 1), bool), ring)
        padded = jnp.where(inside, jnp.pad(images, ring), value)
    flat = padded.reshape(b, (h + 2) * (w + 2), c)

    def at(row: Array, column: Array) -> Array:
        row = jnp.clip(row + 1, 0, h + 1).astype(jnp.int32)
        column = jnp.clip(column + 1, 0, w + 1).astype(jnp.int32)
        index = (row * (w + 2) + column).reshape(b, h * w, 1)
        picked = jnp.take_along_axis(flat, index, axis=1, mode="promise_in_bounds")
        return picked.reshape(images.shape)

    above = (1 - fx) * at(y0, x0) + fx * at(y0, x0 + 1)
    below = (1 - fx) * at(y0 + 1, x0) + fx * at(y0 + 1, x0 + 1)
    return (1 - fy) * above + fy * below


def random_flip(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    *,
    p: Number = 0.5,
    vertical: bool = False,
    copies: int = 1,
) -> Float[Array, "b h w c"]:
    """Mirrors each image with probability `p`.

    Args:
      key: Random key of the draw.
      images: Batch of images.
      p: Probability.
      vertical: Upside down instead of left to right.
      copies: Rows of the batch that each image has, see `rml.data.draws.uniforms`.

    Returns:
      Images of the same size.

    Raises:
      ValueError: If `p` is no probability.
    """
    check_probability(p)
    (chosen,) = uniforms(key, len(images), 1, copies)
    return choose(chosen, p, jnp.flip(images, axis=1 if vertical else 2), images)


def random_erase(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    *,
    p: Number = 0.5,
    scale: Range = (0.02, 0.33),
    ratio: Range = (0.3, 3.3),
    fill: Fill = 0.0,
    copies: int = 1,
) -> Float[Array, "b h w c"]:
    """Sets a random box to `fill` with probability `p`.

    Args:
      key: Random key of the draw.
      images: Batch of images.
      p: Probability.
      scale: Range of the box's area as a share of the image's.
      ratio: Range of the box's aspect, width by height.
      fill: Value in the box, one for each channel, or "mean" of each image's channels.
      copies: Rows of the batch that each image has, see `rml.data.draws.uniforms`.

    Returns:
      Images of the same size.

    Raises:
      ValueError: If `p` is no probability, a range is not ascending and positive, or the fill is
        none of these.

    Source:
        Zhong et al., "Random Erasing Data Augmentation" (2020), algorithm 1. It draws the aspect
        uniformly, draws until a box fits, and fills it with noise. Here the aspect is
        log-uniform, and where none of ten boxes fits the first is clipped to the image.
    """
    check_probability(p)
    check_range("scale", scale, high=1.0)
    check_range("ratio", ratio)
    b, h, w, _ = images.shape
    key_box, key_choice = jax.random.split(key)
    top, left, box_h, box_w = _random_boxes(key_box, b, h, w, scale, ratio, copies)
    (chosen,) = uniforms(key_choice, b, 1, copies)
    y, x = jnp.arange(h) + 0.5, jnp.arange(w) + 0.5
    in_y = (y >= top[:, None]) & (y < (top + box_h)[:, None])
    in_x = (x >= left[:, None]) & (x < (left + box_w)[:, None])
    inside = (in_y[:, :, None] & in_x[:, None, :])[..., None]
    value = _filling(fill, images, "a number, one a channel or 'mean'")
    return choose(chosen, p, jnp.where(inside, value, images), images)


def resize(
    images: Float[Array, "b h w c"], *, size: int | Sequence[int]
) -> Float[Array, "b out_h out_w c"]:
    """Resizes with an antialiased bilinear filter, aspect not kept.

    Args:
      images: Batch of images.
      size: Height and width of the result.

    Returns:
      The resized images.
    """
    b, h, w, _ = images.shape
    out_h, out_w = _size(size, images)
    zero = jnp.zeros(b)
    return separable(
        images, _resampling(zero, zero + h, h, out_h), _resampling(zero, zero + w, w, out_w)
    )


def center_crop(
    images: Float[Array, "b h w c"], *, size: int | Sequence[int]
) -> Float[Array, "b out_h out_w c"]:
    """Cuts out the centre.

    Args:
      images: Batch of images.
      size: Height and width of the result.

    Returns:
      The crops.

    Raises:
      ValueError: If the image is smaller than the crop.
    """
    out_h, out_w = _size(size, images)
    h, w = images.shape[1:3]
    if out_h > h or out_w > w:
        raise ValueError(f"center_crop to {(out_h, out_w)} exceeds the images of {(h, w)}")
    top, left = (h - out_h) // 2, (w - out_w) // 2
    return images[:, top : top + out_h, left : left + out_w]


def separable(
    images: Float[Array, "b h w c"],
    rows: Float[Array, "b out_h h"],
    columns: Float[Array, "b out_w w"],
) -> Float[Array, "b out_h out_w c"]:
    """Computes weighted means along height and along width of each image, in full precision.

    The weights of a mean need not sum to one: dividing the result is cheaper than the weights.
    """
    b, h, w, c = images.shape
    tall = jnp.matmul(rows, images.reshape(b, h, w * c), precision="highest")
    planes = jnp.moveaxis(tall.reshape(b, -1, w, c), 3, 1)
    wide = jnp.matmul(planes, columns.swapaxes(1, 2)[:, None], precision="highest")
    total = rows.sum(axis=-1)[:, :, None] * columns.sum(axis=-1)[:, None, :]
    return jnp.moveaxis(wide, 1, 3) * (1 / total)[..., None]


def _resampling(
    start: Float[Array, " b"], length: Float[Array, " b"], n: int, out: int
) -> Float[Array, "b out n"]:
    """Weights that resample [start, start + length) of `n` pixels to `out`, antialiased."""
    step = length / out
    source = start[:, None] + (jnp.arange(out) + 0.5) * step[:, None] - 0.5
    distance = jnp.abs(source[:, :, None] - jnp.arange(n))
    narrow = 1 / jnp.maximum(step, 1)  # downsampling widens the filter
    return jnp.maximum(1 - distance * narrow[:, None, None], 0)


def _random_boxes(
    key: Key[Array, ""],
    b: int,
    h: int,
    w: int,
    scale: Range,
    ratio: Range,
    copies: int = 1,
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
    """Top, left, height and width of a box in each image: the first of ten draws that fits."""
    u = uniforms(key, b, 2 * _ATTEMPTS + 2, copies)
    area = between(scale[0], scale[1], u[:_ATTEMPTS]) * (h * w)
    aspect = jnp.exp(between(math.log(ratio[0]), math.log(ratio[1]), u[_ATTEMPTS:-2]))
    tall, wide = jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)
    first = jnp.argmax((tall <= h) & (wide <= w), axis=0)[None]
    box_h = jnp.minimum(jnp.take_along_axis(tall, first, axis=0)[0], h)
    box_w = jnp.minimum(jnp.take_along_axis(wide, first, axis=0)[0], w)
    return u[-2] * (h - box_h), u[-1] * (w - box_w), box_h, box_w


def _filling(fill: Fill, images: Array, expected: str) -> Array:
    """The value that a fill means, [1 or b, 1, 1, 1 or c]."""
    if fill == "mean":
        return jnp.mean(images, axis=(1, 2), keepdims=True)
    values = () if isinstance(fill, str) else (fill,) if isinstance(fill, int | float) else fill
    if len(values) not in (1, images.shape[-1]):
        raise ValueError(f"fill is {fill!r}, expected {expected}")
    return jnp.asarray(values, images.dtype)


def _size(size: int | Sequence[int] | None, images: Array) -> tuple[int, int]:
    if size is None:
        return images.shape[1], images.shape[2]
    out_h, out_w = (size, size) if isinstance(size, int) else size
    if out_h < 1 or out_w < 1:
        raise ValueError(f"size must be positive, got {size}")
    return int(out_h), int(out_w)
