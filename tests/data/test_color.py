import functools
import math

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from scipy import ndimage

from rml.data import color
from rml.data.augment import color_jitter, gaussian_blur, normalize, random_grayscale, solarize
from rml.data.draws import uniforms

KEY = jax.random.key(1)


def jitted(function, *arrays, **options):
    return jax.jit(functools.partial(function, **options))(*arrays)


IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 12, 10, 3)).astype(np.float32))


def test_hsv_shift_is_dm_pixs():
    turns = jnp.linspace(-0.5, 0.5, 8)
    factor = jnp.linspace(0.0, 2.5, 8)

    @jax.jit
    @jax.vmap
    def wanted(image, turn, scale):
        return dm_pix.adjust_hue(dm_pix.adjust_saturation(image, scale), turn)

    got = jitted(color._shift_hsv, IMAGES, turns, factor)
    np.testing.assert_allclose(got, wanted(IMAGES, turns, factor), atol=5e-6)


def test_hsv_shift_leaves_grey_black_and_white_alone():
    grey = jnp.broadcast_to(jnp.linspace(0, 1, 5)[:, None, None, None], (5, 2, 2, 3))
    shifted = jitted(color._shift_hsv, grey, jnp.full(5, 0.3), jnp.full(5, 1.7))
    assert jnp.array_equal(shifted, grey)
    turn = jitted(color._shift_hsv, IMAGES, jnp.ones(8), jnp.ones(8))
    np.testing.assert_allclose(turn, IMAGES, atol=3e-6)


@pytest.mark.parametrize("strengths", [(0.8, 0.6, 0.4, 0.1), (1.5, 3.0, 2.0, 0.3)])
def test_color_jitter_is_the_published_chain(strengths):
    """Brightness, contrast, saturation, hue; clipped after each, no factor below 0."""
    names = ("brightness", "contrast", "saturation", "hue")
    got = jitted(color_jitter, KEY, IMAGES, **dict(zip(names, strengths, strict=True)), p=1)
    u = np.asarray(uniforms(KEY, 8, 5), np.float64)
    low, high = np.maximum(1 - np.array(strengths), 0), 1 + np.array(strengths)
    factors = low[:, None] + (high - low)[:, None] * u[:4]
    for index, image in enumerate(np.asarray(IMAGES, np.float64)):
        bright = np.clip(image * factors[0, index], 0, 1)
        mean = bright.mean(axis=(0, 1))
        contrast = np.clip((bright - mean) * factors[1, index] + mean, 0, 1)
        saturation, hue = factors[2, index], strengths[3] * (2 * u[3, index] - 1)
        h, s, v = np.moveaxis(rgb_to_hsv(contrast), -1, 0)
        changed = np.stack([(h + hue) % 1, np.clip(s * saturation, 0, 1), v], axis=-1)
        np.testing.assert_allclose(got[index], hsv_to_rgb(changed), atol=1e-5)


def test_color_jitter_of_grey_images_and_its_probability():
    grey = jax.random.uniform(KEY, (1000, 3, 3, 1))
    changed = (jitted(color_jitter, KEY, grey, p=0.8) != grey).any(axis=(1, 2, 3))
    assert float(changed.mean()) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 1000))
    same = jitted(color_jitter, KEY, IMAGES, brightness=0, contrast=0, saturation=0, hue=0, p=1)
    assert jnp.array_equal(same, IMAGES)


def test_random_grayscale_weighs_channels_as_itu_bt601():
    grey = jitted(random_grayscale, KEY, IMAGES, p=1)
    wanted = np.asarray(IMAGES) @ np.array([0.2989, 0.587, 0.114])
    np.testing.assert_allclose(grey, np.repeat(wanted[..., None], 3, -1), atol=1e-3)
    assert jnp.array_equal(jitted(random_grayscale, KEY, IMAGES, p=0), IMAGES)
    assert jnp.array_equal(jitted(random_grayscale, KEY, IMAGES[..., :1], p=1), IMAGES[..., :1])


def test_gaussian_blur_is_scipys():
    """Away from the border, where scipy extends the image and we renormalise."""
    images = jax.random.uniform(KEY, (2, 30, 30, 2))
    got = jitted(gaussian_blur, KEY, images, sigma=(1.3, 1.3), kernel_size=11, p=1)
    wanted = ndimage.gaussian_filter(
        np.asarray(images, np.float64), 1.3, axes=(1, 2), truncate=5 / 1.3
    )
    np.testing.assert_allclose(got[:, 5:-5, 5:-5], wanted[:, 5:-5, 5:-5], atol=1e-6)
    flat = jnp.full((2, 9, 9, 1), 0.4)
    np.testing.assert_allclose(jitted(gaussian_blur, KEY, flat, p=1), flat, atol=1e-6)


def test_gaussian_blur_draws_width_and_choice():
    point = jnp.zeros((400, 9, 9, 1)).at[:, 4, 4].set(1.0)
    peak = jitted(gaussian_blur, KEY, point, sigma=(0.5, 2.0), kernel_size=9, p=0.5)[:, 4, 4, 0]
    kept = peak == 1
    assert 0.4 < float(kept.mean()) < 0.6
    assert len(set(np.asarray(peak[~kept]).tolist())) > 150


def test_solarize_and_normalize():
    got = jitted(solarize, KEY, IMAGES, threshold=0.6, p=1)
    np.testing.assert_array_equal(got, jnp.where(IMAGES < 0.6, IMAGES, 1 - IMAGES))
    assert jnp.array_equal(jitted(solarize, KEY, IMAGES, p=0), IMAGES)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    wanted = (np.asarray(IMAGES) - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(normalize(IMAGES, mean=mean, std=std), wanted, rtol=1e-6)
    np.testing.assert_allclose(normalize(IMAGES, mean=0.5, std=2), (IMAGES - 0.5) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: color_jitter(KEY, IMAGES, contrast=-1.0), "contrast must not be negative"),
        (lambda: color_jitter(KEY, IMAGES, hue=0.7), "hue .* at most 0.5, got 0.7"),
        (lambda: color_jitter(KEY, IMAGES, p=2), "probability"),
        (lambda: color_jitter(KEY, IMAGES[..., :2]), "1 or 3 channels"),
        (lambda: random_grayscale(KEY, IMAGES[..., :2]), "1 or 3 channels"),
        (lambda: gaussian_blur(KEY, IMAGES, sigma=(2.0, 1.0)), "sigma"),
        (lambda: gaussian_blur(KEY, IMAGES, kernel_size=4), "odd and positive, got 4"),
        (lambda: normalize(IMAGES, mean=[0.1, 0.2], std=1.0), r"mean has shape \(2,\)"),
        (lambda: normalize(IMAGES, mean=0.0, std=0.0), "std must be positive"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
