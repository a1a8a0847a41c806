"""Random crops of stored images on the host: what is cut, how often, and that it resumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest

from rml.data import augment, batches, decode_and_resize, load, stacked_views

SIZES = ((200, 240), (240, 200), (220, 220), (210, 230), (230, 210), (240, 240))
OUT, SCALE, RATIO = 32, (0.08, 0.5), (3 / 4, 4 / 3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of mixed sizes: red is the column, green the row, blue the number of the picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "one").mkdir()
    for number, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[:height, :width]
        image = np.stack([columns, rows, np.full_like(rows, 10 * number)], -1).astype(np.uint8)
        Image.fromarray(image).save(folder / "one" / f"{number}.png")
    return load(f"folder:{folder}", "all")


def crops(ratio=RATIO, scale=SCALE):
    crop = decode_and_resize(OUT, scale=scale, ratio=ratio)
    return stacked_views([crop, crop])


def stream(source, count, *, state=None, **options):
    iterator = iter(batches(source, batch_size=4, seed=3, transform=crops(), **options))
    if state is not None:
        iterator.set_state(state)
    return [next(iterator) for _ in range(count)], iterator.get_state()


def boxes(image):
    """Left, top, width and height of the box that a crop shows, from its pixels alone."""
    inner = np.arange(4, OUT - 4)
    found = []
    for axis, channel in ((1, 0), (0, 1)):
        line = image[..., channel].astype(float).mean(1 - axis)[inner]
        slope, start = np.polyfit(inner + 0.5, line, 1)
        assert np.abs(line - (slope * (inner + 0.5) + start)).max() < 1  # the ramp, resized
        found.append((start + 0.5, slope * OUT))
    (left, width), (top, height) = found
    return np.array([left, top, width, height])


@pytest.fixture(scope="module")
def cut(pictures):
    """Crops of 100 epochs: the number of each one's picture, and its box [n, views, 4]."""
    images = np.concatenate([batch["image"] for batch in stream(pictures, 120)[0]])
    assert images.shape[1:] == (2, OUT, OUT, 3)
    assert (images[..., 2] == images[:, :1, :1, :1, 2]).all()  # both views are of one picture
    return images[:, 0, 0, 0, 2] // 10, np.array([[boxes(view) for view in two] for two in images])


@pytest.mark.slow
def test_area_is_uniform_and_aspect_log_uniform(cut):
    numbers, found = cut
    sizes = np.array(SIZES)[numbers]
    width, height = found[..., 2], found[..., 3]
    areas = width * height / np.prod(sizes, 1)[:, None]
    aspects = np.log(width / height)
    for values, (low, high) in ((areas, SCALE), (aspects, np.log(RATIO))):
        flat = (values.ravel() - low) / (high - low)
        assert kstest(flat, "uniform").statistic < 1.63 / np.sqrt(flat.size)
        assert abs(np.corrcoef(values.T)[0, 1]) < 0.12  # views are drawn apart
    assert abs(np.corrcoef(areas.ravel(), aspects.ravel())[0, 1]) < 0.1
    # Where the box lies is uniform in the room that it has.
    for corner, size in ((0, sizes[:, 1]), (1, sizes[:, 0])):
        place = found[..., corner] / (size[:, None] - found[..., corner + 2])
        assert kstest(place.ravel(), "uniform").statistic < 1.63 / np.sqrt(place.size)


def test_a_crop_wider_than_tall_shows_more_columns_than_rows(pictures):
    transform = crops(ratio=(4 / 3, 4 / 3), scale=(0.3, 0.3))
    for seed, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[:height, :width]
        image = np.stack([columns, rows, rows], -1).astype(np.uint8)
        both = transform({"image": image}, np.random.default_rng(seed))["image"]
        expected = [np.sqrt(0.3 * height * width * 4 / 3), np.sqrt(0.3 * height * width * 3 / 4)]
        for view in both:
            np.testing.assert_allclose(boxes(view)[2:], expected, rtol=0.01)
        assert not np.array_equal(*both)


def test_crops_are_those_of_seed_epoch_and_picture_in_any_process_and_after_a_restart(pictures):
    whole, _ = stream(pictures, 4)
    _, state = stream(pictures, 2, num_threads=1)
    again, _ = stream(pictures, 2, state=state)
    halves = [stream(pictures, 4, part=part, parts=2)[0] for part in range(2)]
    for number, batch in enumerate(whole):
        joined = np.concatenate([half[number]["image"] for half in halves])
        np.testing.assert_array_equal(joined, batch["image"])
        if number > 1:
            np.testing.assert_array_equal(again[number - 2]["image"], batch["image"])
    first = {int(one[0, 0, 0, 2]): one for batch in whole[:1] for one in batch["image"]}
    later = [one for batch in whole[1:] for one in batch["image"]]
    seen = [one for one in later if int(one[0, 0, 0, 2]) in first]
    assert seen
    assert not any(np.array_equal(one, first[int(one[0, 0, 0, 2])]) for one in seen)


def test_views_of_images_with_crops_take_a_crop_each():
    images = jax.random.uniform(jax.random.key(0), (3, 2, 4, 4, 1))
    plain = augment.compose(["random_flip"])
    made = augment.views(jax.random.key(1), images, augment.compose([]))
    np.testing.assert_array_equal(made, jnp.swapaxes(images, 0, 1))
    both = jnp.stack([images[:, 0]] * 2, 1)
    np.testing.assert_array_equal(
        augment.views(jax.random.key(1), both, plain),
        augment.views(jax.random.key(1), images[:, 0], plain),
    )
    with pytest.raises(ValueError, match="have 2 crops each, expected 3"):
        augment.views(jax.random.key(1), images, plain, n=3)
