"""The arrays that a compiled program names, with their place in memory."""

import math
import re
from dataclasses import dataclass

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip
_ARRAY = re.compile(r"\b(" + "|".join(BITS) + r")\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Shape:
    """One array.

    Attributes:
      dtype: Its type.
      sizes: Its sizes.
      layout: How it lies in memory: dimensions from the fastest, then tiles and memory space.
    """

    dtype: str
    sizes: tuple[int, ...]
    layout: str = ""

    @property
    def main_memory(self) -> bool:
        """Whether it lies there; other spaces, such as a TPU's vector memory, are marked S(n)."""
        return "S(" not in self.layout

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return self.elements * BITS[self.dtype] // 8

    @property
    def padded_bytes(self) -> int:
        """Bytes with the padding of its fastest dimensions to whole tiles."""
        order, _, tiles = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        if not tile:
            return self.bytes
        fastest = [self.sizes[int(d)] for d in order.split(",") if d]
        sides = [int(n) for n in reversed(tile[1].split(","))]
        for i, side in enumerate(sides[: len(fastest)]):
            fastest[i] = -(-fastest[i] // side) * side
        return math.prod(fastest) * BITS[self.dtype] // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays that a type names."""
    return tuple(
        Shape(dtype, tuple(int(n) for n in sizes.split(",") if n), layout)
        for dtype, sizes, layout in _ARRAY.findall(text)
    )
