"""Vector drawings as pixels, and drawings that are nearly the same."""

import io
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from rml.data.errors import DataError
from rml.errors import install

_OUTSIDE = re.compile(
    r"""\s(?:[\w.-]+:)?href\s*=\s*(?:"(?!\s*(?:\#|data:))[^"]*"|'(?!\s*(?:\#|data:))[^']*')"""
)
"""References of an SVG to other files."""

HASH_SIDE = 16  # a difference hash has HASH_SIDE**2 bits
NEAR = 10  # bits of 256 in which near copies differ at most
ROWS = 1024  # hashes that are compared with all others at a time


def render(svg: str, side: int) -> UInt8[np.ndarray, "side side 3"] | None:
    """Draws an SVG on white paper, as large as fits and in the middle.

    Args:
      svg: The document. References to other files are not followed. Text has the fonts of this
        machine.
      side: Pixels.

    Returns:
      The image, or None where nothing is drawn or the document cannot be read.

    Raises:
      DataError: If resvg is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise DataError(f"drawings are rendered by resvg: {install('data')}") from error
    try:
        png = bytes(
            resvg_py.svg_to_bytes(svg_string=_OUTSIDE.sub("", svg), width=side, height=side)
        )
    except ValueError:
        return None
    return on_paper(Image.open(io.BytesIO(png)), side)


def on_paper(drawing: Image.Image, side: int) -> UInt8[np.ndarray, "side side 3"] | None:
    """Lays a drawing in the middle of white paper; None where it is all transparent.

    Args:
      drawing: Any image; larger ones are shrunk, smaller ones are left as they are.
      side: Pixels of the paper.
    """
    drawing = drawing.convert("RGBA")
    if drawing.getchannel("A").getextrema()[1] == 0:
        return None
    drawing.thumbnail((side, side))
    paper = Image.new("RGBA", (side, side), "white")
    corner = ((side - drawing.width) // 2, (side - drawing.height) // 2)
    paper.alpha_composite(drawing, corner)
    return np.asarray(paper.convert("RGB"))


def difference_hash(image: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, " bits"]:
    """Tells whether each of 16x16 cells is brighter than the next one to its right."""
    small = (
        Image.fromarray(image).convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    )
    cells = np.asarray(small).astype(int)
    return (cells[:, :-1] > cells[:, 1:]).ravel()


def near_copies(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], of: Sequence[UInt8[np.ndarray, "h w 3"]]
) -> Bool[np.ndarray, " n"]:
    """Finds images that are near copies of others: hashes that differ in `NEAR` bits at most.

    Args:
      images: Images that are asked about.
      of: Images that they are compared with.
    """
    if not len(images) or not len(of):
        return np.zeros(len(images), bool)
    ours, theirs = (
        np.stack([difference_hash(image) for image in some]).astype(np.float32) * 2 - 1
        for some in (images, of)
    )
    bits = ours.shape[1]
    nearest = [
        ((bits - ours[start : start + ROWS] @ theirs.T) / 2).min(axis=1)
        for start in range(0, len(ours), ROWS)
    ]
    return np.concatenate(nearest) <= NEAR
