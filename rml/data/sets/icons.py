"""Line icons of four designers by what they show: many classes with a long tail."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from rml.data.packaged import Drawn, image
from rml.data.sets import iconify
from rml.data.vector import render

DESIGNERS = ("mdi", "tabler", "phosphor", "lucide")
SIDE = 64
COMMON = 3  # designers that a concept needs
VARIANTS = frozenset(
    {"outline", "filled", "fill", "bold", "duotone", "light", "thin", "rounded", "circle", "square"}
    | {"variant", "off", "plus", "alert", "check", "box"}
)
"""Words of a name that say how an icon is drawn, or what is added to it."""


class Icon(NamedTuple):
    """An icon: its concept, designer, name, and the name without variants."""

    concept: str
    designer: str
    name: str
    stem: str


class Icons(Drawn):
    """Line icons of 454 concepts by four designers, 64x64, drawn black on white.

    A concept is the first word of a name and common to three designers or more. Names are noisy as
    classes: "arrow" is drawn in hundreds of ways.

    Ground truth: the names that designers give their icons.

    Splits: variants of one icon stay together.
    """

    name = "icons"
    ASSETS = DESIGNERS

    def _features(self) -> dict[str, Any]:
        return {
            "image": image(SIDE),
            "label": tfds.features.ClassLabel(names=sorted({icon.concept for icon in listed()})),
            "set": tfds.features.ClassLabel(names=list(DESIGNERS)),
            "name": tfds.features.Text(),
        }

    def _drawings(self) -> Iterable[tuple[str, dict[str, Any] | None]]:
        return _drawn({designer: iconify.read(designer) for designer in DESIGNERS})


def listed() -> list[Icon]:
    """Lists all icons of the concepts that enough designers have."""
    found = []
    for designer in DESIGNERS:
        for name, icon in iconify.read(designer).icons.items():
            words = [word for word in re.sub(r"\d+", "", name).split("-") if word]
            plain = [word for word in words if word not in VARIANTS]
            if plain and not icon.get("hidden"):
                found.append(Icon(plain[0], designer, name, "-".join(plain)))
    designers = defaultdict(set)
    for one in found:
        designers[one.concept].add(one.designer)
    return [one for one in found if len(designers[one.concept]) >= COMMON]


def _drawn(
    sets: Mapping[str, iconify.IconSet],
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each icon with the key of its group: what one designer drew in several variants."""
    for icon in listed():
        svg = sets[icon.designer].svg(icon.name).replace("currentColor", "black")
        pixels = render(svg, SIDE)
        drawing = {
            "image": pixels,
            "label": icon.concept,
            "set": icon.designer,
            "name": icon.name,
        }
        yield f"{icon.designer} {icon.stem}", None if pixels is None else drawing
