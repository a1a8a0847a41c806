"""Augmentations that change values: colour jitter, grey, blur, solarising, normalising."""

import dm_pix
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
from rml.data.geometry import separable


def color_jitter(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    *,
    brightness: Number = 0.8,
    contrast: Number = 0.8,
    saturation: Number = 0.8,
    hue: Number = 0.2,
    p: Number = 0.8,
    copies: int = 1,
) -> Float[Array, "b h w c"]:
    """Changes brightness, contrast, saturation and hue, in this order, with probability `p`.

    Args:
      key: Random key of the draw.
      images: Grey or RGB images in [0, 1]; grey ones have no saturation and hue to change.
      brightness: Factor uniform in [max(0, 1 - x), 1 + x].
      contrast: Factor of the distance to each channel's mean, likewise.
      saturation: Factor of the saturation, likewise.
      hue: Shift uniform in ±x turns of the colour circle, at most 0.5.
      p: Probability that an image is changed at all.
      copies: Rows of the batch that each image has, see `rml.data.draws.uniforms`.

    Returns:
      Images in [0, 1].

    Raises:
      ValueError: If a strength is negative, hue exceeds 0.5, `p` is no probability, or images
        have neither 1 nor 3 channels.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations"
        (2020). The order, the strengths and that brightness multiplies were not checked against
        the authors' code; values are clipped to [0, 1] after each change.
    """
    strengths = {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
    }
    for name, strength in strengths.items():
        if strength < 0:
            raise ValueError(f"{name} must not be negative, got {strength}")
    if hue > 0.5:
        raise ValueError(f"hue is a share of a turn, at most 0.5, got {hue}")
    check_probability(p)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"color_jitter takes 1 or 3 channels, got images {images.shape}")

    u_brightness, u_contrast, u_saturation, u_hue, chosen = uniforms(key, len(images), 5, copies)

    def factor(strength: Number, uniform: Array) -> Array:
        return between(max(0.0, 1 - strength), 1 + strength, uniform)

    def clip(changed: Array) -> Array:
        return jnp.clip(changed, 0, 1)

    out = images
    if brightness:
        out = clip(out * factor(brightness, u_brightness)[:, None, None, None])
    if contrast:
        out = clip(jax.vmap(dm_pix.adjust_contrast)(out, factor(contrast, u_contrast)))
    if images.shape[-1] == 3 and (saturation or hue):
        out = _shift_hsv(out, between(-hue, hue, u_hue), factor(saturation, u_saturation))
    return choose(chosen, p, out, images)


def _shift_hsv(
    images: Float[Array, "b h w 3"], turns: Float[Array, " b"], factor: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Scales saturation and shifts hue through one conversion to HSV and back.

    The same as dm-pix's two adjustments; under `vmap` on CPU XLA computes those many times over.
    """
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = images.max(axis=-1)
    chroma = value - images.min(axis=-1)
    safe = jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * turns[:, None, None]
    # Chroma is value · saturation, and saturation ends at 1.
    chroma = jnp.minimum(chroma * factor[:, None, None], value)
    place = sextant[..., None] + jnp.array([5.0, 3.0, 1.0])
    place = place - 6 * jnp.floor(place / 6)  # `%` on floats is slow on CPU
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)


def random_grayscale(
    key: Key[Array, ""], images: Float[Array, "b h w c"], *, p: Number = 0.2, copies: int = 1
) -> Float[Array, "b h w c"]:
    """Makes RGB images grey with probability `p`; grey ones stay as they are.

    Args:
      key: Random key of the draw.
      images: Grey or RGB images.
      p: Probability.
      copies: Rows of the batch that each image has, see `rml.data.draws.uniforms`.

    Returns:
      Images of the same shape.

    Raises:
      ValueError: If `p` is no probability or images have neither 1 nor 3 channels.
    """
    check_probability(p)
    if images.shape[-1] == 1:
        return images
    if images.shape[-1] != 3:
        raise ValueError(f"random_grayscale takes 1 or 3 channels, got images {images.shape}")
    (chosen,) = uniforms(key, len(images), 1, copies)
    grey = dm_pix.rgb_to_grayscale(images, keep_dims=True)
    return choose(chosen, p, grey, images)


def gaussian_blur(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    *,
    sigma: Range = (0.1, 2.0),
    kernel_size: int | None = None,
    p: Number = 0.5,
    copies: int = 1,
) -> Float[Array, "b h w c"]:
    """Blurs with a Gaussian of random width, with probability `p`.

    Args:
      key: Random key of the draw.
      images: Batch of images.
      sigma: Range of the standard deviation, in pixels.
      kernel_size: Odd width at which the Gaussian is cut off; a tenth of the image's shorter
        side if not given, but at least 3.
      p: Probability.
      copies: Rows of the batch that each image has, see `rml.data.draws.uniforms`.

    Returns:
      Images of the same size. At the border the kernel is renormalised over the image.

    Raises:
      ValueError: If sigma is not ascending and positive, kernel_size is even or `p` is no
        probability.

    Source:
        Chen et al. (2020), appendix A.
    """
    check_range("sigma", sigma)
    check_probability(p)
    b, h, w, _ = images.shape
    width = max(3, min(h, w) // 10 // 2 * 2 + 1) if kernel_size is None else kernel_size
    if width < 1 or width % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {width}")
    u_sigma, chosen = uniforms(key, b, 2, copies)
    deviation = between(sigma[0], sigma[1], u_sigma)

    def weights(n: int) -> Array:
        offset = jnp.arange(n)[:, None] - jnp.arange(n)
        bell = jnp.exp(-(offset**2) / (2 * deviation[:, None, None] ** 2))
        return jnp.where(jnp.abs(offset) <= width // 2, bell, 0)

    return choose(chosen, p, separable(images, weights(h), weights(w)), images)


def solarize(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    *,
    threshold: Number = 0.5,
    p: Number = 0.2,
    copies: int = 1,
) -> Float[Array, "b h w c"]:
    """Inverts values at or above a threshold, with probability `p`.

    Args:
      key: Random key of the draw.
      images: Images in [0, 1].
      threshold: Least value that is inverted, in [0, 1].
      p: Probability.
      copies: Rows of the batch that each image has, see `rml.data.draws.uniforms`.

    Returns:
      Images of the same shape.

    Raises:
      ValueError: If `p` is no probability.

    Source:
        Grill et al., "Bootstrap your own latent" (2020), appendix B.
    """
    check_probability(p)
    (chosen,) = uniforms(key, len(images), 1, copies)
    return choose(chosen, p, dm_pix.solarize(images, threshold), images)


def normalize(
    images: Float[Array, "b h w c"],
    *,
    mean: Number | Range,
    std: Number | Range,
) -> Float[Array, "b h w c"]:
    """Subtracts the mean and divides by the standard deviation, by channel.

    Args:
      images: Batch of images.
      mean: One number, or one a channel.
      std: One number, or one a channel.

    Returns:
      Images of the same shape.

    Raises:
      ValueError: If the number of channels does not match or std is not positive.
    """
    centre, spread = jnp.asarray(mean, images.dtype), jnp.asarray(std, images.dtype)
    for name, value in (("mean", centre), ("std", spread)):
        if value.shape not in ((), (1,), (images.shape[-1],)):
            raise ValueError(f"{name} has shape {value.shape}, images have shape {images.shape}")
    if min([std] if isinstance(std, int | float) else std) <= 0:
        raise ValueError(f"std must be positive, got {std}")
    return (images - centre) / spread
