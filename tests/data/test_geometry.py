import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from rml.data import geometry
from rml.data.augment import (
    center_crop,
    random_affine,
    random_erase,
    random_flip,
    random_resized_crop,
    resize,
)

KEY = jax.random.key(0)


def jitted(function, *arrays, **options):
    return jax.jit(functools.partial(function, **options))(*arrays)


IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 20, 14, 3)).astype(np.float32))


def pil_resize(image, size, box):
    """Each channel in floating point, as PIL resamples it."""
    return np.stack(
        [
            np.asarray(
                Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR, box=box)
            )
            for plane in np.moveaxis(np.asarray(image), -1, 0)
        ],
        axis=-1,
    )


@pytest.mark.parametrize("size", [(9, 30), (33, 7)])
def test_resize_is_pils(size):
    wanted = [pil_resize(image, size, None) for image in IMAGES]
    np.testing.assert_allclose(jitted(resize, IMAGES, size=size), wanted, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (8, 30)])
def test_random_resized_crop_is_pils_resize_of_its_box(size):
    scale, ratio = (0.1, 0.8), (0.5, 2.0)
    crops = jitted(random_resized_crop, KEY, IMAGES, size=size, scale=scale, ratio=ratio)
    boxes = np.stack(geometry._random_boxes(KEY, 6, 20, 14, scale, ratio), axis=-1)
    for image, crop, (top, left, h, w) in zip(IMAGES, crops, boxes, strict=True):
        box = tuple(float(x) for x in (left, top, left + w, top + h))
        np.testing.assert_allclose(crop, pil_resize(image, crop.shape[:2], box), atol=5e-6)


@pytest.mark.slow
def test_random_boxes_have_the_stated_distribution():
    scale, ratio = (0.2, 0.4), (0.7, 1.2)  # wide over tall, not its own inverse
    top, left, h, w = geometry._random_boxes(KEY, 4000, 60, 40, scale, ratio)
    area, aspect = np.asarray(h * w / 2400), np.log(np.asarray(w / h))
    assert (area.min(), area.max()) == pytest.approx(scale, abs=1e-3)
    assert (aspect.min(), aspect.max()) == pytest.approx(np.log(ratio), abs=2e-3)
    assert area.mean() == pytest.approx(0.3, abs=4 * 0.2 / math.sqrt(12 * 4000))
    low, high = np.log(ratio)
    assert aspect.mean() == pytest.approx(
        (low + high) / 2, abs=4 * (high - low) / math.sqrt(12 * 4000)
    )
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.1
    assert float((top / (60 - h)).mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 4000))
    assert float((left / (40 - w)).mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 4000))
    assert min(top.min(), left.min()) >= 0
    assert (top + h).max() <= 60 + 1e-4
    assert (left + w).max() <= 40 + 1e-4


@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_affine_warp_is_scipys(fill):
    rng = np.random.default_rng(1)
    inverse = np.eye(2) + rng.normal(scale=0.3, size=(6, 2, 2))
    shift = rng.normal(scale=4, size=(6, 2))
    maps = jnp.asarray(inverse, jnp.float32), jnp.asarray(shift, jnp.float32)
    got = jitted(geometry.affine_warp, IMAGES, *maps, fill=fill)
    centre = np.array([9.5, 6.5])
    for index in range(6):
        offset = centre - inverse[index] @ (centre + shift[index])
        for channel in range(3):
            wanted = ndimage.affine_transform(
                np.asarray(IMAGES[index, ..., channel], np.float64),
                inverse[index],
                offset,
                order=1,
                mode="grid-constant",
                cval=fill,
            )
            np.testing.assert_allclose(got[index, ..., channel], wanted, atol=1e-4)


def blob(row, column, size=41):
    y, x = np.mgrid[:size, :size]
    image = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 8)
    return jnp.asarray(np.broadcast_to(image, (64, size, size))[..., None], jnp.float32)


def centroid(images):
    weight = np.asarray(images[..., 0])
    y, x = np.mgrid[: weight.shape[1], : weight.shape[2]]
    mass = weight.sum((1, 2))
    return np.stack([(weight * y).sum((1, 2)) / mass, (weight * x).sum((1, 2)) / mass], axis=-1)


@pytest.mark.slow
def test_random_affine_moves_content_as_its_parameters_say():
    from_centre = np.array([-10.0, 0.0])
    images = blob(*(20 + from_centre))

    turned = centroid(jitted(random_affine, KEY, images, degrees=60)) - 20
    np.testing.assert_allclose(np.hypot(*turned.T), 10, atol=0.05)
    angle = np.degrees(np.arctan2(turned[:, 1], -turned[:, 0]))
    assert angle.min() < -40 < 40 < angle.max()
    assert np.abs(angle).max() <= 60.5

    zoomed = centroid(jitted(random_affine, KEY, images, scale=(0.5, 1.5))) - 20
    np.testing.assert_allclose(zoomed[:, 1], 0, atol=0.05)
    assert zoomed[:, 0].min() == pytest.approx(-15, abs=0.7)
    assert zoomed[:, 0].max() == pytest.approx(-5, abs=0.7)

    moved = centroid(jitted(random_affine, KEY, blob(20, 20), translate=(0.1, 0.2))) - 20
    assert np.abs(moved).max(axis=0) == pytest.approx([4.1, 8.2], abs=0.6)
    assert (moved.min(axis=0) < 0).all()

    sheared = centroid(jitted(random_affine, KEY, images, shear=30)) - 20
    np.testing.assert_allclose(sheared[:, 0], -10, atol=0.05)
    assert np.abs(sheared[:, 1]).max() == pytest.approx(10 * np.tan(np.pi / 6), abs=0.4)


def test_shifts_are_shares_of_their_own_side():
    dot = jnp.zeros((200, 21, 41, 1)).at[:, 10, 20].set(1.0)
    moved = np.asarray(jitted(random_affine, KEY, dot, translate=(0.2, 0.1)))[..., 0]
    for axis, side, share in ((1, 21, 0.2), (2, 41, 0.1)):
        along = moved.sum(3 - axis) @ np.arange(side) - (side - 1) / 2
        assert np.abs(along).max() == pytest.approx(share * side, abs=0.2)


def test_rotation_by_a_right_angle_is_exact():
    square = IMAGES[:, :14]
    quarter = jnp.broadcast_to(jnp.array([[0.0, 1.0], [-1.0, 0.0]]), (6, 2, 2))
    got = jitted(geometry.affine_warp, square, quarter, jnp.zeros((6, 2)))
    wanted = np.rot90(square, 1, axes=(1, 2))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 28, 28, 1), (2, 33, 33, 3)])
def test_identity_parameters_give_the_image_exactly(shape):
    images = jax.random.uniform(KEY, shape)

    @jax.jit
    def identities(images):
        return (
            random_affine(KEY, images, degrees=0, scale=(1, 1), fill=9.0),
            random_resized_crop(KEY, images, scale=(1, 1), ratio=(1, 1)),
            resize(images, size=shape[1]),
            center_crop(images, size=shape[1]),
            random_flip(KEY, images, p=0),
            random_erase(KEY, images, p=0),
        )

    for result in identities(images):
        assert jnp.array_equal(result, images)


@pytest.mark.slow
def test_random_flip():
    assert jnp.array_equal(random_flip(KEY, IMAGES, p=1), IMAGES[:, :, ::-1])
    assert jnp.array_equal(random_flip(KEY, IMAGES, p=1.0, vertical=True), IMAGES[:, ::-1])
    many = jnp.broadcast_to(IMAGES[:1], (2000, 20, 14, 3))
    flipped = (random_flip(KEY, many, p=0.3) != many).any(axis=(1, 2, 3))
    assert float(flipped.mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 2000))


WARP = {"degrees": 60, "scale": (0.5, 0.6), "translate": 0.2}
PAPER = jnp.broadcast_to(jnp.array([1.0, 0.9, 0.8]), (4, 9, 9, 3))


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("fill", [(1.0, 0.9, 0.8), "mean", "edge"])
def test_paper_of_one_colour_stays_so(fill):
    warped = jitted(random_affine, KEY, PAPER, fill=fill, **WARP)
    np.testing.assert_allclose(warped, PAPER, atol=1e-6)
    if fill != "edge":
        np.testing.assert_allclose(jitted(random_erase, KEY, PAPER, fill=fill), PAPER, atol=1e-6)


@pytest.mark.slow
def test_fill_is_black_unless_said():
    white = jnp.ones((4, 9, 9, 1))
    for function, options in ((random_affine, WARP), (random_erase, {"p": 1})):
        assert np.asarray(jitted(function, KEY, white, **options)).min() < 0.01
        assert np.asarray(jitted(function, KEY, white, fill=1.0, **options)).min() > 0.999


def test_edge_and_mean_are_those_of_each_image():
    images = jnp.arange(2.0)[:, None, None, None] + jnp.arange(12.0).reshape(1, 3, 4, 1)
    far, same = jnp.array([[100.0, 0.0]] * 2), jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
    edge = jitted(geometry.affine_warp, images, same, far, fill="edge")
    np.testing.assert_array_equal(edge, jnp.repeat(images[:, :1], 3, axis=1))
    mean = jitted(geometry.affine_warp, images, same, far, fill="mean")
    np.testing.assert_array_equal(mean[:, 0, 0, 0], [5.5, 6.5])


@pytest.mark.slow
def test_random_erase_fills_one_box():
    images = jnp.broadcast_to(IMAGES[:1], (300, 20, 14, 3))
    erased = np.asarray(
        jitted(random_erase, KEY, images, p=1, scale=(0.1, 0.3), ratio=(1, 1), fill=2.0)
    )
    mask = (erased == 2).all(axis=-1)
    assert np.array_equal(erased[~mask], np.asarray(images)[~mask])
    rows, columns = mask.any(axis=2), mask.any(axis=1)
    assert np.array_equal(mask, rows[:, :, None] & columns[:, None, :])
    for line in (*rows, *columns):
        inside = np.flatnonzero(line)
        assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1))
    share = mask.mean(axis=(1, 2))
    assert share.mean() == pytest.approx(0.2, abs=0.02)
    some = (np.asarray(jitted(random_erase, KEY, images, p=0.5)) != np.asarray(images)).any(
        axis=(1, 2, 3)
    )
    assert 0.35 < some.mean() < 0.65


def test_center_crop_is_centred():
    assert jnp.array_equal(center_crop(IMAGES, size=(10, 6)), IMAGES[:, 5:15, 4:10])
    with pytest.raises(ValueError, match=r"\(21, 14\) exceeds the images of \(20, 14\)"):
        center_crop(IMAGES, size=(21, 14))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_resized_crop(KEY, IMAGES, scale=(0.5, 1.5)), r"scale .*got \(0\.5, 1\.5\)"),
        (lambda: random_resized_crop(KEY, IMAGES, scale=(0.0, 1.0)), "scale"),
        (lambda: random_resized_crop(KEY, IMAGES, scale=(0.9, 0.1)), "scale"),
        (lambda: random_resized_crop(KEY, IMAGES, ratio=(2.0, 1.0)), "ratio"),
        (lambda: random_resized_crop(KEY, IMAGES, size=0), "size must be positive"),
        (lambda: random_affine(KEY, IMAGES, scale=(0.0, 1.0)), "scale"),
        (lambda: random_affine(KEY, IMAGES, shear=90.0), r"shear must be in \[0, 90\)"),
        (lambda: random_flip(KEY, IMAGES, p=1.5), "p must be a probability"),
        (lambda: random_erase(KEY, IMAGES, p=-0.1), "p must be a probability"),
        (lambda: random_erase(KEY, IMAGES, fill="edge"), "fill is 'edge', expected .* or 'mean'"),
        (lambda: random_affine(KEY, IMAGES, fill="white"), "fill is 'white', expected .*'edge'"),
        (lambda: random_affine(KEY, IMAGES, fill=(1, 1, 1, 1)), r"fill is \(1, 1, 1, 1\)"),
        (lambda: random_erase(KEY, IMAGES, scale=(0.1, 2)), "scale"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
