"""Images as a user has them, brought to the shape and type that an encoder was trained on."""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rml.data.errors import DataError
from rml.data.images import decode, from_picture, resize_and_center_crop
from rml.data.source import IN_MEMORY_BYTES, NO_LABEL, Source

_CHANNELS = {1, 3, 4}  # of grey, RGB and RGBA


class GivenImages:
    """Images of any origin, read in slices: `given[a:b]` is uint8 or float32 `[b - a, *shape]`.

    What can be seen without reading is checked at once, files and values when they are read.

    Attributes:
      labels: int32 `[n]` of a source, those of the images that have been read.
    """

    labels: np.ndarray

    def __init__(self, images: Any, *, shape: Sequence[int], dtype: str = "uint8") -> None:
        """Wraps images without copying them.

        Args:
          images: An array `[n, h, w]` or `[n, h, w, c]` of uint8 or of floats in 0..1, a list of
            such images, of PIL images and of paths, whose sizes may differ, or a source. For
            an encoder of vectors an array `[n, d]`.
          shape: Shape of an image that the encoder takes. Bytes are brought to its height and
            width (shorter side resized, centre kept), files, PIL images and those of a source
            to its channels too.
          dtype: Type of the images that the encoder was trained on. One that was trained on
            floats takes floats of any range, and no bytes.

        Raises:
          DataError: If there is one image instead of several, or one has another kind, type or
            shape than these.
        """
        self.shape, self._dtype = tuple(shape), np.dtype(dtype)
        self._source = isinstance(images, Source)
        if isinstance(images, (str, Path, Image.Image)):
            raise DataError(f"got one image, {_describe(images)}, expected a list of images")
        if not (self._source or hasattr(images, "shape") or isinstance(images, Sequence)):
            raise DataError(f"got {_describe(images)}, expected a list or an array of images")
        if self._source:
            self._images: Any = images
            self.labels = np.full(len(images), NO_LABEL, np.int32)
        elif hasattr(images, "shape"):
            self._images = self._check_array(images, what="images", several=True)
        else:
            self._images = list(images)
            for index, image in enumerate(self._images):
                self._check_item(image, what=f"image {index}")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice) -> np.ndarray:
        positions = range(len(self))[rows]
        if not positions:
            return np.zeros((0, *self.shape), self._dtype)
        if hasattr(self._images, "shape"):
            batch = np.asarray(self._images[rows])
            batch = batch[..., None] if batch.ndim == len(self.shape) else batch
            if batch.shape[1:] != self.shape:
                batch = np.stack([self._fit(image) for image in batch])
        else:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                images = list(pool.map(self._read, positions))
            kinds = sorted({str(image.dtype) for image in images})
            if len(kinds) > 1:
                raise DataError(f"images are of mixed types, {' and '.join(kinds)}; expected one")
            batch = np.stack(images)
        return batch if batch.dtype == np.uint8 else self._check_floats(batch, positions.start)

    def _read(self, index: int) -> np.ndarray:
        """One image of a list or source."""
        image, what = self._images[index], f"image {index}"
        if self._source:
            self.labels[index], image = image["label"], np.asarray(image["image"])
            if image.dtype == np.uint8 and image.ndim == len(self.shape) == 3:
                channels = {image.shape[2], self.shape[2]}
                if len(channels) == 1 or channels <= _CHANNELS:  # others have no known colours
                    image = self._fit(image, convert=True)
            return np.asarray(self._check_array(image, what=f"{what} of {self._source_name}"))
        if isinstance(image, (str, Path)):
            return self._fit(decode(Path(image), channels=self.shape[-1]))
        if isinstance(image, Image.Image):
            return self._fit(from_picture(image, channels=self.shape[-1], what=what))
        image = np.asarray(image)
        image = image[..., None] if image.ndim < len(self.shape) else image
        return self._fit(image)

    @property
    def _source_name(self) -> str:
        return repr(self._images.name)

    def _fit(self, image: np.ndarray, *, convert: bool = False) -> np.ndarray:
        """An image in the encoder's height and width, and on demand in its channels."""
        if image.shape == self.shape:
            return image
        if convert and image.shape[-1] != self.shape[-1]:
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            image = from_picture(picture, channels=self.shape[-1])
        return resize_and_center_crop(image, (self.shape[0], self.shape[1]))

    def _check_item(self, image: Any, *, what: str) -> None:
        """Raises `DataError` where an entry of a list is no image that can be used."""
        if isinstance(image, (str, Path, Image.Image)):
            if self._dtype != np.uint8 or len(self.shape) != 3:
                raise DataError(f"{what} is {_describe(image)}, expected {self._expected()}")
            if not isinstance(image, Image.Image) and not Path(image).is_file():
                raise DataError(f"{what} is {_describe(image)}, and there is no such file")
        elif hasattr(image, "shape"):
            self._check_array(image, what=what)
        else:
            raise DataError(
                f"{what} is {_describe(image)}, expected a path, a PIL image or {self._expected()}"
            )

    def _check_array(self, images: Any, *, what: str, several: bool = False) -> Any:
        """The images, or `DataError` where their type or shape is not one of an encoder's."""
        floats = str(images.dtype) == "bfloat16"
        with contextlib.suppress(TypeError):  # torch's types are none of NumPy's
            floats = floats or np.issubdtype(images.dtype, np.floating)
        own = tuple(images.shape[1:] if several else images.shape)
        if len(own) == 2 and len(self.shape) == 3 and self.shape[2] == 1:
            own = (*own, 1)  # grey images need no axis of channels
        one = several and tuple(images.shape) == self.shape
        # One image in colour is not as many grey ones as it has rows.
        colour = len(own) == 3 and len(images.shape) == 3 and images.shape[2] in (3, 4)
        one |= several and colour and own[:2] != self.shape[:2] and not floats
        fits = own == self.shape
        if not floats and len(own) == len(self.shape) == 3:
            fits = own[2] == self.shape[2] and 0 not in own
        if one or not fits or not (floats or (images.dtype == np.uint8 == self._dtype)):
            raise DataError(
                f"{what} {'are' if several else 'is'} {images.dtype}{list(images.shape)}, "
                f"expected {self._expected('n' if several else '')}"
                + ("; one image is given as image[None]" if one else "")
            )
        return images

    def _check_floats(self, batch: np.ndarray, first: int) -> np.ndarray:
        """The images in float32, or `DataError` where values are out of range."""
        batch = batch.astype(np.float32)
        flat = batch.reshape(len(batch), -1)
        low, high = flat.min(axis=1), flat.max(axis=1)
        good = np.isfinite(low) & np.isfinite(high)
        if self._dtype == np.uint8:
            good &= (low >= 0) & (high <= 1)
        if not good.all():
            bad = int(np.argmin(good))
            raise DataError(
                f"image {first + bad} has values in {low[bad]:g}..{high[bad]:g}, "
                f"expected {self._expected()}"
            )
        return batch

    def _expected(self, several: str = "") -> str:
        shape = f"[{', '.join(filter(None, [several, *map(str, self.shape)]))}]"
        if self._dtype != np.uint8:
            return f"finite floats {shape}"
        of_any = ", ".join(filter(None, [several, "h", "w", *map(str, self.shape[2:])]))
        return f"uint8[{of_any}] of any size or floats in 0..1, {shape}"


def _describe(image: Any) -> str:
    """What an entry of a list is, in a few words."""
    if isinstance(image, (str, Path)):
        return f"the path {str(image)!r}"
    return f"a {type(image).__name__}" + (
        "" if isinstance(image, Image.Image) else f" {image!r:.40}"
    )


def in_slices(images: Any) -> Any:
    """Makes images sliceable as `images[a:b]`, those of a source in memory where they are few.

    Raises:
      DataError: If images of a source have several sizes.
    """
    if not isinstance(images, Source):
        return images
    if images.nbytes is None or images.nbytes <= IN_MEMORY_BYTES:
        return images.arrays()["image"]
    example = images[0]["image"]
    return GivenImages(images, shape=example.shape, dtype=str(example.dtype))
