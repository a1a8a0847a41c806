"""Characters in the fonts that Matplotlib brings: many classes with few images each."""

from functools import cache
from pathlib import Path

import numpy as np

FONTS = tuple(
    f"{family}{style}.ttf"
    for family, styles in (
        ("DejaVuSans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSerif", ("", "-Bold", "-Italic", "-BoldItalic")),
        ("STIXGeneral", ("", "Bol", "Italic", "BolIta")),
    )
    for style in styles
)
RANGES = (
    (0x30, 0x3A),  # digits
    (0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x180),  # Latin
    (0x391, 0x3CA), (0x410, 0x450),  # Greek, Cyrillic
    (0x531, 0x557), (0x10D0, 0x10F1),  # Armenian, Georgian
    (0x2190, 0x21B0), (0x2200, 0x2240),  # arrows, mathematical signs
)  # fmt: skip

BLOCKS = {
    "Basic Latin": range(0x80), "Latin-1 Supplement": range(0x80, 0x100),
    "Latin Extended-A": range(0x100, 0x180), "Greek and Coptic": range(0x370, 0x400),
    "Cyrillic": range(0x400, 0x500), "Armenian": range(0x530, 0x590),
    "Georgian": range(0x10A0, 0x1100), "Arrows": range(0x2190, 0x2200),
    "Mathematical Operators": range(0x2200, 0x2300),
}  # fmt: skip
"""Unicode's blocks of these characters."""


def unicode_block(character: str) -> str:
    """Finds the block of a character.

    Raises:
      ValueError: It is in none of `BLOCKS`.
    """
    for name, codes in BLOCKS.items():
        if ord(character) in codes:
            return name
    raise ValueError(f"{character!r} is in none of the blocks {', '.join(BLOCKS)}")


def render(character: str, font: Path, size: int) -> np.ndarray:
    """Draws a character, white on black, its ink centred.

    Args:
      character: Character to draw.
      font: A TrueType font.
      size: Height and width in pixels.

    Returns:
      uint8 [size, size].
    """
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(font, round(0.7 * size))
    left, top, right, bottom = face.getbbox(character)
    image = Image.new("L", (size, size))
    corner = (size - right - left) // 2, (size - bottom - top) // 2
    ImageDraw.Draw(image).text(corner, character, fill=255, font=face)
    return np.asarray(image)


@cache
def make_glyphs(classes: int, size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Renders the first characters of `RANGES` that at least 12 of the `FONTS` have.

    Of characters that look alike in the first font, as the Latin and the Cyrillic A do, the first
    is taken.

    Args:
      classes: Number of characters.
      size: Height and width in pixels.

    Returns:
      Images, uint8 [n, size, size]; labels [n] in [0, classes); the characters.

    Raises:
      ValueError: If there are not that many different characters.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {folder / name: set(FT2Font(folder / name).get_charmap()) for name in FONTS}
    images: list[np.ndarray] = []
    labels: list[int] = []
    seen: dict[bytes, str] = {}
    for point in (p for start, stop in RANGES for p in range(start, stop)):
        character = chr(point)
        drawn = [render(character, font, size) for font, has in fonts.items() if point in has]
        if len(drawn) < 12 or not all(image.any() for image in drawn):
            continue
        if drawn[0].tobytes() in seen:
            continue
        images += drawn
        labels += [len(seen)] * len(drawn)
        seen[drawn[0].tobytes()] = character
        if len(seen) == classes:
            return np.stack(images), np.array(labels), tuple(seen.values())
    raise ValueError(f"there are {len(seen)} different characters, fewer than classes={classes}")
