"""Images as a user has them: what is no image that can be used is named."""

import re

import numpy as np
import pytest
from PIL import Image

from rml.data import ArraySource, DataError
from rml.data.given import GivenImages

PIXELS = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32)


def test_pictures_whose_pixels_are_floats_are_refused():
    given = GivenImages([Image.new("L", (8, 8)), Image.new("F", (8, 8))], shape=(8, 8, 3))
    with pytest.raises(DataError, match="image 1 has pixels that are floats, expected integers"):
        given[:]


@pytest.mark.parametrize("channels", [3, 4])
def test_one_image_in_colour_is_not_as_many_grey_ones_as_it_has_rows(channels):
    for shape in ((8, 8, 1), (20, 30, 1)):
        with pytest.raises(DataError, match=r"are uint8\[20, 30, .\], .* given as image\[None\]"):
            GivenImages(np.zeros((20, 30, channels), np.uint8), shape=shape)
    assert len(GivenImages(np.zeros((20, 8, channels), np.uint8), shape=(8, channels, 1))) == 20
    assert len(GivenImages(np.zeros((20, 30, 5), np.uint8), shape=(8, 8, 1))) == 20


@pytest.mark.slow  # as torch is imported
def test_tensors_of_torch_are_named():
    torch = pytest.importorskip("torch")
    whole = torch.tensor(PIXELS)
    with pytest.raises(DataError, match=r"images are torch\.float32\[4, 8, 8, 3\], expected uint8"):
        GivenImages(whole, shape=(8, 8, 3))
    with pytest.raises(DataError, match=r"image 0 is torch\.float32\[8, 8, 3\], expected uint8"):
        GivenImages(list(whole), shape=(8, 8, 3))
    with pytest.raises(DataError, match=r"images are torch\.uint8\[4, 8, 8, 3\], expected uint8"):
        GivenImages((whole * 255).to(torch.uint8), shape=(8, 8, 3))


@pytest.mark.parametrize(("channels", "wanted"), [(2, 3), (5, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("side", [8, 6])
def test_channels_without_known_colours_are_named(channels, wanted, side):
    pixels = np.full((2, side, side, channels), 9, np.uint8)
    source = ArraySource(pixels, np.array([0, 0]), class_names=["a"], name="mine", split="all")
    given = GivenImages(source, shape=(8, 8, wanted))
    expected = re.escape(
        f"image 0 of 'mine' is uint8[{side}, {side}, {channels}], expected uint8[h, w, {wanted}]"
    )
    with pytest.raises(DataError, match=expected):
        given[:1]
