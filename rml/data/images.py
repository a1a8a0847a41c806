"""Images on the host: decoding and resizing, one at a time."""

import io
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from rml.data.errors import DataError


def pair(size: Any) -> tuple[int, int]:
    """Returns height and width, of a square if one number is given.

    Args:
      size: One integer or two, of Python or of NumPy.

    Raises:
      DataError: If it is something else, or not positive.
    """
    sides = (size, size) if isinstance(size, Integral) else size
    whole = [isinstance(side, Integral) for side in sides] if isinstance(sides, Iterable) else []
    if whole != [True, True]:
        raise DataError(f"image size is {size!r}, expected one integer, or height and width")
    height, width = map(int, sides)
    if height < 1 or width < 1:
        raise DataError(f"image size must be positive, got {size}")
    return height, width


def decode(image: bytes | Path, *, channels: int, what: str = "image") -> np.ndarray:
    """Decodes one image file to uint8 `[h, w, channels]`.

    Args:
      image: The file, or its bytes.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      what: Names the image in the error where it is not a file.

    Raises:
      DataError: If it is no image, or broken; names the file.
    """
    where = f"image file {image}" if isinstance(image, Path) else what
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return from_picture(opened, channels=channels)
    except FileNotFoundError as error:
        raise DataError(f"{where} is gone") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be decoded: {error}") from error


def from_picture(picture: Image.Image, *, channels: int, what: str = "it") -> np.ndarray:
    """Turns one image of PIL, upright as its file says, into uint8 `[h, w, channels]`.

    Grey images of 32-bit integers have 8 bits where no value exceeds 255, otherwise 16. What is
    transparent shows white paper, unless the result has an alpha channel.

    Args:
      picture: The image.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      what: Name of the image in the error.

    Raises:
      DataError: If its pixels are floats, whose range is unknown.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise DataError(f"{what} has pixels that are floats, expected integers of 8 or 16 bits")
    if picture.mode.startswith("I"):
        # PIL clips grey of more than 8 bits to 255 on conversion; of 16 the high byte is the image.
        grey = np.asarray(picture)
        grey = grey >> 8 if picture.mode != "I" or grey.max() > 255 else grey
        picture = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if channels != 4 and picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    array = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    return array if array.ndim == 3 else array[..., None]


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    *,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resizes one image (or a box of it) with an antialiased bilinear filter, on the host.

    Args:
      image: uint8 `[h, w, c]` with 1, 3 or 4 channels.
      size: Height and width of the result.
      box: Left, top, right and bottom in pixels; the whole image if `None`.

    Returns:
      uint8 `[*size, c]`.
    """
    if image.dtype != np.uint8 or image.shape[-1] not in (1, 3, 4):
        raise DataError(
            f"only uint8 images of 1, 3 or 4 channels are resized on the host, got {image.dtype} "
            f"of shape {image.shape}"
        )
    if image.shape[:2] == tuple(size) and box is None:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    out = np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR, box=box))
    return out if out.ndim == 3 else out[..., None]


def resize_and_center_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes the largest centred box of the target's aspect to the target (on the host).

    Args:
      image: uint8 `[h, w, c]`.
      size: Height and width of the result.

    Returns:
      uint8 `[*size, c]`.
    """
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    # Rounded, the product of side and scale may be more than the image has.
    box_h, box_w = min(size[0] * scale, height), min(size[1] * scale, width)
    if (box_h, box_w) == (height, width):
        return resize(image, size)
    left, top = (width - box_w) / 2, (height - box_h) / 2
    right, bottom = min(left + box_w, width), min(top + box_h, height)
    return resize(image, size, box=(left, top, right, bottom))
