"""Units of The Battle for Wesnoth: frames and clips of drawn fighters, and what the game says."""

import functools
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rml import assets
from rml.data.packaged import Drawn, image
from rml.data.vector import on_paper

CORE = "usr/share/games/wesnoth/1.18/data/core/"
IMAGES = CORE + "images/"
SIDE = 72
DIRECTIONS = ("side", "n", "ne", "nw", "s", "se", "sw")
ACTIONS = {
    "die": "die|death",
    "defend": "defend",
    "leading": "leading",
    "heal": "heal",
    "idle": "idle",
    "run": "run",
    "standing": "standing",
    "flying": "flying",
    "ranged": "ranged|bow|magic|shoot|cast|javelin|sling|thrown|fire",
    "melee": "attack|melee|slash|thrust|sword|axe|mace|staff|claw|bite",
    "base": "^$",
    "other": "",
}
"""What the name of a frame says of the action; the first that fits."""


class Unit(NamedTuple):
    """A type of unit: identifier, race, and what the game tells of it."""

    id: str
    race: str
    text: str


class Units(Drawn):
    """Drawn frames of some 290 types of fighters, 72x72, with race, action, direction and clip.

    `label` is the type of unit. The art is under the GPL: it is read, never committed.

    Ground truth: the game's configuration of each unit, and the words in the names of its frames.

    Splits: frames of a clip (`clip`, in the order of `frame`) stay together.
    """

    name = "units"
    ASSETS = ("wesnoth",)

    def _features(self) -> dict[str, Any]:
        text, units = tfds.features.Text(), set(read().values())
        return {
            "image": image(SIDE),
            "label": tfds.features.ClassLabel(names=sorted({unit.id for unit in units})),
            "race": tfds.features.ClassLabel(names=sorted({unit.race for unit in units})),
            "action": tfds.features.ClassLabel(names=list(ACTIONS)),
            "direction": tfds.features.ClassLabel(names=list(DIRECTIONS)),
            "clip": text,
            "frame": tfds.features.Scalar(dtype=np.int32),
            "text": text,
        }

    def _drawings(self) -> Iterable[tuple[str, dict[str, Any] | None]]:
        units, found = read(), files()
        files.cache_clear()  # frames that nobody reads again
        return _frames(units, found)


@functools.cache
def files() -> dict[str, bytes]:
    """Reads configurations and frames of the archive, which is decompressed once."""
    return dict(assets.members("wesnoth", f"{CORE}units/*.cfg", f"{IMAGES}units/*.png"))


@functools.cache
def read() -> dict[str, Unit]:
    """Reads each type of unit by the path of its base image, without ending."""
    found = {}
    for path, content in files().items():
        unit = parse(content.decode()) if path.endswith(".cfg") else None
        if unit is not None:
            found[unit[0]] = unit[1]
    return dict(sorted(found.items()))


def parse(config: str) -> tuple[str, Unit] | None:
    """Reads base image and unit of a configuration; None where it has no image of its own."""
    match = re.search(r"\[unit_type\](.*)", config, re.DOTALL)
    if match is None:
        return None
    prefix = re.search(r"#define PATH_TEMP\s*\n(.*?)#enddef", config, re.DOTALL)
    values = dict(reversed(re.findall(r"^\s*(id|race|image)=(.*)$", match[1], re.MULTILINE)))
    text = re.search(r'description=\s*_\s*"(.*?)"', match[1], re.DOTALL)
    path = values.get("image", "").strip('"')
    path = path.replace("{PATH_TEMP}", prefix[1].strip() if prefix else "").partition("~")[0]
    if not path.endswith(".png") or "id" not in values:
        return None
    unit = Unit(values["id"], values.get("race", "none"), " ".join(text[1].split()) if text else "")
    return path.removesuffix(".png"), unit


def action_of(rest: str) -> tuple[str, str]:
    """Reads action and direction from the rest of a frame's name, such as "ne-attack-3"."""
    words = re.sub(r"[-_]?\d+$", "", rest)
    match = re.match(r"(ne|nw|se|sw|n|s)(-|$)", words)
    direction = match[1] if match else "side"
    words = words[match.end() :] if match else words
    return next(name for name, words_ in ACTIONS.items() if re.search(words_, words)), direction


def _frames(
    units: Mapping[str, Unit], found: Mapping[str, bytes]
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each frame that belongs to a unit, with the key of its clip; by path."""
    for path in sorted(path for path in found if path.endswith(".png")):
        stem = path.removeprefix(IMAGES).removesuffix(".png")
        owner = max(
            (base for base in units if stem == base or stem.startswith(f"{base}-")),
            key=len,
            default=None,
        )
        if owner is None:
            continue
        pixels = on_paper(Image.open(io.BytesIO(found[path])), SIDE)
        if pixels is None:
            yield "", None
            continue
        action, direction = action_of(stem[len(owner) :].strip("-"))
        clip = re.sub(r"[-_]?\d+$", "", stem)
        number = re.search(r"(\d+)$", stem)
        yield (
            clip,
            {
                "image": pixels,
                "label": units[owner].id,
                "race": units[owner].race,
                "action": action,
                "direction": direction,
                "clip": clip,
                "frame": int(number[1]) if number else 0,
                "text": units[owner].text,
            },
        )
